"""The text of a check that did not pass, as it stands in a terminal of 100 columns."""

import re
import textwrap

import pytest

from pytest_triguard import TriGuardFailure
from pytest_triguard.record import Record
from pytest_triguard.reporting.message import failure_message, verdict_line

REPRODUCE = "pytest tests/test_gate.py::test_pgd --triguard-device=cpu --triguard-seed=0"


def record(**changes):
    fields = {
        "nodeid": "tests/test_gate.py::test_pgd",
        "name": "assert_robust",
        "assertion": "assert_robust",
        "metric": "robust accuracy",
        "value": 0.36,
        "relation": ">=",
        "threshold": 0.9,
        "verdict": "failed",
        "failed": True,
        "n": 50,
        "undefined": 0,
        "counts": {"not falsified by pgd": 18, "falsified by pgd": 30, "misclassified": 2},
        "interval": (0.2292, 0.5081),
        "confidence": 0.95,
        "claim": "sample",
        "reason": "the value is below the threshold",
        "subject": "no class but the label in the L-inf ball of eps 0.1 (input units, range "
        "[0, 1])",
        "method": "pgd: random start, 40 steps of 0.0625 eps up the cross_entropy, until the first "
        "success, seed 0",
        "worst": [
            {"id": 17, "label": 3, "predicted": 5, "logit lead": 0.4123, "passes": 1},
            {"id": "img/8.png", "label": 0, "predicted": 1, "logit lead": 0.25, "passes": 2},
        ],
        "artifacts": [
            "/ci/artifacts/check-test-gate-py-test-pgd-assert-robust-0fcf9e42f9599c4b.npz"
        ],
        "reproduce": REPRODUCE,
    }
    return Record(**(fields | changes))


def as_shown(text):
    """Return the lines as pytest shows them below a test."""
    first, *others = text.splitlines()
    name = f"{TriGuardFailure.__module__}.{TriGuardFailure.__qualname__}"
    return [f"E   {name}: {first}", *(f"E   {line}" for line in others)]


def golden(text):
    return textwrap.dedent(text).strip("\n")


def test_a_failed_check():
    assert failure_message(record()) == golden(
        """
        robust accuracy 0.360 (18/50) is not >= 0.9
          judged    on these samples: the value is below the threshold; 95 % interval [0.229, 0.508]
          counts    18 not falsified by pgd, 30 falsified by pgd, 2 misclassified
          property  no class but the label in the L-inf ball of eps 0.1 (input units, range [0, 1])
          method    pgd: random start, 40 steps of 0.0625 eps up the cross_entropy, until the first
                    success, seed 0
          worst     sample 17: label 3, predicted 5, logit lead 0.412, passes 1
                    sample img/8.png: label 0, predicted 1, logit lead 0.250, passes 2
          saved     /ci/artifacts/check-test-gate-py-test-pgd-assert-robust-0fcf9e42f9599c4b.npz (read back and confirmed)
          reproduce pytest tests/test_gate.py::test_pgd --triguard-device=cpu --triguard-seed=0
        """  # noqa: E501
    )


def test_an_inconclusive_check():
    undecided = record(
        metric="mean attribution drift",
        value=0.9437,
        relation="<",
        threshold=1.0,
        verdict="inconclusive",
        n=40,
        counts={"defined": 40},
        interval=(0.8012, 1.0432),
        claim="population",
        reason="the 95 % interval straddles the threshold",
        samples_needed=212,
        subject="drift of the integrated_gradients map of one class between the baselines zero and "
        "blur",
        method="integrated_gradients of the logit, 50 passes per map, seed 0",
        worst=[{"id": 3, "value": 1.912345, "class": 2, "class name": "cat"}],
        artifacts=[],
    )
    assert failure_message(undecided) == golden(
        """
        inconclusive: mean attribution drift 0.944 (n = 40) against < 1
          judged    on the population behind them: the 95 % interval straddles the threshold; 95 %
                    interval [0.801, 1.043]; about 212 samples would decide
          counts    40 defined
          property  drift of the integrated_gradients map of one class between the baselines zero and
                    blur
          method    integrated_gradients of the logit, 50 passes per map, seed 0
          worst     sample 3: value 1.912, class 2 (cat)
          reproduce pytest tests/test_gate.py::test_pgd --triguard-device=cpu --triguard-seed=0
        """  # noqa: E501
    )


def test_a_check_without_a_value():
    undefined = record(
        name="every trigger",
        assertion="assert_trigger_recall",
        metric="mean trigger recall",
        value=None,
        verdict="inconclusive",
        threshold=0.5,
        n=0,
        undefined=12,
        counts={"defined": 0, "undefined (the trigger does not fire)": 12},
        interval=None,
        confidence=None,
        reason="none of 12 samples is defined",
        subject="share of the badnets trigger's pixels",
        method="smoothgrad of the logit",
        worst=[],
        artifacts=[],
    )
    assert failure_message(undefined) == golden(
        """
        inconclusive: no mean trigger recall to hold against >= 0.5
          check     every trigger
          judged    on these samples: none of 12 samples is defined
          counts    0 defined, 12 undefined (the trigger does not fire)
          property  share of the badnets trigger's pixels
          method    smoothgrad of the logit
          reproduce pytest tests/test_gate.py::test_pgd --triguard-device=cpu --triguard-seed=0
        """
    )


LONG = record(
    name="a name that a user gave " * 9,
    metric="adversarial completeness-orthogonal attribution drift",
    counts={f"undefined (for reason {place} that needs words)": place for place in range(30)},
    reason="a reason " * 40,
    subject="a subject " * 40,
    method="a-method-that-cannot-be-broken" * 20,
    worst=[
        {"id": f"/data/images/of/a/long/path/{place}/" + "x" * 200, "label": 1, "value": 1e-12}
        | {"predicted": 2, "predicted name": "an animal whose name is long " * 5}
        for place in range(5)
    ],
    artifacts=["/" + "deep/" * 60 + "file.npz"],
    reproduce="pytest " + "-o very=long " * 30 + "end",
    samples_needed=10**9,
)


def test_it_is_short_and_narrow_whatever_is_in_it():
    lines = as_shown(failure_message(LONG))
    assert len(lines) < 20
    for line in lines:
        assert len(line) <= 100 or re.match(r"E     (saved|reproduce) ", line), line


def test_what_is_to_be_copied_stays_on_one_line():
    lines = failure_message(LONG).splitlines()
    assert f"  saved     {LONG.artifacts[0]} (read back and confirmed)" in lines
    assert f"  reproduce {LONG.reproduce}" == lines[-1]


def test_a_path_keeps_the_spaces_of_its_script():
    command = "pytest '\u5168\u89d2\u3000\u7a7a\u767d/a\u00a0b.py::test_it' --triguard-seed=0"
    assert failure_message(record(reproduce=command)).endswith(f"  reproduce {command}")


def test_a_long_id_leaves_room_for_what_is_known():
    shown = [line for line in failure_message(LONG).splitlines() if "sample /data" in line]
    assert len(shown) == 4
    assert all("label 1, value 1.00e-12, predicted 2" in line for line in shown)


def test_it_steers_no_terminal():
    wild = record(
        name="a\x1b[31mred\nname",
        metric="robust\r accuracy",
        worst=[{"id": "img\n\x1b]0;title\x07.png", "label": 3}],
        artifacts=["/a\n\x1b[2Jb.npz"],
        reproduce="pytest 'a\nb'",
    )
    text = failure_message(wild)
    assert all(char.isprintable() or char == "\n" for char in text)
    assert [line.split()[0] for line in text.splitlines()] == [
        *("robust", "check", "judged", "counts", "property", "method", "success,", "worst"),
        *("saved", "reproduce"),
    ]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "robust accuracy 0.360 (18/50) is not >= 0.9"),
        ({"verdict": "passed", "threshold": 0.3}, "robust accuracy 0.360 (18/50) is >= 0.3"),
        ({"value": 0.3604}, "robust accuracy 0.360 (n = 50) is not >= 0.9"),
        (
            {"value": 0.89996, "threshold": 0.9},
            "robust accuracy 0.89996 (n = 50) is not >= 0.9",
        ),
        (
            {"value": 0.1, "relation": "<", "threshold": 1 / 12},
            "robust accuracy 0.100 (n = 50) is not < 0.08333333333333333",
        ),
        ({"threshold": 1}, "robust accuracy 0.360 (18/50) is not >= 1"),
        (
            {"threshold": 0.3, "gate": "inconclusive", "baseline": {"verdict": "missing"}},
            "no baseline for robust accuracy 0.360 (18/50)",
        ),
        (
            {
                "threshold": 0.3,
                "gate": "inconclusive",
                "baseline": {"verdict": "failed", "before": 0.5},
            },
            "robust accuracy 0.360 (18/50), worse than 0.500 in the baseline",
        ),
        (
            {
                "threshold": 0.3,
                "gate": "inconclusive",
                "strict": True,
                "warnings": {"zero gradients": "..."},
            },
            "robust accuracy 0.360 (18/50) is in doubt: zero gradients",
        ),
    ],
)
def test_the_verdict_never_contradicts_its_numbers(changes, expected):
    assert verdict_line(record(**changes)) == expected
