"""What the commands of this folder write: a table, line by line as it is found."""

import sys
from collections.abc import Iterable

import torch


def show(lines: Iterable[str]) -> None:
    """Write lines as they come, computed on one thread so that they are the same everywhere."""
    torch.set_num_threads(1)
    for line in lines:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
