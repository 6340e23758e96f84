"""One session is in force around the setup, the call and the teardown of each test."""

import json

import pytest

from pytest_triguard.settings import current_session, current_settings


def checks_of(project):
    report = json.loads((project.path / "report.json").read_text())
    return [(each["nodeid"].partition("::")[2], each["name"]) for each in report["checks"]]


def test_checks_of_every_phase_are_recorded_once(project, run_apart, mode):
    project.makepyfile(
        test_gate="""
        import pytest
        from checks import check

        @pytest.fixture(scope="session")
        def shared():
            check("shared")

        @pytest.fixture
        def own():
            check("before")
            yield
            check("after")

        def test_one(shared, own): check("call")
        def test_two(shared, own): check("call")
        """
    )
    result = run_apart("--triguard-json=report.json", *mode)
    assert result.ret == 0
    found = checks_of(project)
    shared = [pair for pair in found if pair[1] == "shared"]
    assert [pair for pair in found if pair[1] != "shared"] == [
        (test, name) for test in ("test_one", "test_two") for name in ("before", "call", "after")
    ]
    assert shared[0] == ("test_one", "shared")
    assert len(shared) == (2 if "2" in mode else 1), "once per process"


def test_evaluations_of_one_check_are_merged_across_phases(project, run):
    project.makepyfile(
        test_gate="""
        import pytest
        from checks import check

        @pytest.fixture
        def before():
            check("same", value=0.92)

        def test_gate(before):
            check("same", value=0.95)
        """
    )
    run("--triguard-json=report.json").assert_outcomes(passed=1)
    (found,) = json.loads((project.path / "report.json").read_text())["checks"]
    assert (found["evaluations"], found["value"]) == (2, 0.92)


def test_a_check_that_fails_in_a_fixture_is_an_error_with_its_record(project, run):
    project.makepyfile(
        test_gate="""
        import pytest
        from checks import check

        @pytest.fixture
        def gate():
            check(value=0.5)

        def test_gate(gate): pass
        """
    )
    result = run("--triguard-json=report.json")
    result.assert_outcomes(errors=1)
    assert checks_of(project) == [("test_gate", "assert_accuracy")]


def test_nothing_is_in_force_between_tests(project, run):
    project.makeconftest(
        """
        from pytest_triguard.settings import current_session

        seen = []

        def pytest_runtest_logreport(report):
            seen.append(current_session())

        def pytest_sessionfinish():
            with open("between.txt", "w") as file:
                file.write(repr([each and each.nodeid for each in seen]))
        """
    )
    project.makepyfile(test_gate="from checks import check\ndef test_gate(): check()")
    outside = current_session()
    run("--triguard-seed=5")
    expected = None if outside is None else outside.nodeid
    assert (project.path / "between.txt").read_text() == repr([expected] * 3)
    assert current_session() is outside
    assert current_settings().seed == 0


@pytest.mark.parametrize("phase", ["setup", "call", "teardown"])
def test_it_ends_although_the_phase_fails(project, run, phase):
    project.makepyfile(
        test_gate=f"""
        import pytest

        @pytest.fixture
        def broken():
            assert {phase!r} != "setup"
            yield
            assert {phase!r} != "teardown"

        def test_broken(broken):
            assert {phase!r} != "call"

        def test_next():
            from pytest_triguard.settings import current_session
            assert current_session().nodeid.endswith("test_next")
        """
    )
    before = current_session()
    run("--deselect", "none")
    assert current_session() is before
