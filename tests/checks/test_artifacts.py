"""Counterexamples on disk hold when they are read back, and their names are safe everywhere."""

import math
import os
import re
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from pytest_triguard.checks.artifacts import artifact_name, save_counterexamples
from pytest_triguard.checks.finding import Counterexample
from pytest_triguard.classifier import Classifier
from pytest_triguard.errors import TriGuardWarning


class Brighter(nn.Module):
    """Class 1 where the first pixel is bright; `flips` changes its mind at every call."""

    def __init__(self, flips=False, dtype=torch.float64):
        super().__init__()
        self.weight = nn.Parameter(torch.ones((), dtype=dtype))
        self.flips = flips
        self.calls = 0

    def forward(self, inputs):
        self.calls += 1
        bright = (inputs[:, 0, 0, 0] - 0.5) * self.weight
        if self.flips and self.calls % 2 == 0:
            bright = -bright
        return torch.stack([-bright, bright], 1)


def example(pixel=0.6, sample=0, dtype=torch.float64, **changes):
    """A sample of class 0 whose first pixel is 0.45, and that pixel made as bright as told."""
    clean = torch.full((1, 2, 2), 0.25, dtype=dtype)
    clean[0, 0, 0] = 0.45
    broken = clean.clone()
    broken[0, 0, 0] = pixel
    found = Counterexample(sample=sample, clean=clean, broken=broken, label=0, eps=0.2)
    return replace(found, **changes)


@pytest.fixture
def model():
    with Classifier(Brighter()).prepared() as model:
        yield model


def save(folder, examples, model, nodeid="test_a.py::test_b", name="assert_robust"):
    return save_counterexamples(folder, nodeid, name, examples, model)


def test_the_file_holds_what_is_needed_to_check_again(tmp_path, model):
    examples = [
        example(0.6, "img/7.png"),
        example(0.55, 3, eps=None, target=1),
        example(0.52, 4, norm="l2"),
    ]
    path = save(tmp_path / "new" / "folder", examples, model)
    with np.load(path, allow_pickle=False) as saved:
        assert saved["ids"].tolist() == ["img/7.png", "3", "4"]
        assert saved["clean"].shape == saved["broken"].shape == (3, 1, 2, 2)
        assert saved["broken"][:, 0, 0, 0].tolist() == [0.6, 0.55, 0.52]
        assert saved["labels"].tolist() == [0, 0, 0]
        assert saved["targets"].tolist() == [-1, 1, -1]
        np.testing.assert_array_equal(saved["eps"], [0.2, math.nan, 0.2])
        assert saved["norms"].tolist() == ["linf", "linf", "l2"]


def test_nothing_in_the_file_needs_pickle(tmp_path, model):
    with zipfile.ZipFile(save(tmp_path, [example()], model)) as archive:
        assert archive.namelist() == [
            f"{name}.npy"
            for name in ("ids", "clean", "broken", "labels", "targets", "eps", "norms")
        ]
        assert not any(b"'O'" in archive.read(name)[:200] for name in archive.namelist())


FAKES = {
    "not misclassified": {"pixel": 0.46},
    "outside the ball": {"pixel": 0.66},
    "outside the ball in L2": {"pixel": 0.66, "norm": "l2"},
    "above the bounds": {"pixel": 1.1, "eps": None},
    "not the target": {"target": 0},
    "not a number": {"pixel": math.nan},
}


@pytest.mark.parametrize("fake", FAKES.values(), ids=FAKES)
def test_one_that_does_not_hold_is_left_out(tmp_path, model, fake):
    path = save(tmp_path, [example(sample=1), example(sample=2, **fake), example(sample=3)], model)
    with np.load(path) as saved:
        assert saved["ids"].tolist() == ["1", "3"]
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("fake", FAKES.values(), ids=FAKES)
def test_nothing_is_left_where_none_holds(tmp_path, model, fake):
    before = save(tmp_path, [example()], model)
    assert before.exists()
    assert save(tmp_path, [example(**fake)], model) is None
    assert os.listdir(tmp_path) == []


def test_a_module_that_changes_its_mind_confirms_nothing(tmp_path):
    module = Brighter(flips=True)
    module.calls = 1
    with Classifier(module).prepared() as model:
        assert save(tmp_path, [example(), example(sample=1)], model) is None
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_rounding_takes_nothing_out_of_its_ball(tmp_path, dtype):
    """The sum of a sample and an eps is rounded, and so can lie a little farther than eps."""
    eps = 37.3
    clean = torch.full((1, 10, 10), 0.45, dtype=dtype)
    clean[0] += torch.linspace(0, 2, 100, dtype=dtype).view(10, 10)
    broken = clean + eps
    assert (broken.double() - clean.double()).abs().max() > eps + 1e-6
    found = Counterexample(sample=0, clean=clean, broken=broken, label=0, eps=eps)
    with Classifier(Brighter(dtype=dtype), bounds=(-40.0, 40.0)).prepared() as model:
        path = save(tmp_path, [found], model)
    with np.load(path) as saved:
        assert saved["broken"].dtype == (np.float16 if dtype == torch.float16 else np.float32)
        assert torch.equal(torch.from_numpy(saved["broken"][0]).to(dtype), broken)


def test_a_module_without_parameters_can_be_broken(tmp_path):
    module = nn.Sequential(nn.Flatten(), nn.AvgPool1d(2))
    clean, broken = torch.tensor([0.4, 0.2, 0.1, 0.1]), torch.tensor([0.1, 0.1, 0.4, 0.2])
    found = Counterexample(
        sample=0, clean=clean.view(1, 2, 2), broken=broken.view(1, 2, 2), label=0
    )
    with Classifier(module).prepared() as model:
        assert save(tmp_path, [found], model) is not None


def test_a_folder_that_cannot_be_made_is_a_warning(tmp_path, model):
    (tmp_path / "file").write_text("")
    with pytest.warns(TriGuardWarning, match="counterexamples could not be saved to .*check-"):
        assert save(tmp_path / "file" / "folder", [example()], model) is None
    assert (tmp_path / "file").read_text() == ""


def test_nothing_to_save_needs_no_folder(tmp_path, model):
    (tmp_path / "file").write_text("")
    assert save(tmp_path / "file" / "folder", [], model) is None
    assert save(tmp_path / "folder", [], model) is None
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(("library", "name"), [(os, "replace"), (np, "savez")])
def test_a_save_that_breaks_off_leaves_the_file_as_it_was(
    tmp_path, model, monkeypatch, library, name
):
    path = save(tmp_path, [example(sample="before")], model)

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(library, name, fail)
    with pytest.warns(TriGuardWarning, match="disk full"):
        assert save(tmp_path, [example(sample="after")], model) is None
    monkeypatch.undo()
    with np.load(path) as saved:
        assert saved["ids"].tolist() == ["before"]
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
def test_others_may_read_what_the_user_lets_them_read(tmp_path, model):
    """In CI the one who uploads the artifacts may not be the one who ran the tests."""
    usual = tmp_path / "usual"
    usual.touch()
    assert save(tmp_path, [example()], model).stat().st_mode == usual.stat().st_mode


def test_a_save_that_is_interrupted_leaves_nothing(tmp_path, model, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, [example()], model)
    assert os.listdir(tmp_path) == []


NODEIDS = [
    "test_a.py::test_b",
    "tests/deep/test_a.py::TestClass::test_b[a b]",
    "test_a.py::test_b[CON]",
    "test_a.py::test_b[../../etc/passwd]",
    "test_a.py::test_b[C:\\nul]",
    "test_a.py::test_b[\u00e9\u4e2d\U0001f600]",
    "test_a.py::test_b[" + "x" * 1000 + "]",
    "test_a.py::test_b[a\nb\x1b[31m]",
    "test_a.py::test_b[*?<>|\"':]",
    "test_a.py::test_b[trailing. ]",
    "test_\udce9.py::test_b",
    "",
]


@pytest.mark.parametrize("name", ["assert_robust", "CON", "", "..", "a/b", "x" * 500])
@pytest.mark.parametrize("nodeid", NODEIDS)
def test_a_name_is_safe_on_every_platform(nodeid, name):
    found = artifact_name(nodeid, name)
    assert re.fullmatch(r"check-[a-z0-9]*(-[a-z0-9]+)*", found)
    assert len(found) <= 110


def test_names_differ_where_checks_differ_even_without_case():
    pairs = [(nodeid, name) for nodeid in NODEIDS for name in ("a", "A", "b/c", "b-c")]
    pairs += [("test_a.py::TEST_B", "a"), ("other/test_a.py::test_b", "a")]
    names = {artifact_name(nodeid, name).lower() for nodeid, name in pairs}
    assert len(names) == len(pairs)


def test_a_name_begins_with_the_test_it_is_about():
    found = artifact_name("tests/test_gate.py::test_pgd[a/b]", "assert_robust")
    assert found.startswith("check-test-gate-py-test-pgd-a-b-assert-robust-")
