"""Checks in the threads of a test belong to the test; none is lost, and none fails unheard."""

import contextvars
import json
import threading

import pytest

from pytest_triguard.errors import TriGuardError
from pytest_triguard.record import Record
from pytest_triguard.settings import Session, Settings, current_session, use_session


def checks_of(project):
    report = json.loads((project.path / "report.json").read_text(encoding="utf-8"))
    return [
        (each["nodeid"].partition("::")[2], each["name"], each["verdict"])
        for each in report["checks"]
    ]


def in_thread(function):
    """Return what a function returns, or raises, in a thread of its own."""
    results = []

    def run():
        try:
            results.append((function(), None))
        except TriGuardError as error:
            results.append((None, error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    ((value, error),) = results
    if error is not None:
        raise error
    return value


def test_they_are_recorded(project, run_apart, mode):
    project.makepyfile(
        test_gate="""
        import threading
        from concurrent.futures import ThreadPoolExecutor
        import pytest
        from checks import check
        from pytest_triguard.settings import current_settings

        @pytest.mark.triguard(samples=7)
        def test_thread():
            def run():
                assert current_settings().samples == 7
                check("thread")
            thread = threading.Thread(target=run)
            thread.start()
            thread.join()

        @pytest.fixture(scope="module")
        def pool():
            with ThreadPoolExecutor(4) as pool:
                yield pool

        @pytest.mark.triguard
        @pytest.mark.parametrize("round", [1, 2])
        def test_pool(pool, round):
            names = [f"{round}-{number}" for number in range(20)]
            for name, done in [(name, pool.submit(check, name)) for name in names]:
                done.result()
        """
    )
    result = run_apart("--triguard-json=report.json", "-W", "error", *mode)
    assert result.ret == 0, result.stdout.str()
    found = checks_of(project)
    assert found[0] == ("test_thread", "thread", "passed")
    assert {name for test, name, _ in found if test == "test_pool[2]"} == {
        f"2-{number}" for number in range(20)
    }
    assert len(found) == 41


GATE = """
import threading
from concurrent.futures import ThreadPoolExecutor
import pytest
from checks import check

@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
{decorator}
def test_gate({fixture}):
    {body}

@pytest.fixture
def gate():
    with ThreadPoolExecutor() as pool:
        pool.submit(check, value=0.5)
"""
THREAD = "thread = threading.Thread(target=check, kwargs={'value': 0.5}); thread.start(); " + (
    "thread.join()"
)
POOL = "ThreadPoolExecutor().submit(check, value=0.5)"


@pytest.mark.parametrize(
    ("body", "decorator", "fixture", "expected"),
    [
        (THREAD, "", "", {"failed": 1}),
        (f"{POOL}.exception()", "", "", {"failed": 1}),
        (f"{POOL}.result()", "", "", {"failed": 1}),
        ("pass", "", "gate", {"errors": 1}),
        (f"{POOL}.result()", "@pytest.mark.xfail", "", {"xfailed": 1}),
        (f"{POOL}.exception()", "@pytest.mark.xfail", "", {"xpassed": 1}),
    ],
)
def test_a_failure_fails_the_test(project, run, body, decorator, fixture, expected):
    project.makepyfile(test_gate=GATE.format(body=body, decorator=decorator, fixture=fixture))
    result = run("--triguard-json=report.json", "--junitxml=junit.xml")
    result.assert_outcomes(**expected)
    assert checks_of(project) == [("test_gate", "assert_accuracy", "failed")]
    assert ("<failure" in (project.path / "junit.xml").read_text()) == ("failed" in expected)


def test_a_failure_that_nobody_hears_is_told_in_full(project, run):
    project.makepyfile(test_gate=GATE.format(body=THREAD, decorator="", fixture=""))
    run().stdout.fnmatch_lines(
        [
            "accuracy 0.500 (250/500) is not >= 0.9",
            "  reproduce *pytest *",
            "It failed in a thread, and test_gate.py::test_gate passed nevertheless: *",
            "FAILED test_gate.py::test_gate*",
        ]
    )


def test_a_check_that_outlives_its_test_is_told(project, run):
    project.makepyfile(
        test_gate="""
        import contextvars, threading
        from checks import check

        go = threading.Event()

        def late():
            go.wait()
            check()

        def test_one():
            context = contextvars.copy_context()
            test_one.thread = threading.Thread(target=context.run, args=(late,))
            test_one.thread.start()

        def test_two():
            go.set()
            test_one.thread.join()
        """
    )
    result = run("--triguard-json=report.json")
    result.stdout.fnmatch_lines(["*the check assert_accuracy ended after its test *::test_one*"])
    assert checks_of(project) == []


def test_a_check_that_ends_during_another_test_does_not_count_there(project, run):
    project.makepyfile(
        test_gate="""
        import threading
        import pytest, torch
        from pytest_triguard import Classifier, assert_accuracy

        begun, go = threading.Event(), threading.Event()

        class Slow(torch.nn.Flatten):
            def forward(self, inputs):
                begun.set()
                go.wait()
                return super().forward(inputs)

        def late():
            labels = torch.zeros(2, dtype=torch.int64)
            assert_accuracy(Classifier(Slow()), torch.eye(2)[:, None, None], labels, at_least=0.1)

        def test_one():
            test_one.thread = threading.Thread(target=late)
            test_one.thread.start()
            begun.wait()

        @pytest.mark.filterwarnings("default::pytest.PytestUnhandledThreadExceptionWarning")
        @pytest.mark.triguard
        def test_two():
            go.set()
            test_one.thread.join()
        """
    )
    result = run("--triguard-json=report.json")
    result.assert_outcomes(passed=1, failed=1, warnings=1)
    result.stdout.fnmatch_lines(
        [
            "*test_two is marked triguard but passed without a check*",
            "*the check assert_accuracy ended after its test *::test_one*",
        ]
    )
    assert checks_of(project) == []


def test_tests_that_share_an_event_loop_have_a_session_each(project, run):
    """A runner of asynchronous tests may run all of them in one task, as that of anyio does."""
    project.makepyfile(
        test_gate="""
        import asyncio
        import pytest
        from checks import check

        async def serve(tests):
            while test := await tests.get():
                run, done = test
                try:
                    done.set_result(run())
                except Exception as error:
                    done.set_exception(error)

        @pytest.fixture(scope="module")
        def shared():
            with asyncio.Runner() as runner:
                loop, tests = runner.get_loop(), asyncio.Queue()
                task = loop.create_task(serve(tests))

                def run(test):
                    tests.put_nowait((test, done := loop.create_future()))
                    loop.run_until_complete(done)

                yield run
                tests.put_nowait(None)
                loop.run_until_complete(task)

        def test_one(shared):
            shared(check)

        @pytest.mark.triguard(confidence=0.9)
        def test_two(shared):
            shared(check)
        """
    )
    run("--triguard-json=report.json").assert_outcomes(passed=2)
    assert checks_of(project) == [
        ("test_one", "assert_accuracy", "passed"),
        ("test_two", "assert_accuracy", "passed"),
    ]


def test_a_thread_has_the_session_of_the_test():
    with use_session(Session(settings=Settings(seed=3))) as session:
        assert in_thread(current_session) is session
        with use_session(Session()) as inner:
            assert in_thread(current_session) is inner
        assert in_thread(current_session) is session


def test_a_thread_with_a_context_keeps_it():
    with use_session(Session()) as session:
        context = contextvars.copy_context()
        with use_session(Session()):
            assert in_thread(lambda: context.run(current_session)) is session


def test_a_thread_cannot_tell_which_of_two_tests_it_belongs_to():
    entered, leave = threading.Event(), threading.Event()

    def other():
        with use_session(Session()):
            entered.set()
            leave.wait()

    thread = threading.Thread(target=other)
    thread.start()
    entered.wait()
    try:
        with use_session(Session()) as session:
            assert current_session() is session
            with pytest.raises(TriGuardError, match="several tests run at once"):
                in_thread(current_session)
    finally:
        leave.set()
        thread.join()


def test_evaluations_of_one_check_are_all_counted():
    """Many threads add to one record; none overwrites what another has added meanwhile."""
    record = Record(
        nodeid="",
        name="check",
        assertion="assert_accuracy",
        metric="accuracy",
        value=1.0,
        relation=">=",
        threshold=0.5,
        verdict="passed",
        failed=False,
        n=1,
        undefined=0,
        counts={},
        interval=None,
        confidence=None,
        claim="sample",
    )
    session = Session()
    threads = [
        threading.Thread(target=lambda: [session.add(record) for _ in range(50)]) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert session.records["check"].evaluations == 400
