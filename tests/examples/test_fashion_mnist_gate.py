"""The second example: images the user names, a committed baseline, and a twin that is worse.

Most of this needs no real images: small files in the format of Fashion-MNIST are written here.
"""

from __future__ import annotations

import ast
import gzip
import importlib.util
import json
import os
import re
import shlex
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from torch.nn import functional

from pytest_triguard import Classifier
from pytest_triguard.baseline import read

EXAMPLE = Path(__file__).parents[2] / "examples" / "fashion_mnist_gate"
DATA = os.environ.get("FASHION_MNIST_ROOT")
QUIET = (
    "-p no:randomly -p no:rerunfailures -p no:timeout -p no:cacheprovider -p no:hypothesispytest"
)
CHECKS = 5
COUNT = 60
"""Test images that are made here."""
CHUNK = "--triguard-chunk=64"
"""Saves the time it takes to find the fastest."""
WORSE = {
    "test_clothes_are_recognised",
    "test_robustness_is_proven",
    "test_pgd_finds_little",
    "test_explanations_hardly_hang_on_noise",
}
"""Checks in which the quantized twin falls behind the baseline on the real images."""

real_images = pytest.mark.skipif(
    not DATA, reason="FASHION_MNIST_ROOT does not name a folder with the real images"
)

# All of it: a run within this process would load it anew.
pytest.importorskip("torchvision.datasets")


def module(name):
    """Return a module of the example, under a name of its own."""
    spec = importlib.util.spec_from_file_location(f"fashion_{name}", EXAMPLE / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture(scope="module")
def fashion():
    return module("fashion")


@pytest.fixture(scope="module")
def network():
    return module("network")


@pytest.fixture
def train(monkeypatch):
    """The module of the training script, whose imports are taken back."""
    monkeypatch.syspath_prepend(EXAMPLE)
    for name in ("fashion", "network", "train"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return module("train")


def blobs(count, *, seed):
    """Return smooth random images `(N, 28, 28)`, uint8."""
    draws = torch.rand(count, 1, 5, 5, generator=torch.Generator().manual_seed(seed))
    images = functional.interpolate(draws, size=(28, 28), mode="bilinear", align_corners=True)
    return (images[:, 0] * 255).round().to(torch.uint8)


def pack(path, values):
    """Write a gzipped idx file of bytes: its magic number, its sizes, its values."""
    sizes = struct.pack(f">{values.ndim}I", *values.shape)
    with gzip.open(path, "wb") as file:
        file.write(bytes([0, 0, 8, values.ndim]) + sizes + values.numpy().tobytes())


@pytest.fixture(scope="module")
def packed(tmp_path_factory, network):
    """A folder as Debian's package lays it out, with images that the network gets right."""
    folder = tmp_path_factory.mktemp("packed")
    model = network.shipped()
    for name, count, seed in (("train", 20, 0), ("t10k", COUNT, 1)):
        images = blobs(count, seed=seed)
        with torch.no_grad():
            logits = model((images.unsqueeze(1) / 255 - network.MEAN) / network.STD)
        pack(folder / f"{name}-images-idx3-ubyte.gz", images)
        pack(folder / f"{name}-labels-idx1-ubyte.gz", logits.argmax(1).to(torch.uint8))
    return folder


@pytest.fixture
def copied(pytester, monkeypatch):
    """A copy of the example, in an environment that says nothing about images or CI."""
    for name in ("PYTEST_ADDOPTS", "CI", "FASHION_MNIST_ROOT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # two workers share what may be two cores
    monkeypatch.setenv("PYTEST_ADDOPTS", QUIET)
    unwanted = shutil.ignore_patterns(".*", "__pycache__", "data")
    shutil.copytree(EXAMPLE, pytester.path, dirs_exist_ok=True, ignore=unwanted)
    return pytester


def pipelines():
    """Return the pytest command of each pipeline, as words, by file."""
    commands = {}
    for path in sorted((EXAMPLE / "ci").iterdir()):
        text = path.read_text(encoding="utf-8")
        found = re.search(r"(?m)^ *(?:\.venv/bin/)?(pytest\b[^'\n]*(?:\n +--.*)+)", text)
        commands[path.name] = shlex.split(found[1].replace("\\\n", " "))
    return commands


def verdicts(path):
    checks = json.loads(path.read_text())["checks"]
    return {check["nodeid"].partition("::")[2]: check["verdict"] for check in checks}


def check_red(result, report):
    """Check that thresholds hold and that the gate is red all the same; return what is worse."""
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    checks = json.loads(report.read_text())["checks"]
    assert len(checks) == CHECKS
    for check in checks:
        better = 1 if check["relation"] == ">=" else -1
        assert better * (check["value"] - check["threshold"]) > 0, check
        assert check["verdict"] == check["baseline"]["verdict"]
    worse = {name for name, verdict in verdicts(report).items() if verdict == "failed"}
    result.assert_outcomes(passed=CHECKS - len(worse), failed=len(worse))
    result.stdout.fnmatch_lines(["*worse than * in the baseline*"])
    return worse


def test_the_committed_baseline_is_that_of_the_committed_weights(fashion, network):
    classes = fashion.FashionMNIST.classes
    shipped = Classifier(
        network.shipped(), mean=(network.MEAN,), std=(network.STD,), classes=classes
    )
    entries = read(EXAMPLE / "baseline" / "test_gate.py.json", "test_gate.py")
    assert {entry.classifier for entry in entries.values()} == {shipped.fingerprint()}
    tree = ast.parse((EXAMPLE / "test_gate.py").read_text())
    tests = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert {test for test, _ in entries} == tests
    assert len(tests) == CHECKS


def test_the_weights_are_few_enough_to_commit(network):
    assert network.WEIGHTS.stat().st_size < 200_000


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_twin_has_the_levels_of_its_bits(network, bits):
    model = network.shipped()
    twin = network.quantized(model, bits=bits)
    for weight, rounded in zip(model.parameters(), twin.parameters(), strict=True):
        step = weight.abs().max() / (2 ** (bits - 1) - 1)
        assert len(rounded.unique()) <= 2**bits - 1
        assert (weight - rounded).abs().max() <= step * 0.5001
        assert not torch.equal(weight, rounded)


def test_unpacked_files_are_what_torchvision_reads(fashion, packed, tmp_path):
    fashion.unpack(packed, tmp_path)
    for train, count, seed in ((True, 20, 0), (False, COUNT, 1)):
        data = fashion.dataset(str(tmp_path), train=train)
        assert torch.equal(data.data, blobs(count, seed=seed))
        image, label = data[0]
        assert image.shape == (1, 28, 28)
        assert 0 <= image.min() < image.max() <= 1
        assert label in range(10)


def test_a_source_without_the_files_is_named(fashion, packed, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(packed, source)
    (source / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(fashion.DataError, match=r"t10k-labels-idx1-ubyte\.gz is missing"):
        fashion.unpack(source, tmp_path / "data")


def test_a_broken_source_leaves_no_half_of_a_file(fashion, packed, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(packed, source)
    broken = source / "train-images-idx3-ubyte.gz"
    broken.write_bytes(broken.read_bytes()[:-50])
    with pytest.raises(fashion.DataError, match="cannot be unpacked"):
        fashion.unpack(source, tmp_path)
    assert list(fashion.raw(tmp_path).iterdir()) == []


def test_a_folder_that_is_not_named_is_asked_for(fashion):
    for nothing in (None, ""):
        with pytest.raises(fashion.DataError, match="give --data-root=DIR or set FASHION_MNIST"):
            fashion.dataset(nothing, train=False)


def test_a_folder_without_the_files_is_named(fashion, tmp_path):
    missing = re.escape(str(fashion.raw(tmp_path) / "t10k-images-idx3-ubyte"))
    with pytest.raises(fashion.DataError, match=f"^{missing} is missing: .*fashion.py"):
        fashion.dataset(str(tmp_path), train=False)


@pytest.mark.parametrize("damage", ["truncated", "empty", "not idx", "other size", "fewer labels"])
def test_files_of_something_else_are_refused(fashion, packed, tmp_path, damage):
    fashion.unpack(packed, tmp_path)
    images = fashion.raw(tmp_path) / "t10k-images-idx3-ubyte"
    labels = fashion.raw(tmp_path) / "t10k-labels-idx1-ubyte"
    if damage == "truncated":
        images.write_bytes(images.read_bytes()[:-784])
    elif damage == "empty":
        images.write_bytes(b"")
    elif damage == "not idx":
        images.write_text("<html>404</html>")
    elif damage == "other size":
        images.write_bytes(
            bytes([0, 0, 8, 3]) + struct.pack(">3I", COUNT, 4, 4) + bytes(COUNT * 16)
        )
    else:
        labels.write_bytes(bytes([0, 0, 8, 1]) + struct.pack(">I", COUNT - 1) + bytes(COUNT - 1))
    with pytest.raises(fashion.DataError, match="not those of Fashion-MNIST: lay them out again"):
        fashion.dataset(str(tmp_path), train=False)


def test_a_run_without_images_ends_before_its_first_test(copied):
    """Told once, though two workers look for them."""
    result = copied.runpytest_subprocess("-n", "2")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    told = [line for line in result.errlines if line]
    assert len(told) == 1
    assert told[0].startswith("ERROR: no folder of Fashion-MNIST is named: give --data-root=DIR")


@pytest.mark.parametrize("option", ["--collect-only", "--fixtures"])
def test_a_run_that_only_shows_something_needs_no_images(copied, option):
    assert copied.runpytest_inprocess(*QUIET.split(), option).ret == pytest.ExitCode.OK


def test_all_pipelines_run_the_same_command():
    commands = pipelines()
    assert len(commands) == 3
    first, *others = commands.values()
    assert all(each == first for each in others)
    assert f"--triguard-min-checks={CHECKS}" in first
    assert "--triguard-baseline=baseline" in first


def test_a_baseline_turns_the_gate_red_where_every_threshold_holds(copied, packed, monkeypatch):
    """What the example shows, on images made here: update, green in a pipeline, red twin.

    Proofs are not searched for with a clock, which would find fewer on a busy machine.
    """
    gate = copied.path / "test_gate.py"
    loose = re.sub(r"at_least=[\d.]+", "at_least=0.05", gate.read_text())
    loose = loose.replace("0.8,", "0.999,").replace("0.5,", "1.999,")
    loose = loose.replace("assert_verified(", "partial(assert_verified, method='crown_ibp')(")
    gate.write_text(
        loose.replace("import pytest\n", "from functools import partial\nimport pytest\n")
    )
    fixtures = copied.path / "conftest.py"
    fixtures.write_text(fixtures.read_text().replace("BITS = 4", "BITS = 3"))
    shutil.rmtree(copied.path / "baseline")
    copied.run(sys.executable, "fashion.py", "data", "--from", packed)
    monkeypatch.setenv("FASHION_MNIST_ROOT", "data")

    copied.runpytest_subprocess("--triguard-update", CHUNK).assert_outcomes(passed=CHECKS)
    assert len(read(copied.path / "baseline" / "test_gate.py.json")) == CHECKS

    (copied.path / "report").mkdir()
    (_, *arguments) = pipelines()["github-actions.yml"]
    copied.runpytest_subprocess(*arguments, CHUNK).assert_outcomes(passed=CHECKS)
    report = copied.path / "report" / "triguard.json"
    assert set(verdicts(report).values()) == {"passed"}
    suite = ElementTree.parse(copied.path / "report" / "junit.xml").getroot().find("testsuite")
    assert suite.get("tests") == str(CHECKS)

    result = copied.runpytest_subprocess(*arguments, CHUNK, "--model=quantized")
    assert "test_clothes_are_recognised" in check_red(result, report)


def test_training_writes_weights_that_the_network_takes(copied, packed, network):
    copied.run(sys.executable, "fashion.py", "data", "--from", packed)
    before = network.WEIGHTS.read_bytes()
    command = [sys.executable, "train.py", "--data-root", "data"]
    subprocess.run(command, cwd=copied.path, check=True, timeout=120)
    assert network.WEIGHTS.read_bytes() == before, "the copy is trained, not the example"
    assert (copied.path / "weights.pt").read_bytes() != before
    weights = torch.load(copied.path / "weights.pt", weights_only=True)
    network.network().load_state_dict(weights)
    assert all(weight.isfinite().all() for weight in weights.values())


def test_training_repeats_itself(train):
    images, labels = blobs(20, seed=0).unsqueeze(1) / 255, torch.arange(20) % 10
    with torch.random.fork_rng(devices=[]):
        first, second = (train.train(images, labels, epochs=4) for _ in range(2))
    for weight, again in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(weight, again)


def test_the_intervals_of_training_hold_every_point_of_the_ball(train, network):
    model = network.shipped()
    generator = torch.Generator().manual_seed(0)
    images = blobs(8, seed=2).unsqueeze(1) / 255
    labels = torch.arange(8)
    with torch.no_grad():
        worst = train.worst_logits(model, images, labels, 0.03)
        for _ in range(50):
            noise = (torch.rand(images.shape, generator=generator) * 2 - 1).sign() * 0.03
            points = (images + noise).clamp(0, 1)
            logits = model((points - network.MEAN) / network.STD)
            of_label = functional.one_hot(labels, 10).bool()
            assert (logits >= worst - 1e-4)[of_label].all()
            assert (logits <= worst + 1e-4)[~of_label].all()


def report_rows(text):
    """Return the rows of the checks in reports that pytest printed."""
    return [line for line in text.splitlines() if re.match(r"  test_\S+ .* (passed|failed)$", line)]


def test_the_readme_shows_a_green_and_a_red_run():
    rows = report_rows((EXAMPLE / "README.md").read_text(encoding="utf-8"))
    assert len(rows) == 2 * CHECKS
    assert all(row.endswith("passed") for row in rows[:CHECKS])
    assert sum(row.endswith("failed") for row in rows[CHECKS:]) == len(WORSE)


@real_images
@pytest.mark.slow
def test_the_readme_shows_what_comes_out(copied, monkeypatch):
    monkeypatch.setenv("FASHION_MNIST_ROOT", str(Path(DATA).absolute()))
    monkeypatch.setenv("COLUMNS", "100")
    rows = report_rows((EXAMPLE / "README.md").read_text(encoding="utf-8"))
    green, red = copied.runpytest_subprocess(), copied.runpytest_subprocess("--model=quantized")
    assert report_rows(green.stdout.str()) == rows[:CHECKS]
    assert report_rows(red.stdout.str()) == rows[CHECKS:]


@real_images
@pytest.mark.slow
@pytest.mark.parametrize("workers", [(), ("-n", "2")])
def test_the_gate_is_green_on_the_real_images(copied, monkeypatch, workers):
    monkeypatch.setenv("FASHION_MNIST_ROOT", str(Path(DATA).absolute()))
    (copied.path / "report").mkdir()
    (_, *arguments) = pipelines()["github-actions.yml"]
    result = copied.runpytest_subprocess(*arguments, *workers)
    result.assert_outcomes(passed=CHECKS)
    result.stdout.fnmatch_lines([f"{CHECKS} checks: {CHECKS} passed"])


@real_images
@pytest.mark.slow
def test_the_quantized_twin_is_red_on_the_real_images(copied, monkeypatch):
    monkeypatch.setenv("FASHION_MNIST_ROOT", str(Path(DATA).absolute()))
    (copied.path / "report").mkdir()
    (_, *arguments) = pipelines()["github-actions.yml"]
    result = copied.runpytest_subprocess(*arguments, "--model=quantized")
    assert check_red(result, copied.path / "report" / "triguard.json") == WORSE
