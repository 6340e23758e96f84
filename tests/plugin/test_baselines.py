"""Baselines in a run of pytest: written, compared with, refused, and never moved by a gate."""

import json

import pytest

import pytest_triguard.assertions  # noqa: F401  a run within this process must not load it anew

GATE = """
import os

import torch

from pytest_triguard import Classifier, assert_accuracy, assert_entropy_below

generator = torch.Generator().manual_seed(0)
inputs = torch.rand(60, 1, 4, 4, generator=generator)
module = torch.nn.Sequential(
    torch.nn.Flatten(), torch.nn.Linear(16, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3, bias=False)
)
module[1].weight.data = torch.randn(8, 16, generator=generator)
module[1].bias.data = -module[1].weight.data.sum(1) / 2
module[3].weight.data = torch.randn(3, 8, generator=generator)
labels = module(inputs).argmax(1)
module[3].weight.data += float(os.environ.get("SHIFT", 0)) * torch.randn(3, 8, generator=generator)
classifier = Classifier(module)
MORE = eval(os.environ.get("MORE", "{}"))


def test_accuracy():
    assert_accuracy(classifier, inputs, labels, at_least=0.2, **MORE)


def test_entropy():
    options = {"attribution": "saliency"} | MORE
    assert_entropy_below(classifier, inputs, 0.9999, labels=labels, **options)
"""
SHIFT = "0.7"


@pytest.fixture
def gate(project):
    """A project with two checks and no baseline yet."""
    project.makepyfile(test_gate=GATE)
    return project


@pytest.fixture
def with_baseline(gate, run):
    """The same with the baseline of the good model."""
    assert run("--triguard-baseline=known", "--triguard-update").ret == 0
    return gate


def checks(project, name="report.json"):
    report = json.loads((project.path / name).read_text(encoding="utf-8"))
    return {check["assertion"]: check for check in report["checks"]}


def test_a_missing_baseline_fails_with_the_command_that_makes_it(gate, run):
    found = run("--triguard-baseline=known", "--triguard-json=report.json")
    found.assert_outcomes(failed=2)
    found.stdout.fnmatch_lines(
        [
            "E  *TriGuardFailure: no baseline for accuracy 1.000 (60/60)",
            "E   *  update    *pytest test_gate.py::test_accuracy --triguard-seed=0 "
            "--triguard-baseline=known --triguard-update",
        ]
    )
    check = checks(gate)["assert_accuracy"]
    assert (check["verdict"], check["gate"]) == ("failed", "passed")
    assert check["baseline"]["verdict"] == "missing"
    assert not (gate.path / "known").exists()


def test_the_command_makes_it(gate, run):
    command = "test_gate.py::test_accuracy --triguard-baseline=known --triguard-update"
    assert run(*command.split()).ret == 0
    found = run("--triguard-baseline=known")
    found.assert_outcomes(passed=1, failed=1)  # the other check has none still


def test_the_same_model_passes_in_every_mode(with_baseline, run, mode):
    found = run("--triguard-baseline=known", "--triguard-json=report.json", "-v", *mode)
    found.assert_outcomes(passed=2)
    for check in checks(with_baseline).values():
        assert check["baseline"]["verdict"] == "passed"
        assert check["baseline"]["delta"] == 0
        assert "the same model" in check["baseline"]["differs"]
    found.stdout.fnmatch_lines(["*baseline: not worse on these samples than allowed: 1.000 then*"])


def test_every_mode_writes_the_same_baseline(gate, run, mode):
    found = run("--triguard-baseline=known", "--triguard-update", "--triguard-chunk=32", *mode)
    assert found.ret == 0
    found.stdout.fnmatch_lines(["triguard: wrote the baselines in *test_gate.py.json"])
    document = json.loads((gate.path / "known" / "test_gate.py.json").read_text())
    assert [each["test"] for each in document["checks"]] == ["test_accuracy", "test_entropy"]
    assert document["checks"][0]["outcomes"] == "Y" * 60
    assert len(document["checks"][1]["values"]) == 60


def test_a_worse_model_fails_though_its_thresholds_hold(with_baseline, run, monkeypatch):
    monkeypatch.setenv("SHIFT", SHIFT)
    arguments = ("--triguard-baseline=known", "--triguard-json=report.json", "--junitxml=j.xml")
    found = run(*arguments, "-k", "accuracy")
    found.assert_outcomes(failed=1)
    check = checks(with_baseline)["assert_accuracy"]
    change = check["baseline"]
    assert (check["verdict"], check["gate"]) == ("failed", "passed")
    assert change["delta"] == pytest.approx(check["value"] - change["value"])
    assert change["worse"] == 60 - check["counts"]["correct"] > 0
    assert "another model" in change["differs"]
    assert change["interval"][0] <= change["delta"] <= change["interval"][1]
    value = f"{check['value']:.3f}"
    found.stdout.fnmatch_lines(
        [
            f"E  *accuracy {value} (*/60), worse than 1.000 in the baseline",
            f"E   *  baseline  worse on these samples than allowed: 1.000 then, {value}*",
            "*test_accuracy*failed",
            "*baseline: worse on these samples than allowed*",
            f"FAILED test_gate.py::test_accuracy - accuracy {value}*",
        ]
    )
    junit = (with_baseline.path / "j.xml").read_text()
    assert 'name="triguard.assert_accuracy.baseline_verdict" value="failed"' in junit
    assert 'name="triguard.assert_accuracy.baseline_value" value="1.0"' in junit


@pytest.mark.parametrize("more", ["{'max_regression': '90%'}", "{'max_regression': 0.9}"])
def test_what_is_allowed_may_be_lost(with_baseline, run, monkeypatch, more):
    monkeypatch.setenv("SHIFT", SHIFT)
    monkeypatch.setenv("MORE", more)
    run("--triguard-baseline=known").assert_outcomes(passed=2)


def test_a_population_claim_needs_more_than_a_few_samples(with_baseline, run, monkeypatch):
    monkeypatch.setenv("SHIFT", "0.1")  # four samples of sixty are lost, which may be chance
    arguments = ("--triguard-baseline=known", "-k", "accuracy", "--triguard-json=report.json")
    run(*arguments).assert_outcomes(failed=1)
    assert 0 < checks(with_baseline)["assert_accuracy"]["baseline"]["worse"] < 6
    run(*arguments, "--triguard-confidence=0.95").assert_outcomes(passed=1)
    monkeypatch.setenv("SHIFT", SHIFT)
    run(*arguments, "--triguard-confidence=0.95").assert_outcomes(failed=1)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--triguard-samples=50"], "*made with other data: 60 samples then, 50 now*"),
        (["--triguard-seed=1"], "*made with other parameters: seed 0 then, 1 now*"),
    ],
)
def test_other_data_and_parameters_are_an_error(with_baseline, run, arguments, sentence):
    found = run("--triguard-baseline=known", "-k", "entropy", *arguments)
    found.assert_outcomes(failed=1)
    found.stdout.fnmatch_lines(["*no comparable baseline for mean attribution entropy*", sentence])


def test_only_checks_whose_threshold_holds_are_written(with_baseline, run, monkeypatch):
    path = with_baseline.path / "known" / "test_gate.py.json"
    before = path.read_text()
    monkeypatch.setenv("SHIFT", "50")
    monkeypatch.setenv("MORE", "{'name': 'other'}")
    text = (with_baseline.path / "test_gate.py").read_text()
    (with_baseline.path / "test_gate.py").write_text(text.replace("at_least=0.2", "at_least=0.99"))
    found = run("--triguard-baseline=known", "--triguard-update")
    found.assert_outcomes(failed=1, passed=1)
    found.stdout.fnmatch_lines(["triguard: no baseline written for test_gate.py::test_accuracy*"])
    document = json.loads(path.read_text())
    assert [each["check"] for each in document["checks"]] == [
        "assert_accuracy",
        "assert_entropy_below",
        "other",
    ]
    assert all(line.rstrip(",") in path.read_text() for line in before.splitlines()[4:6])


def test_an_update_does_not_compare(with_baseline, run, monkeypatch):
    monkeypatch.setenv("SHIFT", SHIFT)
    run("--triguard-baseline=known", "--triguard-update").assert_outcomes(passed=2)
    run("--triguard-baseline=known").assert_outcomes(passed=2)


def test_a_gate_does_not_move_its_own_baseline(gate, run, monkeypatch):
    monkeypatch.setenv("CI", "true")
    found = run("--triguard-baseline=known", "--triguard-update")
    assert found.ret == pytest.ExitCode.USAGE_ERROR
    found.stderr.fnmatch_lines(["ERROR: --triguard-update is refused where*CI is set*"])
    assert not (gate.path / "known").exists()
    assert run("--triguard-baseline=known", "--triguard-update-force").ret == 0
    assert (gate.path / "known" / "test_gate.py.json").exists()


def test_an_update_needs_a_folder(gate, run):
    found = run("--triguard-update")
    assert found.ret == pytest.ExitCode.USAGE_ERROR
    found.stderr.fnmatch_lines(["ERROR: --triguard-update needs a folder to write to*"])


def test_a_broken_baseline_ends_the_run_before_any_test(with_baseline, run, mode):
    path = with_baseline.path / "known" / "test_gate.py.json"
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 0'))
    found = run("--triguard-baseline=known", *mode)
    assert found.ret == pytest.ExitCode.USAGE_ERROR
    errors = [line for line in found.errlines if line.startswith("ERROR")]
    assert len(errors) == 1
    assert "test_gate.py.json is no baseline: its schema_version is 0, but" in errors[0]
    found.stdout.no_fnmatch_line("*test_gate.py*")
    assert run("--triguard-baseline=known", "--co", "-q", *mode).ret == 0


def test_the_ini_file_names_the_folder_beside_itself(gate, run, monkeypatch):
    (gate.path / "pytest.ini").write_text("[pytest]\ntriguard_baseline = known\n")
    inner = gate.mkdir("inner")
    monkeypatch.chdir(inner)
    found = gate.runpytest_inprocess("..", "--triguard-update", "-p", "no:randomly")
    assert found.ret == 0
    assert (gate.path / "known" / "test_gate.py.json").exists()


def test_a_lost_update_is_not_green(gate, run, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pytest_triguard.files.write", full)
    found = run("--triguard-baseline=known", "--triguard-update")
    assert found.ret == pytest.ExitCode.INTERNAL_ERROR
    found.stdout.fnmatch_lines(["triguard: the baselines are not updated: * No space left*"])
    assert not list((gate.path / "known").rglob("*.json"))


def test_a_rerun_writes_its_own_samples(gate, run):
    pytest.importorskip("pytest_rerunfailures")
    (gate.path / "test_gate.py").write_text(
        GATE + "\n\ndef test_flaky(tmp_path_factory, pytestconfig):\n"
        "    first = not hasattr(pytestconfig, 'was_here')\n"
        "    pytestconfig.was_here = True\n"
        "    labels_ = (labels + 1) % 3 if first else labels\n"
        "    assert_accuracy(classifier, inputs, labels_, at_least=0.9)\n"
    )
    found = gate.runpytest_inprocess(
        *("-p", "no:randomly", "--reruns=1"), "--triguard-baseline=known", "--triguard-update"
    )
    assert found.ret == 0
    document = json.loads((gate.path / "known" / "test_gate.py.json").read_text())
    flaky = next(each for each in document["checks"] if each["test"] == "test_flaky")
    assert flaky["outcomes"] == "Y" * 60


SCOPES = """

import pytest


@pytest.fixture(scope="module")
def wide():
    assert_accuracy(classifier, inputs, labels, at_least=0.9)


@pytest.fixture
def narrow(wide):
    assert_accuracy(classifier, inputs, (labels + 1) % 3, at_least=0.0)


attempts = []


def test_scopes(narrow):
    assert_accuracy(classifier, inputs, (labels + 2) % 3, at_least=0.0)
    attempts.append(1)
    assert len(attempts) > int(os.environ.get("FLAKY", 0))
"""


def test_a_rerun_compares_each_check_with_its_own_baseline(gate, run, monkeypatch):
    """A wider fixture does not check again, and the checks after it keep their ordinals."""
    pytest.importorskip("pytest_rerunfailures")
    (gate.path / "test_gate.py").write_text(GATE + SCOPES)
    arguments = ("-p", "no:randomly", "-k", "scopes", "--triguard-baseline=known")
    assert gate.runpytest_inprocess(*arguments, "--triguard-update").ret == 0
    monkeypatch.setenv("FLAKY", "1")
    found = gate.runpytest_inprocess(*arguments, "--reruns=1")
    found.stdout.fnmatch_lines(["*3 checks: 3 passed*", "*1 passed*1 rerun*"])


def test_a_check_of_drawn_inputs_is_not_compared(gate, run, monkeypatch):
    (gate.path / "test_gate.py").write_text(
        GATE + "\n\nfrom hypothesis import given, settings, strategies as st\n\n\n"
        "@settings(max_examples=2, deadline=None)\n"
        "@given(shift=st.integers(1, 2))\n"
        "def test_drawn(shift):\n"
        "    assert_accuracy(classifier, inputs, labels, at_least=0.2, **MORE)\n"
    )
    arguments = ("-k", "drawn", "--triguard-baseline=known")
    found = run(*arguments, "--triguard-update")
    assert found.ret == 0
    found.stdout.no_fnmatch_line("*no baseline written*")
    run(*arguments).assert_outcomes(passed=1)
    monkeypatch.setenv("MORE", "{'max_regression': 0.1}")
    for more in ((), ("--triguard-update",)):
        found = run(*arguments, *more)
        found.assert_outcomes(failed=1)
        found.stdout.fnmatch_lines(["*inputs that hypothesis draws have none*"])


def test_an_allowance_that_no_change_exceeds_is_refused(with_baseline, run, monkeypatch):
    monkeypatch.setenv("MORE", "{'max_regression': 2}")
    found = run("--triguard-baseline=known")
    found.assert_outcomes(failed=1, passed=1)  # entropy is no rate
    found.stdout.fnmatch_lines(["*max_regression of a rate must be below 1, but 2 came*"])


def test_max_regression_needs_a_baseline(gate, run, monkeypatch):
    monkeypatch.setenv("MORE", "{'max_regression': 0.1}")
    found = run("-k", "accuracy")
    found.assert_outcomes(failed=1)
    found.stdout.fnmatch_lines(["*max_regression needs a baseline to compare with*"])
    run("-k", "accuracy", "--triguard-baseline=known", "--triguard-update").assert_outcomes(
        passed=1
    )


def test_a_wrong_max_regression_is_refused(with_baseline, run, monkeypatch):
    monkeypatch.setenv("MORE", "{'max_regression': '2'}")
    found = run("-k", "accuracy", "--triguard-baseline=known")
    found.stdout.fnmatch_lines(["*max_regression must be a number of at least 0 or a percentage*"])


@pytest.mark.parametrize("flag", ["--triguard-update", "--triguard-update-force"])
@pytest.mark.parametrize("where", ["ini", "environment"])
def test_no_gate_updates_itself_for_ever(gate, run, monkeypatch, flag, where):
    if where == "ini":
        (gate.path / "pytest.ini").write_text(f"[pytest]\naddopts = {flag}\n")
    else:
        monkeypatch.setenv("PYTEST_ADDOPTS", flag)
    found = run("--triguard-baseline=known")
    assert found.ret == pytest.ExitCode.USAGE_ERROR
    found.stderr.fnmatch_lines([f"ERROR: {flag} must be typed on the command line*"])
    assert not (gate.path / "known").exists()


def test_a_baseline_of_the_ini_file_can_be_switched_off(gate, run):
    (gate.path / "pytest.ini").write_text("[pytest]\ntriguard_baseline = known\n")
    run().assert_outcomes(failed=2)
    run("--triguard-baseline=none").assert_outcomes(passed=2)


def test_a_loop_needs_a_name_for_each_of_its_checks(gate, run):
    loop = """
def test_loop():
    for share in (0.1, 0.2):
        assert_accuracy(classifier, inputs, labels, at_least=share, {})
"""
    (gate.path / "test_gate.py").write_text(GATE + loop.format(""))
    found = run("-k", "loop", "--triguard-baseline=known", "--triguard-update")
    found.assert_outcomes(failed=1)
    found.stdout.fnmatch_lines(["*the check 'assert_accuracy' was made twice in one test*name=*"])
    (gate.path / "test_gate.py").write_text(GATE + loop.format("name=f'share {share}'"))
    for arguments in (["--triguard-update"], []):
        run("-k", "loop", "--triguard-baseline=known", *arguments).assert_outcomes(passed=1)


def test_a_baseline_that_an_editor_saved_with_a_mark_and_other_line_ends_is_read(
    with_baseline, run
):
    path = with_baseline.path / "known" / "test_gate.py.json"
    text = path.read_bytes().replace(b"\n", b"\r\n")
    path.write_bytes(b"\xef\xbb\xbf" + text)
    run("--triguard-baseline=known").assert_outcomes(passed=2)


def test_a_check_that_only_the_baseline_has_is_named_when_asked_for_more(with_baseline, run):
    (with_baseline.path / "test_gate.py").write_text(
        GATE.replace("def test_entropy", "def entropy")
    )
    line = "triguard: in the baseline, but not made: test_gate.py::test_entropy (*below)"
    found = run("--triguard-baseline=known", "-v")
    found.assert_outcomes(passed=1)
    found.stdout.fnmatch_lines([line])
    run("--triguard-baseline=known").stdout.no_fnmatch_line(line)
