"""The pages, built once."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.docs.pages import DOCS

OPTIONS = ("-n", "-W", "--keep-going", "-q", "-b", "html")

pytest.importorskip("sphinx")


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """The folder of the built pages; the build fails at a warning."""
    folder = tmp_path_factory.mktemp("pages")
    command = [sys.executable, "-m", "sphinx", *OPTIONS, str(DOCS), str(folder)]
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    return folder
