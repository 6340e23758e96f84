"""Names that users bring: nothing in them breaks a report or steers a terminal."""

import pytest

ODD = "<b>&\"']]>\x00\x07\x1b[31m\r\nred\u2028\u202e\ud800☃ é"
CLEAN = ODD.translate({ord(char): " " for char in ODD if not char.isprintable()})
GATE = """
import pytest
from checks import check
from pytest_triguard.errors import TriGuardFailure
from pytest_triguard.record import Record
from pytest_triguard.reporting.message import failure_message
from pytest_triguard.settings import current_session

ODD = {odd!r}
IDS = ["a b[c]", "x" * 300, "é ☃", "<b>&\\"']]>", "tab\\tnew\\nline\\x1b[31m", "::", "a/b\\\\c"]

@pytest.mark.parametrize("case", range(len(IDS)), ids=IDS)
def test_id(case):
    check()

def test_names():
    worst = [{{"id": ODD, "label": 1, "label name": ODD, "lead": 0.25}}]
    texts = dict(metric=ODD, reason=ODD, subject=ODD, method=ODD, device=ODD, artifacts=[ODD])
    try:
        check(ODD, value=0.5, worst=worst, counts={{ODD: 3}}, **texts)
    except TriGuardFailure as failure:
        raise TriGuardFailure(failure_message(failure.record), failure.record) from None
"""


@pytest.fixture(scope="module")
def finished(finish, mode):
    return finish(GATE.format(odd=ODD), *mode, "-vv")


def test_nothing_breaks(finished):
    assert finished.code == 1
    assert "INTERNALERROR" not in finished.output
    assert "8 checks: 7 passed, 1 failed" in finished.output


def test_the_json_report_has_every_character(finished):
    *_, check = finished.report["checks"]
    assert check["name"] == check["metric"] == check["worst"][0]["label name"] == ODD
    assert check["counts"] == {ODD: 3}
    names = [each["nodeid"].partition("[")[2] for each in finished.report["checks"][:-1]]
    assert names[0] == "a b[c]]"
    assert names[1] == "x" * 300 + "]"
    assert len(set(names)) == 7


def test_the_junit_file_has_one_property_of_each_name(finished):
    properties = finished.properties("test_names")
    assert properties[f"triguard.{CLEAN}.metric"] == CLEAN
    assert properties[f"triguard.{CLEAN}.artifact"] == CLEAN
    (failure,) = finished.junit.iter("failure")
    assert failure.get("message").startswith("<b>&\"']]>")


def test_the_terminal_is_not_steered(finished):
    assert "\x1b" not in finished.output
    assert "\x07" not in finished.output
    table = finished.output.partition("triguard threshold report")[2].partition("8 checks:")[0]
    assert CLEAN.strip() in " ".join(table.split("\n"))
    assert max(len(line) for line in table.splitlines()) <= 120
