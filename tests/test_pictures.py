"""Pictures: what is drawn where, and no state left behind."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy import stats

from pytest_triguard import metrics, pictures
from pytest_triguard.errors import InputError, InputTypeError
from tests.networks import images, problem


def drawn(axes):
    """Return the values of the topmost picture of a panel, and the ends of its colours."""
    last = axes.get_images()[-1]
    return np.asarray(last.get_array()), last.get_clim()


@pytest.fixture
def image():
    return images((3, 5, 7), 1)[0]


def test_a_heatmap_is_the_sum_over_channels(image, tmp_path):
    values = images((3, 5, 7), 1, seed=4)[0] - 0.5
    figure = pictures.heatmap_overlay(image, values, title="sample 3")
    shown, heat, over = figure.axes
    assert np.allclose(drawn(shown)[0], image.permute(1, 2, 0))
    expected = values.sum(0).numpy()
    peak = np.abs(expected).max()
    for axes in (heat, over):
        found, ends = drawn(axes)
        assert np.allclose(found, expected)
        assert ends == pytest.approx((-peak, peak))  # zero is in the middle of the colours
    figure.savefig(tmp_path / "heat.png")
    assert (tmp_path / "heat.png").read_bytes().startswith(b"\x89PNG")


def test_a_map_without_negative_values_begins_at_zero(image):
    figure = pictures.heatmap_overlay(image[:1], image[:1])
    assert drawn(figure.axes[1])[1][0] == 0.0


def test_panels_of_a_drift_show_shares_on_one_scale(image):
    first, second = images((3, 5, 7), 2, seed=4) - 0.5
    figure = pictures.drift_panels(image, {"zero": first, "blur": 100 * second})
    _, zero, blur, difference = figure.axes
    for axes, values in ((zero, first), (blur, second)):
        assert np.allclose(drawn(axes)[0], (values / values.abs().sum()).sum(0))
    assert np.allclose(drawn(difference)[0], drawn(zero)[0] - drawn(blur)[0])
    assert len({drawn(axes)[1][1] for axes in (zero, blur, difference)}) == 1
    several = pictures.drift_panels(image, {"a": first, "b": second, "c": first})
    assert [axes.get_title() for axes in several.axes] == ["image", "a", "b", "c"]


def test_a_displacement_is_red_where_mass_left_and_blue_where_it_came(image):
    before, after = torch.zeros(2, 1, 5, 7)
    before[0, 1, 1], after[0, 3, 4] = 2.0, -5.0
    figure = pictures.displacement(image, image, before, after)
    values, (low, high) = drawn(figure.axes[-1])
    assert values[1, 1] == 1.0
    assert values[3, 4] == -1.0
    assert (low, high) == (-1.0, 1.0)


def test_curves_show_the_mean_of_the_defined_samples():
    subject, inputs, targets = problem("conv", 5)
    maps = inputs.clone()
    maps[2] = 0
    curve = metrics.get("deletion", steps=6).curve(maps, subject, inputs, targets)
    figure = pictures.removal_curves({"gradient": curve})
    (line,) = figure.axes[0].get_lines()
    defined = curve.values[[0, 1, 3, 4]].mean(0)
    assert np.allclose(line.get_ydata(), defined)
    (band,) = figure.axes[0].collections
    error = stats.sem(curve.values[[0, 1, 3, 4]].numpy())
    ends = band.get_paths()[0].vertices[:, 1]
    assert ends.max() == pytest.approx((defined.numpy() + error).max())
    assert ends.min() == pytest.approx((defined.numpy() - error).min())
    area = float(torch.trapezoid(defined, curve.shares))
    assert line.get_label() == f"gradient ({area:.3f})"


def test_wrong_pictures_are_refused(image):
    with pytest.raises(InputTypeError, match="image must be a floating tensor"):
        pictures.heatmap_overlay(3, image)
    with pytest.raises(InputError, match=r"attribution must have height and width \(5, 7\)"):
        pictures.heatmap_overlay(image, image[:, :4])
    with pytest.raises(InputError, match="maps must hold at least two maps, but 1 came"):
        pictures.drift_panels(image, {"zero": image})
    with pytest.raises(InputError, match="clean_map must hold attribution, but it is zero"):
        pictures.displacement(image, image, 0 * image, image)
    with pytest.raises(InputError, match="blur must hold attribution, but it is not finite"):
        pictures.drift_panels(image, {"zero": image, "blur": image / 0})
    with pytest.raises(InputError, match="at least one curve, but none came"):
        pictures.removal_curves({})


def test_nothing_global_is_touched_and_without_matplotlib_the_extra_is_named():
    script = """
import sys, torch
from pytest_triguard import pictures
assert "matplotlib" not in sys.modules
pictures.heatmap_overlay(torch.rand(1, 4, 4), torch.rand(1, 4, 4))
assert "matplotlib.pyplot" not in sys.modules
for name in [each for each in sys.modules if each.startswith("matplotlib")]:
    sys.modules[name] = None
try:
    pictures.heatmap_overlay(torch.rand(1, 4, 4), torch.rand(1, 4, 4))
except Exception as error:
    print(error)
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert found.stderr == ""
    assert "pip install 'pytest-triguard[pictures]'" in found.stdout
