"""Maps of every attribution on real images, and the few numbers that are kept of each.

    python -m tests.real.maps FOLDER

writes `tests/data/real_maps.json` anew and draws all maps into the folder: look at them before the
file is committed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pytest_triguard import Classifier, attacks, attributions, metrics
from pytest_triguard.attributions import Attribution
from pytest_triguard.attributions.lpi import LPI
from pytest_triguard.metrics.mass_center import mass_centers
from tests.real import found
from tests.real.sheets import sheet

GOLDEN = Path(__file__).parents[1] / "data" / "real_maps.json"
REFERENCE = "integrated_gradients"
"""The method whose top pixels those of the others are held against."""

DIGITS: dict[str, dict[str, Any]] = {
    "saliency": {},
    "gradient_x_input": {},
    "integrated_gradients": {},
    "smoothgrad": {"copies": 20},
    "smoothgrad_squared": {"copies": 20},
    "unigrad": {"copies": 20},
    "fast_ig": {},
    "ig_uniform": {"references": 10},
    "ig_sg": {"references": 10},
    "ig_sq": {"references": 10},
    "expected_gradients": {"copies": 50},
    "lpi": {},
    "guided_ig": {"steps": 50},
    "deeplift": {"reused": "each_call"},
    "occlusion": {},
    "grad_cam": {"relu": False},
    "guided_grad_cam": {"relu": False},
    "fullgrad": {},
    "agi": {"steps": 20, "classes": 5},
    # The radii of the default are those of small colour images.
    "big": {"eps": (0.5, 1.0, 2.0, 3.0, 4.0, 6.0), "steps": 20, "cw_steps": 0},
    "mfaba": {},
    "attexplore": {"copies": 10},
    "attexplore_plus_plus": {"attack": attacks.get("gra", eps=16 / 255, copies=5)},
}
"""Hyperparameters by name; where there are some, they save time on a processor."""

PHOTOGRAPHS: dict[str, dict[str, Any]] = DIGITS | {
    "integrated_gradients": {"points": 10},
    "smoothgrad": {"copies": 8},
    "smoothgrad_squared": {"copies": 8},
    "unigrad": {"copies": 8},
    "ig_uniform": {"references": 3, "points": 3},
    "ig_sg": {"references": 3, "points": 3},
    "ig_sq": {"references": 3, "points": 3},
    "expected_gradients": {"copies": 10},
    "guided_ig": {"steps": 15},
    "occlusion": {"window": 56, "stride": 28},
    "agi": {"steps": 5, "classes": 2},
    "big": {"eps": (0.25, 0.5, 1.0, 2.0), "steps": 8, "cw_steps": 0, "points": 10},
    "mfaba": {"steps": 10},
    "attexplore": {"copies": 2, "steps": 5},
    "attexplore_plus_plus": {"attack": attacks.get("mig", eps=16 / 255, points=2, steps=5)},
}
CHOSEN = (0, 3, 6)
"""Which of the photographs are explained."""

Subject = tuple[Classifier, Tensor, Tensor, Tensor]


def of_digits(training: str) -> Subject:
    """Return a LeNet5, digits with their classes, and images that references are made of."""
    images, labels = found.one_digit_each()
    others = found.digits()[0][1000:1200]
    return found.lenet(training, torch.float64), images.double(), labels, others.double()


def of_photographs() -> Subject:
    """Return EfficientNet-Lite0, photographs with their classes, and all of them."""
    images, labels = found.photographs()
    chosen = list(CHOSEN)
    return found.efficientnet(0), images[chosen], labels[chosen], images


SUBJECTS: dict[str, tuple[Callable[[], Subject], dict[str, dict[str, Any]]]] = {
    "clean": (lambda: of_digits("clean"), DIGITS),
    "adversarial": (lambda: of_digits("adversarial"), DIGITS),
    "photographs": (of_photographs, PHOTOGRAPHS),
}


def method(name: str, subject: str) -> Attribution:
    """Return an attribution as it is set up for a subject."""
    return attributions.get(name, **SUBJECTS[subject][1][name])


def explained(name: str, subject: str) -> Tensor:
    """Return the maps of a method on a subject, `(n, C, H, W)`."""
    classifier, images, labels, others = SUBJECTS[subject][0]()
    chosen = method(name, subject)
    if isinstance(chosen, LPI):
        chosen = chosen.fit(classifier, others)
    return chosen(classifier, images, labels)


def summary(maps: Tensor, reference: Tensor) -> dict[str, list[Any]]:
    """Return what is kept of maps, one entry for each sample; None where it is undefined.

    Args:
        maps: `(n, C, H, W)`.
        reference: `(n, C, H, W)` maps whose top tenth of the pixels is held against theirs.

    Returns:
        The normalised entropy, row and column of the centre of mass, the shared top pixels, and
        the sum of the map.
    """
    maps, reference = maps.double(), reference.double()
    centers = mass_centers(maps.sum(1).abs())
    columns = {
        "entropy": metrics.get("entropy")(maps),
        "row": centers[:, 0],
        "column": centers[:, 1],
        "overlap": metrics.get("topk_intersection")(maps, reference),
        "sum": maps.flatten(1).sum(1),
    }
    return {
        name: [None if value != value else float(f"{value:.4g}") for value in values.tolist()]
        for name, values in columns.items()
    }


def golden() -> dict[str, dict[str, dict[str, list[Any]]]]:
    """Return what is kept: subject, method, number, samples."""
    return json.loads(GOLDEN.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def lines(made: dict[str, dict[str, Tensor]]) -> Iterator[str]:
    """Yield the file, a line for each method.

    Args:
        made: Maps by subject and method.
    """
    yield "{"
    for place, (subject, kept_maps) in enumerate(made.items(), start=1):
        yield f'  "{subject}": {{'
        for number, (name, values) in enumerate(kept_maps.items(), start=1):
            kept = json.dumps(summary(values, kept_maps[REFERENCE]))
            yield f'    "{name}": {kept}{"," if number < len(kept_maps) else ""}'
        yield "  }" + ("," if place < len(made) else "")
    yield "}"


def main() -> None:
    sheets = Path(sys.argv[1]) if sys.argv[1:] else None
    made: dict[str, dict[str, Tensor]] = {}
    for subject, (given, methods) in SUBJECTS.items():
        made[subject] = {name: explained(name, subject) for name in methods}
        if sheets is not None:
            sheets.mkdir(parents=True, exist_ok=True)
            drawn = sheet(given()[1], made[subject])
            drawn.savefig(sheets / f"{subject}.png", dpi=110)
    GOLDEN.write_text("\n".join(lines(made)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
