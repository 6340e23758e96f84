"""auto_LiRPA is named when it is absent, and all that lets it run is put back after use."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

from pytest_triguard.errors import InputError
from pytest_triguard.verification import auto_lirpa, auto_lirpa_layer
from pytest_triguard.verification.auto_lirpa import METHODS, AutoLirpa
from pytest_triguard.verification.operators import Unsupported
from tests.verification.peer import needs_peer

methods = pytest.mark.parametrize("method", METHODS)


def network():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.Dropout(),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 3),
    )


def bounded(module, method):
    """Convert a module and bound it; no random number is drawn."""
    lower, upper = torch.zeros(2, 2, 4, 4), torch.full((2, 2, 4, 4), 0.1)
    rows = torch.tensor([[[1.0, -1.0, 0.0]]]).expand(2, -1, -1)
    return AutoLirpa(module, None, lower, method, steps=2).margins(lower, upper, rows)


# --- absent -------------------------------------------------------------------------------------


def test_an_absent_library_is_an_error_with_the_install_line(monkeypatch):
    monkeypatch.setattr(auto_lirpa, "available", lambda: False)
    with pytest.raises(InputError, match=r"not installed; .*pip install --no-deps auto_LiRPA==0.3"):
        bounded(network(), "crown")


@needs_peer
def test_a_library_that_cannot_be_imported_is_an_error_with_the_reason(monkeypatch):
    monkeypatch.setattr(auto_lirpa, "PACKAGE", "pytest_triguard.verification.no_such_module")
    monkeypatch.setattr(auto_lirpa, "available", lambda: True)
    with pytest.raises(
        InputError, match=r"cannot use the installed .* with torch .*: No module named"
    ):
        auto_lirpa.require()


@needs_peer
def test_an_unknown_method_is_an_error():
    with pytest.raises(InputError, match=r"method must be one of .*but 'crwn' came"):
        bounded(network(), "crwn")


# --- what is put back ---------------------------------------------------------------------------


def surroundings():
    """Everything that the library, or what lets it run, changes."""
    helper = torch.onnx.symbolic_helper
    executor = torch._C._jit_set_profiling_executor(True)
    torch._C._jit_set_profiling_executor(executor)
    mode = torch._C._jit_set_profiling_mode(True)
    torch._C._jit_set_profiling_mode(mode)
    exporter = auto_lirpa_layer._exporter_settings()
    return {
        "stand-in": "numpy.lib.arraysetops" in sys.modules,
        "six": hasattr(torch, "_six"),
        "opset setter": hasattr(helper, "_set_opset_version"),
        "item access": hasattr(torch._C.Node, "__getitem__"),
        "opset": exporter.export_onnx_opset_version,
        "inlining": exporter.autograd_inlining,
        "executor": (executor, mode),
        "filters": list(warnings.filters),
        "handlers": list(logging.getLogger().handlers),
        "level": logging.getLogger().level,
        "dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "random": torch.get_rng_state().tolist(),
        "output": sys.stdout,
        "scopes": torch.jit._trace._trace_module_map,
        "clamp": torch.clamp,
        "depth": sys.getrecursionlimit(),
    }


@needs_peer
@methods
def test_everything_is_put_back_after_use(method):
    module = network()
    before = surroundings()
    bounded(module, method)
    assert surroundings() == before


@needs_peer
def test_everything_is_put_back_after_a_refusal():
    module = nn.Sequential(nn.Conv2d(2, 2, 4), nn.Softmax(1), nn.Flatten())
    before = surroundings()
    with pytest.raises(Unsupported):
        bounded(module, "ibp")
    assert surroundings() == before


IMPORTS = """
import logging, sys, warnings
import torch
from pytest_triguard.verification.auto_lirpa import require
def state():
    old = torch._C._jit_set_profiling_mode(True)
    torch._C._jit_set_profiling_mode(old)
    return list(warnings.filters), list(logging.getLogger().handlers), old, sys.getrecursionlimit()
before = state()
require()
assert state() == before, (before, state())
assert "numpy.lib.arraysetops" not in sys.modules or "arraysetops" in dir(sys.modules["numpy.lib"])
"""


@needs_peer
def test_importing_the_library_has_no_side_effects(tmp_path):
    environment = os.environ | {"HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path / "data")}
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS], capture_output=True, text=True, env=environment
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert not list(tmp_path.rglob("auto_LiRPA"))


@needs_peer
def test_the_module_stays_as_it_is():
    module = network()
    module.train()
    before = {name: values.clone() for name, values in module.state_dict().items()}
    bounded(module, "crown")
    with pytest.raises(Unsupported):
        bounded(nn.Sequential(module, nn.Softmax(1)), "crown")
    assert module.training
    assert all(each.training for each in module.modules())
    assert all(each.requires_grad for each in module.parameters())
    after = module.state_dict()
    assert all(torch.equal(after[name], values) for name, values in before.items())
