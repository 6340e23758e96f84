"""A failed check of explanations leaves the picture of its worst sample, and never more trouble."""

import sys

import numpy as np
import pytest
import torch

from pytest_triguard import Classifier, TriGuardFailure, attributions, metrics, pictures
from pytest_triguard.checks import check
from pytest_triguard.checks.pictured import visible
from pytest_triguard.errors import TriGuardWarning
from pytest_triguard.settings import Session, Settings, use_session
from tests.assertions import TABLE, gate_problem
from tests.networks import bare

CASES = {case.title: case for case in TABLE}
PANELS = {
    "entropy": ["image", "map", "map over image"],
    "drift": ["image", "zero", "blur", "difference"],
    "adversarial drift": ["image", "attacked", "map", "map, attacked", "red left, blue came"],
    "explanation similarity": ["image", "attacked", "map", "map, attacked", "red left, blue came"],
    "insertion": [""],
    "deletion": [""],
    "agreement": ["image", "gradient_x_input", "integrated_gradients", "difference"],
    "sanity check": ["image", "network", "randomized twin", "difference"],
    "trigger recall": ["image", "map", "map over image"],
}

pytest.importorskip("matplotlib")


def failed(case, folder, problem=None, **options):
    """Return the failure of a check whose artifacts go to a folder."""
    settings = Settings(artifacts=folder, samples=options.pop("samples", None))
    with use_session(Session(settings=settings)), pytest.raises(TriGuardFailure) as caught:
        case(*(problem or gate_problem(12)), threshold=case.failing, **options)
    return caught.value


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are made, in place of files."""
    figures = []
    monkeypatch.setattr(check, "save_picture", lambda *key: figures.append(key[-1]()))
    return figures


@pytest.mark.parametrize("title", PANELS)
def test_the_worst_sample_is_saved_and_named(title, tmp_path):
    without = failed(CASES[title], None)
    with_one = failed(CASES[title], tmp_path)
    (path,) = with_one.record.artifacts
    assert path.endswith(".png")
    with open(path, "rb") as file:
        assert file.read().startswith(b"\x89PNG")
    lines = str(with_one).splitlines()
    assert f"  saved     {path} (picture of the worst sample)" in lines
    assert len(lines) < 20
    assert with_one.record.passes == without.record.passes
    assert with_one.record.worst == without.record.worst


@pytest.mark.parametrize("title", PANELS)
def test_every_question_has_its_picture(title, drawn, tmp_path):
    worst = failed(CASES[title], tmp_path).record.worst[0]
    (figure,) = drawn
    assert [axes.get_title() for axes in figure.axes] == PANELS[title]
    assert figure.get_suptitle().startswith(f"sample {worst['id']}: value ")


def test_what_is_drawn_is_what_was_measured(drawn, tmp_path):
    subject, inputs, labels = gate_problem(40)
    ids = [f"photo ${place}$" for place in range(40)]
    worst = failed(
        CASES["entropy"], tmp_path, (subject, inputs, labels), ids=ids, samples=35
    ).record.worst[0]
    place = ids.index(worst["id"])
    maps = attributions.get("integrated_gradients", points=4)(subject, inputs, labels, ids=ids)
    image, heat, _ = drawn[0].axes
    assert np.allclose(image.get_images()[0].get_array(), inputs[place, 0])
    assert np.allclose(heat.get_images()[0].get_array(), maps[place].sum(0), atol=1e-12)
    drawn[0].canvas.draw()


def test_an_attacked_sample_comes_out_alone_as_it_did_among_others(monkeypatch, tmp_path):
    given = []
    monkeypatch.setattr(pictures, "displacement", lambda *parts, **_: given.extend(parts))
    monkeypatch.setattr(check, "save_picture", lambda *key: key[-1]())
    worst = failed(CASES["adversarial drift"], tmp_path).record.worst[0]
    image, _, clean, moved = given
    assert torch.equal(image, gate_problem(12)[1][worst["id"]])
    drift = metrics.get("drift")(clean.unsqueeze(0), moved.unsqueeze(0))
    assert float(drift) == pytest.approx(worst["value"], abs=1e-9)


def test_inputs_of_another_range_are_shown_in_theirs():
    subject, inputs, _ = gate_problem(1)
    with Classifier(subject.module, bounds=(-1.0, 3.0)).prepared() as model:
        assert torch.allclose(visible(model, 4 * inputs[0] - 1), inputs[0])


def test_two_checks_of_one_measurement_cost_the_same(tmp_path):
    case = CASES["insertion"]
    case = type(case)(**(vars(case) | {"options": case.options | {"deletion_at_most": 0.0}}))
    for folder in (tmp_path, None):
        session = Session(settings=Settings(artifacts=folder))
        with use_session(session), pytest.raises(TriGuardFailure):
            case(*gate_problem(4), threshold=1.0)
        first, second = session.records.values()
        assert first.passes == second.passes
        assert len({*first.artifacts, *second.artifacts}) == (0 if folder is None else 2)


def test_without_matplotlib_there_is_no_picture_and_no_word_of_it(tmp_path, monkeypatch):
    for name in [each for each in sys.modules if each.startswith("matplotlib")]:
        monkeypatch.setitem(sys.modules, name, None)
    assert failed(CASES["entropy"], tmp_path).record.artifacts == []
    assert list(tmp_path.iterdir()) == []


def test_a_check_that_passes_does_not_ask_for_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "available", lambda: pytest.fail("asked"))
    with use_session(Session(settings=Settings(artifacts=tmp_path))):
        CASES["entropy"](*gate_problem(4))


@pytest.mark.parametrize("fails", [ValueError("no picture"), OSError("disk full")], ids=repr)
def test_a_picture_that_fails_leaves_the_verdict_alone(tmp_path, monkeypatch, fails):
    """Here warnings are errors, and still the failed check is what is raised."""
    (before,) = failed(CASES["entropy"], tmp_path).record.artifacts

    def fail(*_, **__):
        raise fails

    monkeypatch.setattr(pictures, "heatmap_overlay", fail)
    assert failed(CASES["entropy"], tmp_path).record.artifacts == []
    assert list(tmp_path.iterdir()) == [], f"{before} is of another run"


def test_a_picture_that_fails_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(TriGuardWarning, match=r"the picture .*\.png could not be made: .*file"):
        assert failed(CASES["entropy"], tmp_path / "file").record.artifacts == []


def test_a_sample_without_a_picture_leaves_none(tmp_path):
    """All are undefined: there is no worst one."""
    subject, inputs, _ = gate_problem(3)
    with torch.no_grad():
        for parameter in subject.module.parameters():
            parameter.zero_()
    problem = subject, inputs, bare(subject)(inputs).argmax(1)
    assert failed(CASES["entropy"], tmp_path, problem).record.artifacts == []


def test_the_maps_of_several_baselines_stand_side_by_side(drawn, tmp_path):
    failed(CASES["drift"], tmp_path, between=("zero", "blur", "midpoint"))
    (figure,) = drawn
    assert [axes.get_title() for axes in figure.axes] == ["image", "zero", "blur", "midpoint"]
