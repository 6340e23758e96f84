"""The pages, built once."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from tests.docs.pages import DOCS

OPTIONS = ("-n", "-W", "--keep-going", "-q", "-b", "html")
PATIENCE = 300.0
"""Seconds that building the pages may take."""

pytest.importorskip("sphinx")


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """The folder of the built pages; the build fails at a warning.

    Of several workers the first one builds, and the others wait for what comes of it.
    """
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    folder, told = root / "pages", root / "pages.txt"
    try:
        folder.mkdir()
    except FileExistsError:
        end = time.monotonic() + PATIENCE
        while not told.exists() and time.monotonic() < end:
            time.sleep(0.2)
    else:
        told.with_suffix(".part").write_text(build(folder), encoding="utf-8")
        told.with_suffix(".part").rename(told)
    assert told.read_text(encoding="utf-8") == ""
    return folder


def build(folder):
    """Build the pages and return what was said against them."""
    command = [sys.executable, "-m", "sphinx", *OPTIONS, str(DOCS), str(folder)]
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
    )
    return done.stdout if done.returncode else ""
