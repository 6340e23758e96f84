"""Device names, what they stand for here, and what a device can do."""

from __future__ import annotations

import subprocess
import sys
import types

import pytest
import torch

from pytest_triguard.device_names import parse, split
from pytest_triguard.engine import devices
from pytest_triguard.errors import ConfigError
from tests.simulated_accelerator import simulated_accelerator

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "kind", "index"),
    [("cpu", "cpu", None), ("cuda:0", "cuda", 0), ("xpu:12", "xpu", 12), ("a_b2", "a_b2", None)],
)
def test_a_well_spelt_name_is_kept_and_split(name, kind, index):
    assert parse(name) == name
    assert split(name) == (kind, index)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "CUDA",
        "cuda:",
        "cuda:-1",
        "cuda:01",
        "cuda:1:2",
        "cuda 1",
        " cpu",
        "cpu\n",
        "1",
        "cuda:x",
    ],
)
def test_a_badly_spelt_name_is_refused_with_an_example(name):
    with pytest.raises(ConfigError) as caught:
        parse(name)
    assert str(caught.value).startswith(f"{name!r} is not a device name: expected")


def test_spelling_is_checked_without_torch():
    code = "import sys, pytest_triguard.device_names; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_name_means_the_fallback_as_it_is():
    fallback = torch.device("cuda", 3)
    assert devices.resolve(None, fallback=fallback, worker=1) is fallback


@pytest.mark.parametrize("name", ["cpu", "cpu:0"])
@pytest.mark.parametrize("worker", [None, 5])
def test_the_cpu_is_the_cpu_for_every_worker(name, worker):
    resolved = devices.resolve(name, fallback=torch.device("meta"), worker=worker)
    assert resolved == torch.zeros(1).device


@pytest.mark.parametrize(
    ("name", "worker", "index"),
    [
        ("sim", None, 0),
        ("sim", 0, 0),
        ("sim", 1, 1),
        ("sim", 2, 0),
        ("sim", 7, 1),
        ("sim:1", None, 1),
        ("sim:1", 0, 1),
        ("sim:0", 1, 0),
    ],
)
def test_workers_share_the_visible_devices_and_an_index_is_literal(name, worker, index):
    with simulated_accelerator(devices=2):
        resolved = devices.resolve(name, fallback=CPU, worker=worker)
        assert resolved == torch.device("sim", index)
        assert torch.zeros(1, device=resolved).device == resolved


@pytest.mark.parametrize("name", ["tpu", "meta", "nn", "hip:0", "sim", "sim:0", "cpux"])
def test_a_type_that_is_not_here_is_refused_with_what_is(name):
    with pytest.raises(ConfigError) as caught:
        devices.resolve(name, fallback=CPU)
    message = str(caught.value)
    kind = name.partition(":")[0]
    assert message.startswith(f"--triguard-device={name}: no device of type {kind!r} was found;")
    assert message.endswith(f"available here: {', '.join(devices.available())}")


@pytest.mark.parametrize(
    ("name", "last"), [("sim:2", 1), ("sim:300", 1), ("sim:4294967296", 1), ("cpu:1", 0)]
)
def test_an_index_beyond_the_visible_count_is_refused(name, last):
    with simulated_accelerator(devices=2), pytest.raises(ConfigError) as caught:
        devices.resolve(name, fallback=CPU)
    assert str(caught.value) == (
        f"--triguard-device={name}: the visible devices of type {name.partition(':')[0]!r} end at "
        f"index {last}; expected one of those available here: cpu, sim:0, sim:1"
    )


def test_a_counted_device_that_does_not_work_is_refused(monkeypatch):
    with simulated_accelerator():
        monkeypatch.setattr(torch.get_device_module("sim"), "is_available", lambda: False)
        with pytest.raises(ConfigError, match=r"available here: cpu$"):
            devices.resolve("sim:0", fallback=CPU)


def test_a_badly_spelt_name_names_the_option_too():
    with pytest.raises(ConfigError, match=r"^--triguard-device: 'cuda:' is not a device name"):
        devices.resolve("cuda:", fallback=CPU)


def test_available_lists_the_cpu_and_every_visible_accelerator():
    assert devices.available()[0] == "cpu"
    with simulated_accelerator(devices=3):
        assert devices.available() == ["cpu", "sim:0", "sim:1", "sim:2"]


def test_only_the_cpu_is_the_host():
    assert devices.is_host(CPU)
    assert not devices.is_host(torch.device("cuda", 0))
    with simulated_accelerator():
        assert not devices.is_host(torch.zeros(1, device="sim").device)


def test_synchronize_asks_the_devices_own_module(monkeypatch):
    waited = []
    with simulated_accelerator(devices=2) as sim:
        module = torch.get_device_module("sim")
        monkeypatch.setattr(module, "synchronize", lambda device=None: waited.append(device))
        devices.synchronize(torch.device("sim", 1))
        monkeypatch.setattr(module, "synchronize", lambda: waited.append("all"))
        devices.synchronize(torch.device("sim", 1))
        assert sim.host_reads == []
    assert waited == [torch.device("sim", 1), "all"]


def test_synchronize_on_the_cpu_returns_at_once(monkeypatch):
    monkeypatch.setattr(torch, "cpu", types.SimpleNamespace())
    devices.synchronize(CPU)


def test_float64_is_found_by_trying():
    assert devices.supports_float64(CPU)
    with simulated_accelerator() as sim:
        device = torch.device("sim", 0)
        assert devices.supports_float64(device)
        assert sim.host_reads == sim.uploads == sim.cpu_factories == []
    with simulated_accelerator(float64=False):
        assert not devices.supports_float64(device)
