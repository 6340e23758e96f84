"""Root conftest of the project's own tests.

numpy and torch are imported here, once: `pytester` drops the modules that an in-process run
imported, and neither library can be loaded twice in one process. They get one thread each, here and
in the processes that tests start: the networks are tiny, and workers share the cores.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: F401
import torch  # noqa: F401

pytest_plugins = ["pytester"]
