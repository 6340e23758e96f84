"""The JUnit file keeps to the rules of its family, with every kind of outcome in it."""

from pathlib import Path

import pytest

etree = pytest.importorskip("lxml.etree")

SCHEMA = etree.XMLSchema(etree.parse(Path(__file__).parent / "xunit2.xsd"))
GATE = """
import pytest
from checks import check

@pytest.fixture
def broken_before(): check("before", value=0.5)

@pytest.fixture
def broken_after():
    yield
    check("after", value=0.5)

def test_passes(): check()
def test_fails():
    print("printed")
    check("<b>&\\x1b\\n", value=0.5, metric="a & b\\x00")
def test_error(broken_before): pass
def test_error_after(broken_after): check()
@pytest.mark.xfail
def test_expected(): check(value=0.5)
@pytest.mark.skip
def test_skipped(): pass
@pytest.mark.triguard
def test_checks_nothing(): pass
"""


@pytest.fixture
def written(project, run, mode):
    """Return the JUnit file of a run."""

    def written(*arguments):
        project.makepyfile(test_gate=GATE)
        result = run(*mode, "--junitxml=junit.xml", "--triguard-min-checks=99", *arguments)
        result.assert_outcomes(passed=2, failed=3, errors=2, xfailed=1, skipped=1)
        return etree.parse(project.path / "junit.xml")

    return written


def test_without_properties_it_is_strictly_valid(written):
    document = written("--triguard-junit=none", "-o", "junit_logging=all")
    SCHEMA.assertValid(document)
    names = {each.get("name") for each in document.iterfind("testsuite/properties/property")}
    assert {"triguard.device", "triguard.seed"} <= names, "those of the suite are allowed"
    assert len(document.findall(".//failure")) == 3


def test_properties_of_tests_are_all_that_is_beyond_it(written):
    document = written()
    assert not SCHEMA.validate(document)
    blocks = document.findall(".//testcase/properties")
    assert len(blocks) == 5
    for block in blocks:
        assert all(set(each.attrib) == {"name", "value"} for each in block)
        block.getparent().remove(block)
    SCHEMA.assertValid(document)


@pytest.mark.parametrize("value", ["all", "", "None"])
def test_another_choice_ends_the_run(project, run, value):
    result = run(f"--triguard-junit={value}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*argument --triguard-junit: '{value}' is not a choice: use *"])
