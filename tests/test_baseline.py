"""Baseline files: what is written comes back, and what somebody broke is refused by name."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_triguard import baseline
from pytest_triguard.baseline import Baselines, Entry, check_folder, path_of, read, split, write
from pytest_triguard.errors import ConfigError
from pytest_triguard.record import Record, Verdict

VERSIONS = {"torch": "2.14.1", "pytest-triguard": "0.1.0", "numpy": "2.0"}


def record(nodeid="tests/test_gate.py::test_it", name="assert_accuracy", **more):
    fields = {
        "nodeid": nodeid,
        "name": name,
        "assertion": "assert_accuracy",
        "metric": "accuracy",
        "value": 2 / 3,
        "relation": ">=",
        "threshold": 0.5,
        "verdict": Verdict.PASSED,
        "failed": False,
        "n": 3,
        "undefined": 0,
        "counts": {"correct": 2},
        "interval": (0.1, 0.99),
        "confidence": 0.95,
        "claim": "sample",
        "parameters": {"eps": 0.1, "between": ["zero", "blur"]},
        "classifier": "c" * 32,
        "data": "d" * 32,
        "chunk": 64,
        "per_sample": {"outcomes": "YYN-"},
    }
    return Record(**fields | more)


@pytest.fixture
def written(tmp_path):
    """The file of a baseline with two checks."""
    values = {"values": [0.5, None, 0.25, 1.0], "ids": [3, "a", 7, 9]}
    other = record(name="drift", value=0.583, per_sample=values)
    (path,) = write(tmp_path, [record(), other], VERSIONS)
    return path


def test_a_baseline_has_one_line_per_check_and_one_file_per_module(written, tmp_path):
    assert written == tmp_path / "tests" / "test_gate.py.json"
    lines = written.read_text().splitlines()
    assert sum('"check"' in line for line in lines) == 2
    assert json.loads(written.read_text())["module"] == "tests/test_gate.py"
    assert not [each for each in tmp_path.rglob("*") if each.is_file() and each != written]


def test_what_is_written_comes_back(written, tmp_path):
    found = Baselines(tmp_path).find("tests/test_gate.py::test_it", "assert_accuracy")
    assert found == Entry(
        test="test_it",
        check="assert_accuracy",
        assertion="assert_accuracy",
        metric="accuracy",
        relation=">=",
        value=2 / 3,
        n=3,
        parameters={"eps": 0.1, "between": ["zero", "blur"]},
        data="d" * 32,
        classifier="c" * 32,
        device="cpu",
        chunk=64,
        versions={"torch": "2.14.1", "pytest-triguard": "0.1.0"},
        outcomes="YYN-",
    )
    drift = Baselines(tmp_path).find("tests/test_gate.py::test_it", "drift")
    assert (drift.values, drift.ids, drift.samples) == ([0.5, None, 0.25, 1.0], [3, "a", 7, 9], 4)


def test_what_was_not_written_is_not_found(written, tmp_path):
    baselines = Baselines(tmp_path)
    assert baselines.find("tests/test_gate.py::test_it", "other") is None
    assert baselines.find("tests/test_gate.py::test_other", "drift") is None
    assert baselines.find("tests/test_other.py::test_it", "drift") is None
    assert Baselines(tmp_path / "nowhere").find("tests/test_gate.py::test_it", "drift") is None


def test_writing_replaces_what_ran_and_deletes_nothing(written, tmp_path):
    write(tmp_path, [record(value=1 / 3, per_sample={"outcomes": "YNN-"})], VERSIONS)
    found = read(written)
    assert found["test_it", "assert_accuracy"].outcomes == "YNN-"
    assert found["test_it", "drift"].values == [0.5, None, 0.25, 1.0]


def test_the_order_of_writing_does_not_show(written, tmp_path):
    before = written.read_text()
    records = [record(nodeid=f"tests/test_gate.py::test_{each}") for each in "abc"]
    write(tmp_path, records, VERSIONS)
    forth = written.read_text()
    write(tmp_path, [record(), *reversed(records)], VERSIONS)
    assert written.read_text() == forth != before


@pytest.mark.parametrize(
    ("nodeid", "file"),
    [
        ("test_a.py::test[x::y]", "test_a.py.json"),
        ("a/b/test_a.py::T::test", "a/b/test_a.py.json"),
        ("../other/test_a.py::test", "_up/other/test_a.py.json"),
        ("/abs/test_a.py::test", "abs/test_a.py.json"),
        ("README.md::README.md", "README.md.json"),
    ],
)
def test_every_module_has_its_own_file_inside_the_folder(tmp_path, nodeid, file):
    assert path_of(tmp_path, split(nodeid)[0]) == tmp_path / file


def test_a_test_without_a_module_has_no_file(tmp_path):
    """Pytest names the module of a test outside the root folder with an empty string."""
    for ask in (
        lambda: Baselines(tmp_path).find("::test_it", "accuracy"),
        lambda: write(tmp_path, [record(nodeid="::test_it")], VERSIONS),
    ):
        with pytest.raises(ConfigError, match="a test outside the root folder has no module"):
            ask()


def test_what_could_not_be_read_is_not_written(written, tmp_path):
    before = written.read_bytes()
    twice = {"outcomes": "YYN-", "ids": ["1", "2", "3", "3"]}
    with pytest.raises(ConfigError, match="3 different ids for 4 samples"):
        write(tmp_path, [record(per_sample=twice)], VERSIONS)
    assert written.read_bytes() == before


@settings(max_examples=20, deadline=None)
@given(test=st.text(min_size=1, max_size=300), name=st.text(min_size=1, max_size=50))
def test_any_name_survives_the_way_to_the_file(tmp_path_factory, test, name):
    folder = tmp_path_factory.mktemp("baseline")
    nodeid = f"test_gate.py::{test}"
    write(folder, [record(nodeid=nodeid, name=name)], VERSIONS)
    assert Baselines(folder).find(nodeid, name).outcomes == "YYN-"
    assert len((folder / "test_gate.py.json").read_text().splitlines()) == 7


def test_a_failed_write_leaves_the_file_as_it_was(written, tmp_path, monkeypatch):
    before = written.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path, [record(value=1 / 3, per_sample={"outcomes": "YNN-"})], VERSIONS)
    assert written.read_bytes() == before
    assert [each.name for each in written.parent.iterdir()] == [written.name]


def test_two_writers_lose_nothing(tmp_path):
    """Many processes, each with a check of its own, write to one file at once."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    names = [f"check-{number}" for number in range(8)]
    with ProcessPoolExecutor(4, mp_context=get_context("spawn")) as pool:
        list(pool.map(_write_one, [tmp_path] * len(names), names))
    assert sorted(check for _, check in read(tmp_path / "tests/test_gate.py.json")) == names


def _write_one(folder, name):
    for _ in range(5):
        write(folder, [record(name=name)], VERSIONS)


def edited(path, change):
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def of_check(change):
    return lambda document: change(document["checks"][0])


BROKEN = {
    "schema": (lambda each: each.update(schema_version=0), "its schema_version is 0, but"),
    "no schema": (lambda each: each.pop("schema_version"), "must hold an object with schema_ver"),
    "no checks": (lambda each: each.update(checks={}), "must hold an object with schema_version"),
    "a check twice": (
        lambda each: each["checks"].append(each["checks"][0]),
        "the check 'assert_accuracy' of 'test_it' occurs twice",
    ),
    "no object": (lambda each: each["checks"].append(3), "check 3 is no object"),
    "an unknown key": (of_check(lambda each: each.update(valeu=1)), "has the unknown key 'valeu'"),
    "a missing key": (of_check(lambda each: each.pop("data")), "has no valid 'data': None"),
    "a wrong type": (of_check(lambda each: each.update(n="3")), "has no valid 'n': '3'"),
    "a truth value": (of_check(lambda each: each.update(value=True)), "has no valid 'value': True"),
    "a relation": (of_check(lambda each: each.update(relation=">")), "no valid relation and value"),
    "an outcome": (of_check(lambda each: each.update(outcomes="YYX-")), "has the outcome 'X'"),
    "a count": (of_check(lambda each: each.update(outcomes="YYNN")), "has n 3, but 4 samples that"),
    "a value": (of_check(lambda each: each.update(value=0.9)), "has the value 0.9, but 2 of 3"),
    "a huge value": (
        of_check(lambda each: each.update(value=1e308)),
        "has the value 1e+308, but 2 of 3",
    ),
    "a value that no float can hold": (
        of_check(lambda each: each.update(value=10**400)),
        "has no valid relation and value",
    ),
    "values that no float can hold": (
        of_check(lambda each: (each.pop("outcomes"), each.update(values=[10**400]))),
        "has values that are no finite numbers",
    ),
    "both": (of_check(lambda each: each.update(values=[1.0])), "either outcomes or values"),
    "text for numbers": (
        of_check(lambda each: (each.pop("outcomes"), each.update(values=["1", 2, 3]))),
        "has values that are no finite numbers",
    ),
    "ids": (of_check(lambda each: each.update(ids=[1, 2, 3])), "3 different ids for 4 samples"),
    "ids twice": (of_check(lambda each: each.update(ids=[1, 2, 3, 3])), "3 different ids for 4 sa"),
    "ids of a kind": (
        of_check(lambda each: each.update(ids=[1, 2, 3, 0.5])),
        "has ids that are",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_was_edited_wrongly_is_refused_by_name(written, tmp_path, name):
    change, sentence = BROKEN[name]
    edited(written, change)
    with pytest.raises(ConfigError) as caught:
        check_folder(tmp_path)
    assert str(caught.value).startswith(f"{written} is no baseline: ")
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("<<<<<<< HEAD\n{}", "is no baseline: Expecting value: line 1 column 1"),
        ('{"schema_version": 1, "module": "m", "module": "m"}', "the key 'module' occurs twice"),
        ('{"schema_version": NaN}', "NaN is no number of JSON"),
        ("[]", "must hold an object with schema_version"),
        ("", "is no baseline: Expecting value"),
        (b"\xff\xfe", "cannot be read as a baseline"),
        ("[" * 100_000, "is no baseline: it is nested too deeply"),
    ],
)
def test_what_is_no_json_or_foreign_is_refused(tmp_path, text, sentence):
    path = tmp_path / "test_gate.py.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as caught:
        check_folder(tmp_path)
    assert sentence in str(caught.value)


def test_a_file_of_another_module_is_refused(written, tmp_path):
    written.rename(tmp_path / "test_other.py.json")
    with pytest.raises(ConfigError, match=r"it is of the module 'tests/test_gate.py', not of"):
        Baselines(tmp_path).find("test_other.py::test_it", "drift")


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(ConfigError, match="is no folder"):
        check_folder(path)
    check_folder(tmp_path / "nowhere")


def test_a_record_without_samples_makes_no_entry():
    with pytest.raises(ValueError, match="has nothing to compare with"):
        Entry.of(replace(record(), per_sample=None), VERSIONS)


def test_values_are_rounded_to_what_a_diff_can_show():
    assert baseline.rounded(1 / 3) == 0.333333
    assert baseline.rounded(123456.789) == 123457.0
    assert baseline.rounded(1.23456789e-12) == 1.23457e-12
    assert baseline.rounded(float("nan")) is None
