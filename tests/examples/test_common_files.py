"""Each example is whole without the others; what several of them hold is the same in all."""

from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("name", ["cache.py", "digits.py"])
def test_a_file_of_several_examples_is_the_same_in_all(name):
    contents = {path.parent.name: path.read_bytes() for path in EXAMPLES.glob(f"*/{name}")}
    assert len(contents) > 1
    assert len(set(contents.values())) == 1, sorted(contents)
