"""Root conftest of the project's own tests.

numpy and torch are imported here, once: `pytester` drops the modules that an in-process run
imported, and neither library can be loaded twice in one process.
"""

from __future__ import annotations

import numpy as np  # noqa: F401
import torch  # noqa: F401

pytest_plugins = ["pytester"]
