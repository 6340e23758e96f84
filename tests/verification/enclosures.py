"""What every rule of an operator promises, checked on random boxes, for the tests of the rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pytest_triguard.verification.intervals import Interval
from pytest_triguard.verification.operators import TABLE
from pytest_triguard.verification.relaxations import Relaxation

UNIT = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}
RADII = (0.0, 1e-6, 1e-2, 0.3, 3.0, 40.0)


@dataclass(frozen=True)
class Case:
    """A call of an operator.

    Attributes:
        key: Its key in the table.
        own: The operator itself, on tensors.
        shapes: Shapes of the arguments that are values, samples left out.
        kwargs: The other arguments.
        args: Other arguments that have no names, after the values.
        draw: From the place of an argument, and a box drawn around normal numbers, to the ends
            that are wanted.
        constants: Which of the arguments are constants.
    """

    key: Any
    own: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    draw: Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]] = lambda place, low, high: (
        low,
        high,
    )
    constants: tuple[int, ...] = ()
    args: tuple[Any, ...] = ()


def box(case: Case, radius: float, dtype: torch.dtype, seed: int = 0) -> list[Any]:
    """Return random arguments: boxes of two samples up to a radius, some of no width."""
    generator = torch.Generator().manual_seed(seed)
    found: list[Any] = []
    for place, shape in enumerate(case.shapes):
        middle = torch.randn(2, *shape, generator=generator, dtype=dtype)
        if place in case.constants:
            found.append(middle[0])
            continue
        reach = torch.rand(2, *shape, generator=generator, dtype=dtype)
        reach = radius * reach * (reach > 0.2)
        found.append(Interval(*case.draw(place, middle - reach, middle + reach)))
    return found


def inside(arguments: list[Any], count: int, seed: int = 0) -> list[list[Any]]:
    """Return points of boxes in float64: corners, some, and any."""
    generator = torch.Generator().manual_seed(seed)
    points = []
    for place in range(count):
        point = []
        for argument in arguments:
            if not isinstance(argument, Interval):
                point.append(argument.double())
                continue
            low, high = argument.lower.double(), argument.upper.double()
            share = torch.rand(low.shape, generator=generator, dtype=torch.float64)
            share = share.round() if place % 2 else share
            point.append(torch.minimum(low + share * (high - low), high))
        points.append(point)
    return points


def call(case: Case, part: str, arguments: list[Any], **more: Any) -> list[Any]:
    """Return what one of the rules of a case says, always as a list of results."""
    found = getattr(TABLE[case.key], part)(*arguments, *case.args, **case.kwargs, **more)
    return list(found) if isinstance(found, tuple) else [found]


def exact(case: Case, point: list[Tensor]) -> list[Tensor]:
    """Return the operator's results at a point in float64."""
    kwargs = {
        name: value.double() if isinstance(value, Tensor) else value
        for name, value in case.kwargs.items()
    }
    found = case.own(*point, *case.args, **kwargs)
    return list(found) if isinstance(found, tuple | list) else [found]


def descend(
    arguments: list[Any], gap: Callable[[list[Any]], Tensor], floor: Callable[[Tensor], Tensor]
) -> None:
    """Look for points of boxes where a gap `(N,)` is below zero: from corner to corner."""
    places = [place for place, each in enumerate(arguments) if isinstance(each, Interval)]
    for start in inside(arguments, 3):
        point = start
        for step in range(4):
            for place in places:
                point[place] = point[place].detach().requires_grad_()
            found = gap(point)
            assert (found >= floor(found)).all()
            slopes = torch.autograd.grad(found.sum(), [point[place] for place in places])
            for place, slope in zip(places, slopes, strict=True):
                low, high = arguments[place].lower.double(), arguments[place].upper.double()
                corner = torch.where(slope > 0, low, high)
                value = corner if step % 2 else (corner + point[place].detach()) / 2
                point[place] = torch.minimum(torch.maximum(value, low), high)


def check_interval(case: Case, radius: float, dtype: torch.dtype, seed: int = 0) -> None:
    """Every result at a point of the box is in the interval."""
    arguments = box(case, radius, dtype, seed)
    found = call(case, "interval", arguments)
    for point in inside(arguments, 20, seed):
        for bounds, value in zip(found, exact(case, point), strict=True):
            room = 1e-14 * value.abs().max()
            assert bounds.shape == value.shape
            assert (bounds.lower.double() <= value + room).all()
            assert (bounds.upper.double() >= value - room).all()
    generator = torch.Generator().manual_seed(seed)
    aims = [_aim(found, generator, sign) for _ in range(3) for sign in (1, -1)]
    limits = torch.cat([limit for *_, limit in aims])

    def gap(point: list[Any]) -> Tensor:
        values = [each.unflatten(0, (len(aims), -1)) for each in exact(case, point)]
        reached = [
            sign * values[number][place].flatten(1)[:, element]
            for place, (number, element, sign, _) in enumerate(aims)
        ]
        return torch.cat(reached) - limits

    descend(_copies(arguments, len(aims)), gap, lambda found: -1e-14 * (1 + limits.abs()))


def _aim(
    found: list[Interval], generator: torch.Generator, sign: int
) -> tuple[int, int, int, Tensor]:
    """Return which result, which element and which end to search beyond, and that end `(N,)`."""
    number = int(torch.randint(len(found), (), generator=generator))
    bounds = found[number]
    element = int(torch.randint(bounds.lower[0].numel(), (), generator=generator))
    end = bounds.lower if sign > 0 else bounds.upper
    return number, element, sign, sign * end.double().flatten(1)[:, element]


def _copies(arguments: list[Any], count: int) -> list[Any]:
    """Return arguments with all samples of their boxes so many times."""
    return [
        Interval(torch.cat([each.lower] * count), torch.cat([each.upper] * count))
        if isinstance(each, Interval)
        else each
        for each in arguments
    ]


def check_relaxation(case: Case, radius: float, dtype: torch.dtype, seed: int = 0) -> None:
    """Carried rows bound rows on the result from below at every point of the box.

    The rows are random ones, one on a single element, and the result itself.
    """
    arguments = box(case, radius, dtype, seed)
    generator = torch.Generator().manual_seed(seed)
    steps = call(case, "relaxation", arguments)
    middle = exact(case, inside(arguments, 1, seed)[0])
    for number, step in enumerate(steps):
        shape = middle[number].shape
        rows = torch.randn(2, 4, *shape[1:], generator=generator, dtype=dtype)
        rows = rows * (torch.rand(rows.shape, generator=generator) > 0.5)
        rows[:, 2] = middle[number]
        rows[:, 3] = 0
        element = int(torch.randint(shape[1:].numel(), (), generator=generator))
        rows[:, 3].flatten(1)[:, element] = (-1) ** seed
        _check_rows(case, arguments, number, rows, step)


def _check_rows(
    case: Case, arguments: list[Any], number: int, rows: Tensor, step: Relaxation
) -> None:
    """All rows at once: each searches the box on its own."""

    def by_row(values: Tensor) -> Tensor:
        return values.double().expand(2, *values.shape[1:]).transpose(0, 1).flatten(0, 1)

    carried, constant = step.back(rows)
    terms = []
    for owner, part in carried:
        place = next(place for place, each in enumerate(arguments) if each is owner)
        assert part.shape[2:] == owner.shape[1:]
        terms.append((place, by_row(part)))
    aims, sizes = by_row(rows), []
    floor = aims.new_zeros(len(aims)) if constant is None else by_row(constant)
    if step.error is not None:
        reserve = rows.double().abs() * step.error.double().unsqueeze(1)
        floor = floor - by_row(reserve.flatten(2).sum(2))

    def gap(point: list[Any]) -> Tensor:
        value = aims * exact(case, point)[number]
        total, size = value.flatten(1).sum(1), value.abs().flatten(1).sum(1)
        for place, part in terms:
            term = part * point[place]
            total, size = total - term.flatten(1).sum(1), size + term.abs().flatten(1).sum(1)
        sizes.append(size.detach())
        return total - floor

    descend(_copies(arguments, rows.shape[1]), gap, lambda found: -1e-14 * sizes[-1])


def check_evaluation(case: Case, radius: float, seed: int = 0) -> None:
    """The operator in float32 is as close to the exact one as the rule says."""
    for point in inside(box(case, radius, torch.float32, seed), 10, seed):
        single = [each.float() for each in point]
        kept = [
            single[place] if place in case.constants else Interval(each.double(), each.double())
            for place, each in enumerate(single)
        ]
        own = case.own(*single, *case.args, **case.kwargs)
        own = list(own) if isinstance(own, tuple | list) else [own]
        true = exact(case, [each.double() for each in single])
        (off,) = call(case, "evaluation", kept, unit=UNIT[torch.float32])
        for one, other in zip(own, true, strict=True):
            assert ((one.double() - other).abs() <= off).all()


def check_point(case: Case, share: float = 1e-11) -> None:
    """A box of no width has bounds of next to none."""
    arguments = box(case, 0.0, torch.float64)
    found = call(case, "interval", arguments)
    for bounds, value in zip(found, exact(case, inside(arguments, 1)[0]), strict=True):
        room = share * (1 + value.abs())
        assert ((bounds.upper - bounds.lower) <= room).all()


def lowest(case: Case, arguments: list[Any], rows: Tensor) -> Tensor:
    """Return the least value of carried rows over the box, `(N, S)`."""
    (step,) = call(case, "relaxation", arguments)
    carried, constant = step.back(rows)
    total = torch.zeros(rows.shape[:2], dtype=rows.dtype) if constant is None else constant
    for owner, part in carried:
        ends = part * owner.lower.unsqueeze(1), part * owner.upper.unsqueeze(1)
        total = total + torch.minimum(*ends).flatten(2).sum(2)
    if step.error is None:
        return total
    return total - (rows.abs() * step.error.unsqueeze(1)).flatten(2).sum(2)
