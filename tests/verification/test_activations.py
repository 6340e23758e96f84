"""Rules of activations and other functions of one number: sound, and tight.

What is computed in float64 is judged in 140 digits, without any tolerance. What is computed in
float32 is judged in float64 on many more intervals; 1e-12 of the magnitudes is allowed for the
judge there, a hundred-thousandth of a rounding of float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, isfinite

import mpmath
import pytest
import torch
from mpmath import mp
from torch.nn import functional

from pytest_triguard.verification.intervals import Interval
from pytest_triguard.verification.operators import (
    TABLE,
    Unsupported,
    activations,
    curves,
    gates,
    smooth,
)
from pytest_triguard.verification.operators.curves import Curve

mp.dps = 140
POINT = Interval(torch.ones(1, 1), torch.ones(1, 1))
FLOAT32 = 2.0**-24


@dataclass(frozen=True)
class Case:
    """A function: its curve, the module's own, the exact one, and the numbers it is tried on."""

    curve: Curve
    own: Callable[[torch.Tensor], torch.Tensor]
    exact: Callable[[mpmath.mpf], mpmath.mpf]
    domain: tuple[float, float] = (-1e8, 1e8)
    spots: tuple[float, ...] = (0.0,)


def logistic(x):
    return 1 / (1 + mp.exp(-x))


def clip(x, least, most):
    return min(max(x, mp.mpf(least)), mp.mpf(most))


def softplus(beta, threshold):
    def exact(x):
        return x if x * beta > threshold else mp.log1p(mp.exp(x * beta)) / beta

    return exact


def exponential(alpha, scale=1, inner=1):
    return lambda x: scale * (x if x > 0 else alpha * mp.expm1(inner * x))


def tanh_gelu(x):
    return x * logistic(2 * mp.sqrt(2 / mp.pi) * (x + mp.mpf(0.044715) * x**3))


def gelu(x):
    return x * mp.erfc(-x / mp.sqrt(2)) / 2


SELU = (mp.mpf("1.6732632423543772848170429916717"), mp.mpf("1.0507009873554804934193349852946"))
CASES = {
    "relu6": Case(
        activations.relu6(POINT), functional.relu6, lambda x: clip(x, 0, 6), spots=(0.0, 6.0)
    ),
    "hardtanh": Case(
        activations.hardtanh(POINT, -0.5, 0.75),
        lambda x: functional.hardtanh(x, -0.5, 0.75),
        lambda x: clip(x, -0.5, 0.75),
        spots=(-0.5, 0.75),
    ),
    "clamp": Case(
        activations.clamp(POINT, max=0.3),
        lambda x: x.clamp(max=0.3),
        lambda x: min(x, mp.mpf(0.3)),
        spots=(0.3,),
    ),
    "clamp_min": Case(
        activations.clamp_min(POINT, -1),
        lambda x: x.clamp_min(-1),
        lambda x: max(x, mp.mpf(-1)),
        spots=(-1.0,),
    ),
    "clamp_max": Case(
        activations.clamp_max(POINT, 2), lambda x: x.clamp_max(2), lambda x: min(x, mp.mpf(2))
    ),
    "crossed limits": Case(
        activations.clamp(POINT, 2.0, 1.0), lambda x: x.clamp(2.0, 1.0), lambda x: mp.mpf(1)
    ),
    "hardsigmoid": Case(
        activations.hardsigmoid(POINT),
        functional.hardsigmoid,
        lambda x: clip(x + 3, 0, 6) / 6,
        spots=(-3.0, 3.0),
    ),
    "abs": Case(activations.absolute(POINT), torch.abs, abs),
    "sigmoid": Case(smooth.sigmoid(POINT), torch.sigmoid, logistic),
    "tanh": Case(smooth.tanh(POINT), torch.tanh, mp.tanh),
    "erf": Case(smooth.erf(POINT), torch.erf, mp.erf),
    "softplus": Case(
        smooth.softplus(POINT), functional.softplus, softplus(1, 20), spots=(0.0, 20.0)
    ),
    "low softplus": Case(
        smooth.softplus(POINT, 2.5, 1.0),
        lambda x: functional.softplus(x, 2.5, 1.0),
        softplus(mp.mpf(2.5), 1),
        spots=(0.0, 0.4),
    ),
    "negative softplus": Case(
        smooth.softplus(POINT, 0.5, -1.0),
        lambda x: functional.softplus(x, 0.5, -1.0),
        softplus(mp.mpf(0.5), -1),
        spots=(-2.0,),
    ),
    "log_sigmoid": Case(
        smooth.log_sigmoid(POINT), functional.logsigmoid, lambda x: -mp.log1p(mp.exp(-x))
    ),
    "elu": Case(smooth.elu(POINT), functional.elu, exponential(1)),
    "steep elu": Case(
        smooth.elu(POINT, 1.7), lambda x: functional.elu(x, 1.7), exponential(mp.mpf(1.7))
    ),
    "celu": Case(
        smooth.celu(POINT, 0.5),
        lambda x: functional.celu(x, 0.5),
        exponential(mp.mpf(0.5), inner=2),
    ),
    "selu": Case(smooth.selu(POINT), functional.selu, exponential(*SELU)),
    "exp": Case(smooth.exp(POINT), torch.exp, mp.exp, domain=(-1e8, 80.0)),
    "sqrt": Case(smooth.sqrt(POINT), torch.sqrt, mp.sqrt, domain=(0.0, 1e8)),
    "reciprocal": Case(
        smooth.reciprocal(POINT), torch.reciprocal, lambda x: 1 / x, domain=(1e-6, 1e8)
    ),
    "negative reciprocal": Case(
        smooth.reciprocal(POINT), torch.reciprocal, lambda x: 1 / x, domain=(-1e8, -1e-6)
    ),
    "square": Case(smooth.square(POINT), torch.square, lambda x: x * x),
    "pow": Case(smooth.power(POINT, 2), lambda x: x**2, lambda x: x * x),
    "silu": Case(
        gates.silu(POINT), functional.silu, lambda x: x * logistic(x), spots=(-2.4, -1.28, 2.4)
    ),
    "gelu": Case(gates.gelu(POINT), functional.gelu, gelu, spots=(-1.41, -0.75, 1.41)),
    "tanh gelu": Case(
        gates.gelu(POINT, "tanh"),
        lambda x: functional.gelu(x, approximate="tanh"),
        tanh_gelu,
        spots=(-1.42, -0.75, 1.42),
    ),
    "mish": Case(
        gates.mish(POINT),
        functional.mish,
        lambda x: x * mp.tanh(mp.log1p(mp.exp(x))),
        spots=(-2.26, -1.19, 1.49),
    ),
    "hardswish": Case(
        gates.hardswish(POINT),
        functional.hardswish,
        lambda x: x * clip(x + 3, 0, 6) / 6,
        spots=(-3.0, -1.5, 3.0),
    ),
}
cases = pytest.mark.parametrize("name", CASES)
JUMPING = ["low softplus", "negative softplus"]
CONVEX = ["softplus", "elu", "exp", "reciprocal", "square", "abs", "clamp_min"]


def intervals(case, count, dtype, seed=0):
    """Return boxes of every width from points to the whole domain, many around special spots."""
    generator = torch.Generator().manual_seed(seed)
    spots = torch.tensor((*case.spots, 0.0, 1.0), dtype=torch.float64)
    at = spots[torch.randint(len(spots), (count,), generator=generator)]
    widths = 10.0 ** (torch.rand(2, count, generator=generator, dtype=torch.float64) * 12 - 9)
    widths = widths * (torch.rand(2, count, generator=generator) > 0.15)
    shift = torch.randn(count, generator=generator, dtype=torch.float64) * 3
    shift = shift * (torch.rand(count, generator=generator) > 0.4)
    low, high = at + shift - widths[0], at + shift + widths[1]
    ends = torch.tensor([[-1e8, 1e8], [-1e8, -1e7], [1e7, 1e8], [-60, 70], [0, 0], [-0.0, 1e-30]])
    low, high = torch.cat([low, ends[:, 0]]), torch.cat([high, ends[:, 1]])
    low, high = (each.clamp(*case.domain).to(dtype) for each in (low, high))
    return Interval(*(each.view(1, -1) for each in (low, torch.maximum(low, high))))


def lines(band):
    """Return slopes and offsets of the lower and of the upper line, `(count,)` each."""
    tensors = (band.lower_slopes[0], band.lower_offset, band.upper_slopes[0], band.upper_offset)
    return [each.flatten() for each in tensors]


def points(box, count):
    """Return `(count, boxes)` points, ends included."""
    share = torch.linspace(0, 1, count, dtype=torch.float64).to(box.dtype).view(-1, 1)
    inside = box.lower * (1 - share) + box.upper * share
    return torch.minimum(torch.maximum(inside, box.lower), box.upper)


@cases
def test_float64_bounds_hold_in_140_digits(name):
    case = CASES[name]
    box = intervals(case, 40, torch.float64)
    bounds, found = case.curve.interval(box), lines(case.curve.band(box))
    rows = zip(
        *(each.flatten().tolist() for each in (bounds.lower, bounds.upper, *found)),
        points(box, 7).T.tolist(),
        strict=True,
    )
    for lower, upper, *band, places in rows:
        below, depth, above, height = (mp.mpf(each) for each in band)
        for place in places:
            x = mp.mpf(place)
            exact = case.exact(x)
            assert lower <= exact <= upper
            assert below * x + depth <= exact <= above * x + height


@cases
def test_float32_bounds_hold_in_float64(name):
    case = CASES[name]
    box = intervals(case, 2000, torch.float32, seed=1)
    bounds, found = case.curve.interval(box), lines(case.curve.band(box))
    places = points(box, 33).double()
    value, error = case.curve.value(places)
    room = error() + 1e-12 * value.abs()
    below, depth, above, height = (each.double() for each in found)
    assert all(each.isfinite().all() for each in found)
    assert (bounds.lower.double() <= value + room).all()
    assert (bounds.upper.double() >= value - room).all()
    assert (below * places + depth <= value + room + 1e-15 * (below * places).abs()).all()
    assert (above * places + height >= value - room - 1e-15 * (above * places).abs()).all()


@cases
def test_every_value_and_slope_is_within_its_stated_error(name):
    """In 140 digits, at spots of every scale; slopes by differences of the exact function."""
    case = CASES[name]
    spots = [
        sign * 10.0**power for power in (-30, -3, -1, 0, 1, 1.4, 2, 2.5, 8) for sign in (1, -1)
    ]
    spots += [each + shift for each in case.spots for shift in (0.0, 1e-9, -0.37, 0.61, 5.3)]
    for place in spots:
        if not case.domain[0] < place < case.domain[1]:
            continue
        x, exact = torch.tensor([place], dtype=torch.float64), case.exact(mp.mpf(place))
        value, error = case.curve.value(x)
        assert abs(value.item() - exact) <= error().item()
        assert error().item() <= 1e-12 * abs(exact) + 1e-300 or "softplus" in name
        for piece in case.curve.pieces:
            if piece.start + 1e-4 < place < piece.end - 1e-4:
                slope, error = piece.slope(x)
                step = mp.mpf(10) ** -40
                ahead, back = (case.exact(mp.mpf(place) + sign * step) for sign in (1, -1))
                exact = (ahead - back) / (2 * step)
                assert abs(slope.item() - exact) <= error().item() + mp.mpf(10) ** -75


@cases
def test_every_piece_bends_as_it_says(name):
    """Second differences of the exact function, all over each piece and next to its ends."""
    case = CASES[name]
    for piece in case.curve.pieces:
        if piece.end <= case.domain[0] or piece.start >= case.domain[1]:
            continue
        start, end = max(piece.start, case.domain[0], -30.0), min(piece.end, case.domain[1], 30.0)
        inset = (1e-4 if "softplus" in name else 1e-10) * max(1.0, abs(start), abs(end))
        places = [start + inset, end - inset]
        places += [start + (end - start) * share / 20 for share in range(1, 20)]
        for place in places:
            x, step = mp.mpf(place), mp.mpf(10) ** -30
            bend = case.exact(x + step) + case.exact(x - step) - 2 * case.exact(x)
            assert bend * piece.curvature >= -(mp.mpf(10) ** -130)
            assert piece.curvature or abs(bend) < mp.mpf(10) ** -100


@cases
def test_bounds_hold_wherever_the_search_for_slopes_ends(name, monkeypatch):
    """Only tightness may hang on the search: here it returns any slopes and any points."""
    case = CASES[name]
    generator = torch.Generator().manual_seed(7)

    def anywhere(residual, inside, outside):
        share = torch.rand(inside.shape, generator=generator, dtype=inside.dtype)
        point = inside * (1 - share) + outside * share
        ends = torch.minimum(inside, outside), torch.maximum(inside, outside)
        return torch.minimum(torch.maximum(point, ends[0]), ends[1])

    def any_line(piece, input, middle, first, last):
        slope = torch.randn(input.shape, generator=generator, dtype=input.dtype)
        return anywhere(None, *piece.ends(input.lower, input.upper)), slope * 3

    monkeypatch.setattr(curves, "_root", anywhere)
    monkeypatch.setattr(curves, "_tangent", any_line)
    box = intervals(case, 1000, torch.float64, seed=8)
    places, values = brute(case, box, 17)
    below, depth, above, height = lines(case.curve.band(box))
    for slope, offset, sign in ((below, depth, 1), (above, height, -1)):
        size = values.abs() + (slope * places).abs() + offset.abs()
        assert (sign * (values - slope * places - offset) >= -1e-15 * size).all()


def brute(case, box, count=2001):
    """Return points of boxes, kinks and turn among them, and the function: `(points, boxes)`."""
    spots = [*case.spots, case.curve.turn.place if case.curve.turn else 0.0]
    around = torch.tensor(
        [[each + 1e-9 * side] for each in spots for side in (-1, 0, 1)], dtype=box.dtype
    )
    extra = torch.minimum(torch.maximum(around, box.lower), box.upper)
    places = torch.cat([points(box, count), extra])
    return places, case.curve.value(places).value


def moderate(case, count, seed):
    """Return boxes up to ten wide, for which a grid finds extremes to a few digits."""
    generator = torch.Generator().manual_seed(seed)
    ends = torch.randn(2, 1, count, generator=generator, dtype=torch.float64) * 3
    ends = ends.clamp(max(case.domain[0], -6.0), min(case.domain[1], 6.0)).sort(0).values
    ends = ends.clamp(case.domain[0] + (0.05 if case.domain[0] == 1e-6 else 0), None)
    return Interval(*ends.clamp(None, case.domain[1] - (0.05 if case.domain[1] == -1e-6 else 0)))


@cases
def test_offsets_are_the_best_there_are_for_their_slopes(name):
    case = CASES[name]
    box = moderate(case, 200, seed=2)
    places, values = brute(case, box)
    below, depth, above, height = lines(case.curve.band(box))
    size = 1 + values.abs().amax(0)
    assert ((values - below * places).amin(0) - depth <= 1e-5 * size).all()
    assert (height - (values - above * places).amax(0) <= 1e-5 * size).all()


@pytest.mark.parametrize("name", [name for name in CASES if name not in JUMPING])
def test_lines_are_the_highest_and_lowest_in_the_middle(name):
    """The line of the least area touches the convex hull in the middle; a grid finds the hull."""
    case = CASES[name]
    box = moderate(case, 100, seed=3)
    places, values = brute(case, box, 151)
    below, depth, above, height = lines(case.curve.band(box))
    middle = places[75]
    gaps = (middle - places).clamp_min(0).unsqueeze(1), (places - middle).clamp_min(0).unsqueeze(0)
    share = gaps[0] / (gaps[0] + gaps[1])
    heights = values.unsqueeze(1) * (1 - share) + values.unsqueeze(0) * share
    outside = (gaps[0] == 0) | (gaps[1] == 0)
    least = torch.minimum(heights.masked_fill(outside, inf).amin((0, 1)), values[75])
    most = torch.maximum(heights.masked_fill(outside, -inf).amax((0, 1)), values[75])
    size = 1 + values.abs().amax(0)
    assert (least - (below * middle + depth) <= 1e-3 * size).all()
    assert (above * middle + height - most <= 1e-3 * size).all()
    assert (least - (below * middle + depth)).median() <= 1e-4
    assert (above * middle + height - most).median() <= 1e-4


@pytest.mark.parametrize("name", CONVEX)
def test_the_chord_is_above_a_convex_function(name):
    case = CASES[name]
    box = moderate(case, 300, seed=4)
    _, _, above, height = lines(case.curve.band(box))
    for end in (box.lower[0], box.upper[0]):
        value = case.curve.value(end).value
        scale = 1 + value.abs() + (above * end).abs()
        assert ((above * end + height - value) <= 1e-8 * scale).all()


@cases
def test_intervals_are_exact_and_no_wider_than_rounding(name):
    case = CASES[name]
    box = moderate(case, 200, seed=5)
    _, values = brute(case, box, 1001)
    bounds = case.curve.interval(box)
    size = 1 + values.abs().amax(0)
    assert (values.amin(0) - bounds.lower[0] <= 1e-8 * size).all()
    assert (bounds.upper[0] - values.amax(0) <= 1e-8 * size).all()


@cases
def test_linear_pieces_and_points_are_the_elements_that_are_not_open(name):
    case = CASES[name]
    box = moderate(case, 300, seed=6)
    [(argument, mask)] = case.curve.open(box)
    assert argument is box
    places, values = brute(case, box, 5)
    rise = (values[4] - values[0]) / (places[4] - places[0])
    chord = values[0] + rise * (places - places[0])
    bent = ((values - chord).abs() > 1e-9).any(0)
    assert not (bent & ~mask[0]).any()
    point = Interval(box.lower, box.lower)
    assert not case.curve.open(point)[0][1].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@cases
def test_a_point_or_two_neighbours_keep_a_tight_finite_band(name, dtype):
    case = CASES[name]
    at = torch.linspace(-40, 40, 161, dtype=torch.float64).clamp(*case.domain).to(dtype)
    for other in (at, torch.nextafter(at, at.new_full((), inf))):
        box = Interval(at.view(1, -1), other.clamp(*case.domain).view(1, -1))
        below, depth, above, height = lines(case.curve.band(box))
        gap = (above - below) * at + (height - depth)
        value = case.curve.value(at).value.abs()
        room = 400 * torch.finfo(dtype).eps * (value + (below * at).abs() + (above * at).abs() + 1)
        if "softplus" in name:
            turn = case.curve.turn
            room = room + 2 * (turn.most - turn.least) * ((at - turn.place).abs() < 1e-4)
        assert (gap <= room).all()


@cases
def test_what_is_not_finite_leaves_no_finite_band(name):
    case = CASES[name]
    ends = [(-inf, inf), (-inf, 1.0), (1.0, inf), (torch.nan, 1.0), (1.0, torch.nan)]
    low, high = torch.tensor(ends, dtype=torch.float64).T.reshape(2, 1, -1)
    band = case.curve.band(Interval(low, high))
    assert band.lower_offset.isnan().all()
    assert band.upper_offset.isnan().all()
    bounds = case.curve.interval(Interval(low, high))
    assert bounds.lower[0, 3].isnan()
    assert bounds.upper[0, 4].isnan()


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("reciprocal", -1.0, 2.0), ("reciprocal", 0.0, 2.0), ("reciprocal", -1.0, 0.0),
     ("sqrt", -1.0, 2.0), ("sqrt", -2.0, -1.0)],
)  # fmt: skip
def test_outside_of_its_domain_a_function_has_no_bounds(name, low, high):
    box = Interval(torch.tensor([[low, 1.0]]), torch.tensor([[high, 2.0]]))
    bounds, band = CASES[name].curve.interval(box), CASES[name].curve.band(box)
    for each in (bounds.lower, bounds.upper, band.lower_offset[0], band.upper_offset[0]):
        assert each[0, 0].isnan()
        assert each[0, 1].isfinite()


def test_an_overflowing_exponential_has_no_finite_upper_bound():
    box = Interval(torch.tensor([[0.0]]), torch.tensor([[1000.0]]))
    assert not isfinite(smooth.exp(box).interval(box).upper.item())
    assert not isfinite(smooth.exp(box).band(box).upper_offset.item())


@cases
def test_the_module_in_float32_is_within_the_stated_error(name):
    case = CASES[name]
    grid = torch.cat([torch.linspace(-30, 30, 60001), torch.linspace(-1e-3, 1e-3, 2001)])
    scales = 10.0 ** torch.linspace(-30, 8, 2001)
    grid = torch.cat([grid, scales, -scales, torch.linspace(-110, -80, 3001)])
    grid = torch.cat([grid, *(each + torch.linspace(-1e-5, 1e-5, 501) for each in case.spots)])
    grid = grid.clamp(*case.domain)
    own, odd = case.own(grid), torch.stack([case.own(each) for each in grid[::997].view(-1, 1)])
    exact, error = case.curve.value(grid.double())
    box = Interval(grid.double().view(1, -1), grid.double().view(1, -1))
    stated = case.curve.evaluation(box, FLOAT32).expand(1, len(grid))[0]
    assert ((own.double() - exact).abs() <= stated + error()).all()
    assert ((odd[:, 0].double() - exact[::997]).abs() <= (stated + error())[::997]).all()


@pytest.mark.parametrize(
    "call",
    [
        lambda: activations.clamp(POINT),
        lambda: activations.clamp(POINT, torch.zeros(1)),
        lambda: activations.clamp(POINT, POINT),
        lambda: activations.clamp(POINT, float("nan"), 1.0),
        lambda: activations.hardtanh(POINT, 0.0, float("nan")),
        lambda: smooth.softplus(POINT, 0.0),
        lambda: smooth.softplus(POINT, -1.0),
        lambda: smooth.softplus(POINT, threshold=float("nan")),
        lambda: smooth.softplus(POINT, threshold=inf),
        lambda: smooth.elu(POINT, -0.5),
        lambda: smooth.elu(POINT, float("nan")),
        lambda: smooth.celu(POINT, 0.0),
        lambda: smooth.power(POINT, 3),
        lambda: smooth.power(POINT, 0.5),
        lambda: smooth.power(POINT, POINT),
        lambda: smooth.power(2.0, POINT),
        lambda: smooth.power(POINT, torch.tensor(2.0)),
        lambda: gates.gelu(POINT, "sigmoid"),
    ],
)
def test_an_argument_that_no_curve_is_known_for_is_refused(call):
    with pytest.raises(Unsupported):
        call()


@pytest.mark.parametrize("key", [torch.sigmoid, "pow", functional.softplus, functional.hardtanh])
def test_rules_take_the_arguments_of_their_functions(key):
    arguments = {"pow": (2,), functional.softplus: (2.0, 3.0), functional.hardtanh: (-2.0, 0.5)}
    given = arguments.get(key, ())
    rule = TABLE[key]
    box = Interval(torch.tensor([[-1.0]]), torch.tensor([[1.0]]))
    bounds = rule.interval(box, *given)
    assert bounds.lower < bounds.upper
    assert rule.relaxation(box, *given).inputs == (box,)
    assert rule.open(box, *given)[0][1].all()
    assert rule.evaluation(box, *given, unit=FLOAT32).min() >= 0
    assert rule.mixing == "none"
