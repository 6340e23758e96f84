"""--triguard-device: its spelling is judged at once, its presence before any test."""

import pytest

from pytest_triguard.engine import devices

MISSING = "cuda" if "cuda" not in " ".join(devices.available()) else "xpu"


@pytest.fixture
def idle(project):
    project.makepyfile(test_idle="def test_idle(): open('ran.txt', 'w').close()")
    return project


@pytest.mark.parametrize("value", [MISSING, f"{MISSING}:0", "tpu", "cpu:1"])
def test_a_missing_device_ends_the_run(idle, run, value):
    result = run(f"--triguard-device={value}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: *--triguard-device={value}*available here: cpu*"])
    assert not (idle.path / "ran.txt").exists()


def test_a_missing_device_of_the_ini_file_ends_the_run(idle, run):
    idle.makefile(".ini", pytest=f"[pytest]\ntriguard_device = {MISSING}\n")
    assert run().ret == pytest.ExitCode.USAGE_ERROR


def test_a_missing_device_is_told_once_for_all_workers(idle, run_apart):
    pytest.importorskip("xdist")
    result = run_apart(f"--triguard-device={MISSING}", "-n", "2")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert len([line for line in result.errlines if line]) == 1
    assert "INTERNALERROR" not in result.stdout.str()
    assert not (idle.path / "ran.txt").exists()


@pytest.mark.parametrize(
    "looking", ["--help", "--markers", "--fixtures", "--fixtures-per-test", "--collect-only"]
)
def test_looking_around_works_with_any_device(idle, run, looking):
    assert run(looking, f"--triguard-device={MISSING}").ret == pytest.ExitCode.OK


@pytest.mark.parametrize(
    ("asked", "worker", "given"),
    [("cuda", "gw3", "cuda:1"), ("cuda:0", "gw3", "cuda:0"), ("cpu", "gw3", "cpu")],
)
def test_a_worker_gets_its_share_of_the_devices(project, monkeypatch, asked, worker, given):
    from pytest_triguard import runtime

    monkeypatch.setattr(devices, "_visible", lambda kind: 2)
    config = project.parseconfigure("-p", "no:randomly", f"--triguard-device={asked}")
    config.workerinput = {"workerid": worker}
    started = runtime.start_run(config)
    assert started.settings.device == asked, "nothing is looked for before the first test"
    assert started.place().device == given
    assert started.place().device == given
    assert started.reproducer.settings.device == given
