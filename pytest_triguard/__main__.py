"""The entry of `python -m pytest_triguard`."""

from __future__ import annotations

import sys

from pytest_triguard.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], sys.stdout))
