"""The table at the end: what it shows at each verbosity, at each width, and for odd numbers."""

import pytest

from pytest_triguard.record import Record
from pytest_triguard.reporting import numbers, terminal

GATE = """
import pytest
from checks import check

def test_accuracy(): check(value=0.965, worst=[{"id": 3, "label": 1, "lead": 0.25}, {"id": 9}])
def test_robust_accuracy(): check(value=0.836, metric="robust accuracy")
def test_drift():
    check(value=0.5996, metric="drift", threshold=0.6, relation="<", counts={}, undefined=2)

@pytest.mark.parametrize("trigger", ["blend", "a-trigger-with-a-name-that-is-rather-long"])
def test_trigger(trigger):
    check(value=0.95, metric="trigger recall", evaluations=20, artifacts=["kept/17.npz"])
    check("twin", value=1.0, metric="attack success rate")
"""


@pytest.fixture
def table(project, run, monkeypatch):
    """Return the lines of the table, from below its title to the closing line."""

    def table(*arguments, width=80, text=GATE):
        monkeypatch.setenv("COLUMNS", str(width))
        project.makepyfile(test_gate=text)
        lines = run("--tb=no", *arguments).outlines
        titles = [place for place, line in enumerate(lines) if terminal.TITLE in line]
        if not titles:
            return []
        last = next(place for place, line in enumerate(lines) if " checks: " in line)
        return lines[titles[0] + 1 : last + 1]

    return table


def record(**fields):
    """Return a record of a passed rate with some fields changed."""
    usual = {
        "nodeid": "tests/test_gate.py::test_gate",
        "name": "assert_accuracy",
        "assertion": "assert_accuracy",
        "metric": "accuracy",
        "value": 0.95,
        "relation": ">=",
        "threshold": 0.9,
        "verdict": "passed",
        "failed": False,
        "n": 500,
        "undefined": 0,
        "counts": {"correct": 475},
        "interval": (0.93, 0.97),
        "confidence": 0.95,
        "claim": "sample",
    }
    return Record(**(usual | fields))


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_it_fits_and_shortens_no_number(table, width):
    lines = table(width=width)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for expected in ("[0.806, 0.856]", ">= 0.9", "-0.064", "0.5996", "<  0.6", "+0.0004"):
        assert expected in text
    for metric in ("robust accuracy", "trigger recall", "attack success rate"):
        assert metric in text


def test_a_wide_terminal_shows_counts(table):
    lines = table(width=120)
    assert " ".join(lines[0].split()) == (
        "check metric value 95% interval threshold margin samples verdict"
    )
    assert [line.split()[-2:] for line in lines if "test_robust" in line] == [["418/500", "failed"]]
    assert [line.split()[-2:] for line in lines if "test_drift" in line] == [["500", "passed"]]


def test_rows_are_aligned(table):
    lines = [line for line in table(width=120) if line.startswith("  test")]
    assert len(lines) == 7
    for text in ("] ", ">= 0.9"):
        assert len({line.rindex(text) for line in lines if text in line}) == 1, text


def test_a_narrow_terminal_puts_long_names_on_lines_of_their_own(table):
    lines = table(width=80)
    place = lines.index("  test_trigger[a-trigger-with-a-name-that-is-rather-long]: twin")
    assert lines[place + 1].split()[:3] == ["attack", "success", "rate"]


def test_short_names_share_their_rows_at_80_columns(table):
    lines = table("-k", "test_accuracy or drift", width=80)
    assert [line.split()[0] for line in lines[1:-1]] == [
        "test_gate.py",
        "test_accuracy",
        "test_drift",
    ]


def test_quiet_shows_failures_only(table):
    lines = table("-q")
    assert [line for line in lines if line.startswith("  test_")] == ["  test_robust_accuracy"]
    assert lines[-1] == "7 checks: 6 passed, 1 failed"


def test_quiet_shows_nothing_if_nothing_failed(table):
    assert table("-q", "-k", "drift or trigger") == []


def test_very_quiet_shows_nothing(table):
    assert table("-qq") == []


def test_verbose_adds_remarks(table):
    lines = table("-v")
    assert lines.count("      worst of 20 evaluations") == 2
    assert "      undefined for 2 samples" in lines
    assert not [line for line in lines if "worst samples" in line]


def test_very_verbose_adds_the_worst_samples(table):
    lines = table("-vv")
    assert "      worst samples by lead: 3 (0.250), 9" in lines
    assert lines.count("      saved: kept/17.npz") == 2


MANY = """
import pytest
from checks import check

@pytest.mark.parametrize("number", range(70))
def test_many(number):
    check(value=0.5 if number == 30 else 0.95)
"""


def test_many_passed_checks_are_counted_unless_verbose(table):
    lines = table(text=MANY)
    assert len([line for line in lines if line.startswith("  test_many")]) == 1
    assert lines[-1] == "70 checks: 69 passed, 1 failed (69 passed not shown, -v shows them)"
    assert len([line for line in table("-v", text=MANY) if line.startswith("  test_many")]) == 70


def test_one_check_is_singular():
    assert terminal.summary([record()]) == "1 check: 1 passed"


def test_colours_follow_the_option(project, run):
    project.makepyfile(test_gate=GATE)
    coloured = run("--color=yes").stdout.str()
    assert "\x1b[32mpassed\x1b[0m" in coloured
    assert "\x1b[31mfailed\x1b[0m" in coloured
    assert "\x1b[" not in run("--color=no").stdout.str()


def test_names_cannot_steer_the_terminal():
    row = terminal.cells(record(name="\x1b[31mred\nline\ttab", metric="a\rb"))
    assert row["check"] == "  test_gate:  [31mred line tab"
    assert row["metric"] == "a b"


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("assert_accuracy", "test_gate"),
        ("assert_accuracy-2", "test_gate #2"),
        ("clean", "test_gate: clean"),
        ("assert_accuracy_of_mine", "test_gate: assert_accuracy_of_mine"),
    ],
)
def test_the_name_of_a_check_is_shown_where_it_says_more(name, label):
    assert terminal.cells(record(name=name))["check"].strip() == label


@pytest.mark.parametrize(
    ("text", "width", "expected"),
    [
        ("short", 5, "short"),
        ("abcdefghij", 9, "abc...hij"),
        ("abcdefghij", 8, "abc...ij"),
        ("abcdefghij", 4, "a..."),
    ],
)
def test_elide(text, width, expected):
    assert terminal.elide(text, width) == expected


@pytest.mark.parametrize(
    ("value", "threshold", "expected"),
    [
        (0.8361, 0.5, "0.836"),
        (1.0, 0.5, "1.000"),
        (0.0, 0.5, "0.000"),
        (0.8996, 0.9, "0.8996"),
        (0.89999, 0.9, "0.89999"),
        (0.9, 0.9, "0.900"),
        (0.9000001, 0.9, "0.9000001"),
        (0.000123, 0.5, "1.23e-04"),
        (-0.0412, 0.5, "-0.041"),
        (1234567.0, 0.5, "1.23e+06"),
        (12.5, 0.5, "12.500"),
    ],
)
def test_a_number_is_never_on_the_wrong_side_of_its_threshold(value, threshold, expected):
    assert numbers.number(value, threshold) == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"value": 0.95}, "+0.050"),
        ({"value": 0.85}, "-0.050"),
        ({"value": 0.85, "relation": "<"}, "+0.050"),
        ({"value": 0.9}, "+0.000"),
        ({"value": 0.90004}, "+0.00004"),
        ({"value": 0.9 - 1e-9}, "-1e-09"),
        ({"value": None}, "-"),
    ],
)
def test_margin(fields, expected):
    assert numbers.margin(record(**fields)) == expected


def test_an_interval_that_decides_is_never_on_the_wrong_side():
    ends = {"interval": (0.89996, 0.95)}
    assert numbers.interval(record(**ends)) == "[0.900, 0.950]"
    assert numbers.interval(record(**ends, claim="population")) == "[0.89996, 0.950]"
    assert numbers.interval(record(interval=None)) == "-"


def test_a_threshold_is_never_on_the_wrong_side_of_what_decides():
    assert numbers.threshold(record(threshold=1 / 3)) == ">= 0.333333"
    assert numbers.threshold(record(value=1 / 3, threshold=1 / 3)) == ">= 0.3333333333333333"
    fields = {"threshold": 0.9000001, "value": 0.95, "interval": (0.90000005, 0.96)}
    assert numbers.threshold(record(**fields)) == ">= 0.9"
    assert numbers.threshold(record(**fields, claim="population")) == ">= 0.9000001"


def test_the_samples_behind_a_statistic_are_no_share():
    fields = {"value": 1.0, "n": 50, "counts": {"defined": 50}}
    assert numbers.samples(record(**fields)) == "50/50"
    assert numbers.samples(record(**fields, parameters={"statistic": "median"})) == "50"


def test_the_confidence_stands_in_the_heading_if_it_is_one():
    assert terminal.heading([record()])["interval"] == "95% interval"
    assert terminal.heading([record(), record(confidence=0.9)])["interval"] == "interval"
    assert terminal.heading([record(interval=None)])["interval"] == "interval"
