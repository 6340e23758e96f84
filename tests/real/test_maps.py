"""Maps on real images are what they were when they were looked at.

The networks and photographs come with packages that the project does not depend on; `found` names
them. `python -m tests.real.maps` writes the golden file.
"""

import math

import pytest

from tests.real import maps

pytestmark = pytest.mark.slow

TOLERANCES = {"entropy": 0.003, "row": 0.02, "column": 0.02, "overlap": 0.02}
"""Relative to the height or width of the image for rows and columns; sums may differ by 2 %.

Networks are LeNet5 in float64 and EfficientNet-Lite0 in float32; between thread counts and versions
of torch the last digits differ, which signs of gradients along trajectories amplify.
"""


@pytest.fixture(scope="module")
def references():
    """Reference maps by subject, made once."""
    return {}


def test_every_kept_map_is_one_that_is_made():
    assert {name: list(kept) for name, kept in maps.golden().items()} == {
        name: list(methods) for name, (_, methods) in maps.SUBJECTS.items()
    }


@pytest.mark.parametrize(
    ("subject", "name"),
    [(subject, name) for subject, (_, methods) in maps.SUBJECTS.items() for name in methods],
)
def test_maps_are_as_they_were_when_they_were_looked_at(subject, name, references, here):
    if subject not in references:
        references[subject] = here(maps.explained, maps.REFERENCE, subject)
    made = maps.explained(name, subject)
    sides = {"row": made.shape[2], "column": made.shape[3]}
    found = maps.summary(made, references[subject])
    for number, before in maps.golden()[subject][name].items():
        largest = max((abs(each) for each in before if each is not None), default=0.0)
        tolerance = TOLERANCES.get(number, 0.02 * largest) * sides.get(number, 1)
        for place, (now, kept) in enumerate(zip(found[number], before, strict=True)):
            assert (now is None) == (kept is None), (number, place)
            if kept is not None:
                assert math.isclose(now, kept, abs_tol=tolerance), (number, place)
