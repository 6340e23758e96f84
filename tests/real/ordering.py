"""The known order of explanations on real images: `python -m tests.real.ordering`.

A ranking at random is worse in insertion than every method, and SmoothGrad is steadier than
saliency under noise; differences are paired by image and carry their intervals.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from pytest_triguard import Classifier, attributions, metrics
from pytest_triguard.attributions import Attribution
from pytest_triguard.statistics import paired_interval
from tests.real import found
from tests.real.show import show

CONFIDENCE = 0.95
RANKED = (
    "saliency",
    "gradient_x_input",
    "integrated_gradients",
    "smoothgrad",
    "unigrad",
    "deeplift",
    "occlusion",
)
"""Methods whose insertion is held against that of a ranking at random."""


def chosen(name: str) -> Attribution:
    """Return an attribution as it is compared."""
    few = {"smoothgrad": {"copies": 20}, "unigrad": {"copies": 20}}
    return attributions.get(
        name, **few.get(name, {}), **({"reused": "each_call"} if name == "deeplift" else {})
    )


def digits(count: int) -> tuple[Tensor, Tensor]:
    """Return some of the digits, and their classes."""
    images, labels = found.digits()
    return images[:count], labels[:count]


def insertions(classifier: Classifier, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return the areas under the insertion curves by method, and of the random ranking.

    Pixels go in by signed attribution: the class is what the curve follows.
    """
    curve = metrics.get("insertion", steps=28, absolute=False)
    maps = {name: chosen(name)(classifier, images, labels) for name in RANKED}
    areas = {name: curve(each, classifier, images, labels) for name, each in maps.items()}
    control = metrics.get("insertion", steps=28, ranking="random")
    return areas | {"random": control(maps["saliency"], classifier, images, labels)}


def sensitivities(
    classifier: Classifier, images: Tensor, labels: Tensor, *, radius: float = 0.05
) -> dict[str, Tensor]:
    """Return by how much maps change at most under uniform noise, relative to their length."""
    found = {}
    for name in ("saliency", "smoothgrad"):
        method = chosen(name)
        metric = metrics.get("max_sensitivity", attribution=method, radius=radius, copies=5)
        found[name] = metric(method(classifier, images, labels), classifier, images, labels)
    return found


def difference(before: Tensor, after: Tensor) -> tuple[float, tuple[float, float]]:
    """Return by how much the mean changes, and the interval of the change, paired by image."""
    kept = before.isfinite() & after.isfinite()
    first, second = (each[kept].double().numpy() for each in (before, after))
    interval = paired_interval(first, second, "mean", CONFIDENCE, seed=0)
    assert interval is not None, "there are too few images for an interval"
    return float((second - first).mean()), interval


def lines(count: int = 100) -> Iterator[str]:
    """Yield the tables."""
    images, labels = digits(count)
    yield f"| LeNet5, {count} digits | random | method | difference, {CONFIDENCE:.0%} |"
    yield "|---|---|---|---|"
    for training in found.LENETS:
        classifier = found.lenet(training)
        areas = insertions(classifier, images, labels)
        for name in RANKED:
            cells = f"{training}, insertion, `{name}`", areas["random"], areas[name]
            yield _row(*cells)
        largest = sensitivities(classifier, images, labels)
        cells = largest["saliency"], largest["smoothgrad"]
        yield _row(f"{training}, max-sensitivity, `smoothgrad` after `saliency`", *cells)


def _row(title: str, before: Tensor, after: Tensor) -> str:
    change, (low, high) = difference(before, after)
    means = f"{float(before.nanmean()):.3f} | {float(after.nanmean()):.3f}"
    return f"| {title} | {means} | {change:+.3f} [{low:+.3f}, {high:+.3f}] |"


if __name__ == "__main__":
    show(lines())
