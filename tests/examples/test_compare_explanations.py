"""The example is a repository as a user would have it: it compares, and the control comes last."""

import json

import numpy as np
import pytest

EXAMPLE = "compare_explanations"

pytest.importorskip("mlxtend")


def test_the_control_is_worst_and_the_table_is_shown(example, monkeypatch):
    monkeypatch.delenv("COMPARE_PHOTOS_ROOT", raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    few = "--triguard-samples=40"
    result = example.runpytest_subprocess(few, "--triguard-json=report.json")
    result.assert_outcomes(passed=9, skipped=5)
    result.stdout.fnmatch_lines(
        ["*triguard comparison*", "test_comparison.py::test_explanations_of_digits by attribution"]
    )
    comparisons = json.loads((example.path / "report.json").read_text())["comparisons"]
    assert [each["check"] for each in comparisons] == [
        "assert_faithful, insertion",
        "assert_faithful, deletion",
    ]
    for each in comparisons:
        rows = {row["label"]: row for row in each["rows"]}
        assert len(rows) == 8
        assert each["rows"][-1]["label"] == "random"
        assert rows["random"]["place"] == "worse"
        assert rows["integrated_gradients"]["place"] in ("best", "tie")


def test_photographs_are_those_of_the_named_folder(example, monkeypatch):
    """Read for real; the network for them is not among the packages of the tests."""
    pillow = pytest.importorskip("PIL.Image")

    folder = example.path / "photographs"
    folder.mkdir()
    monkeypatch.setenv("COMPARE_PHOTOS_ROOT", str(folder))
    monkeypatch.syspath_prepend(example.path)
    import photos

    with pytest.raises(FileNotFoundError, match="holds no JPEG or PNG file"):
        photos.files()
    image = np.random.default_rng(0).integers(0, 256, (240, 300, 3), dtype=np.uint8)
    pillow.fromarray(image).save(folder / "one.png")
    (folder / "notes.txt").write_text("no photograph")
    loaded = photos.load(photos.files())
    assert loaded.shape == (1, 3, 224, 224)
    assert 0 <= float(loaded.min()) < float(loaded.max()) <= 1
    middle = image[:, 30:270].mean() / 255
    assert float(loaded.mean()) == pytest.approx(middle, abs=1e-2)
