"""What attacks on explanations do to the two LeNet5: `python -m tests.real.deceived`.

Each attack looks for the worst map inside an L-inf ball while the prediction stays. The similarity
is the share of the top tenth of the pixels that the maps before and after have in common; the
networks are compared digit by digit.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from pytest_triguard import attribution_attacks, attributions
from pytest_triguard.attribution_attacks.evaluation import attack_curve
from pytest_triguard.statistics import paired_interval
from tests.real import found
from tests.real.show import show

COUNT, STEPS, CONFIDENCE = 30, 20, 0.95
RADII = (8 / 255, 0.1)
ATTACKS = ("topk", "mass_center")
METHODS = {"gradient_x_input": {}, "integrated_gradients": {"points": 3}}


def similarities(training: str, attack: str, method: str) -> Tensor:
    """Return the top-k intersection under attack, `(radii, N)`."""
    images, labels = found.digits()
    curve = attack_curve(
        found.lenet(training),
        images[:COUNT],
        labels[:COUNT],
        attack=attribution_attacks.get(attack, steps=STEPS, seed=0),
        attribution=attributions.get(method, **METHODS[method]),
        eps=RADII,
        measures=("topk_intersection",),
    )
    return curve.values["topk_intersection"]


def lines() -> Iterator[str]:
    """Yield the table."""
    yield "| attack | explanation | eps | clean | adversarial | difference | interval |"
    yield f"|{'---|' * 7}"
    for attack in ATTACKS:
        for method in METHODS:
            before, after = (similarities(each, attack, method) for each in found.LENETS)
            for eps, first, second in zip(RADII, before, after, strict=True):
                kept = first.isfinite() & second.isfinite()
                pair = [each[kept].double().numpy() for each in (first, second)]
                interval = paired_interval(pair[0], pair[1], "mean", CONFIDENCE, seed=0)
                low, high = interval or (float("nan"), float("nan"))
                means = [float(each.mean()) for each in pair]
                yield (
                    f"| `{attack}` | `{method}` | {eps:.3f} | {means[0]:.2f} | {means[1]:.2f} | "
                    f"{means[1] - means[0]:+.2f} | {low:+.2f} to {high:+.2f}, n = {len(pair[0])} |"
                )


if __name__ == "__main__":
    show(lines())
