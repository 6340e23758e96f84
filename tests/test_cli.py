"""The command line: every method with its facts, as wide as the terminal, and as JSON."""

from __future__ import annotations

import importlib
import io
import json
import re
import subprocess
import sys

import pytest

from pytest_triguard import cli, listing
from pytest_triguard.facts import PASSES
from pytest_triguard.reporting import wrapped


@pytest.fixture
def call(monkeypatch):
    """Run the command as in a terminal of some width and return what it writes."""

    def call(*arguments, width=80):
        monkeypatch.setenv("COLUMNS", str(width))
        output = io.StringIO()
        assert cli.main(["methods", *arguments], output) == 0
        return output.getvalue()

    return call


@pytest.fixture(scope="module")
def listed():
    return [each for family in listing.FAMILIES for each in listing.methods(family)]


def test_every_method_of_every_family_is_listed(listed):
    for family in listing.FAMILIES:
        names = importlib.import_module(f"pytest_triguard.{family}").names()
        assert tuple(each.name for each in listed if each.family == family) == names


def test_every_method_has_its_facts(listed):
    for each in listed:
        assert re.match(r"[A-Z1`]", each.summary), each
        assert each.cost, each
        assert PASSES not in each.cost
        assert each.passes is None or each.passes >= 1
        assert each.source or each.family in ("metrics", "verification"), each
        assert bool(each.source) == bool(each.reference), each
        assert each.reference.startswith(each.source)
        assert each.sign or each.family not in ("attributions", "metrics"), each


def test_numbers_of_passes_are_those_of_the_methods(listed):
    costs = {each.name: (each.passes, each.cost) for each in listed}
    assert costs["smoothgrad"] == (50, "50")
    assert costs["pgd"] == (40, "at most 40")
    assert costs["square"] == (5000, "at most 5000 forward")
    assert costs["entropy"] == (None, "none")


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_and_leaves_nothing_out(call, listed, width):
    text = call(width=width)
    assert max(map(len, text.splitlines())) <= width
    assert " \n" not in text
    for each in listed:
        assert re.search(rf"^{re.escape(each.name)} ", text, re.MULTILINE), each.name
    shown = set(text.split())
    for each in listed:
        for words in (each.cost, each.sign, " ".join(each.axioms), each.source):
            assert all({word, f"{word},"} & shown for word in words.split()), each


def test_one_family_is_listed_alone(call):
    assert call("--family", "backdoors") == (
        "backdoors\n"
        "---------\n"
        "name     passes  source            checked against\n"
        "badnets  none    Gu et al. 2017    no\n"
        "blend    none    Chen et al. 2017  no\n"
    )


def test_json_has_every_fact(call, listed):
    found = json.loads(call("--json"))
    assert [each["name"] for each in found] == [each.name for each in listed]
    (saliency,) = (each for each in found if each["name"] == "saliency")
    assert saliency == {
        "family": "attributions",
        "name": "saliency",
        "summary": "The signed gradient, `d f_y / d x`.",
        "passes": 1,
        "cost": "1",
        "sign": "signed",
        "axioms": ["linear"],
        "source": "Simonyan et al. 2014",
        "reference": 'Simonyan et al. 2014, "Deep Inside Convolutional Networks", '
        "arXiv:1312.6034, section 3 (which takes the absolute value; here that is the reader's "
        "choice).",
        "checked": "Captum",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["methods", "--family", "attribution"], "unknown family 'attribution'; did you mean 'at"),
        (["method"], "invalid choice: 'method'"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_a_wrong_argument_is_a_usage_error(capsys, arguments, message):
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments, io.StringIO())
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_it_runs_as_a_module_and_ends_quietly_where_nobody_reads():
    command = [sys.executable, "-m", "pytest_triguard", "methods", "--family=backdoors"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    with process.stderr as errors:
        assert errors.read() == b""
    assert process.wait() == 1


def test_a_word_is_broken_only_where_nothing_else_fits():
    rows = [["one_long_name", "some words"], ["b", ""]]
    assert list(wrapped.table(("name", "text"), rows, 20)) == [
        "name           text",
        "one_long_name  some",
        "               words",
        "b",
    ]
    assert max(map(len, wrapped.table(("name", "text"), rows, 10))) <= 10
