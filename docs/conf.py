"""How Sphinx builds these pages: `python -m sphinx -n -W --keep-going -b html docs build/docs`.

Nothing is fetched while building, and the pages load nothing from elsewhere when they are read.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest_triguard

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "pytest-triguard"
author = "the authors of pytest-triguard"
release = version = pytest_triguard.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "equations",
    "reference",
]
html_math_renderer = "outline"
exclude_patterns = ["_ext"]
language = "en"
nitpicky = True
nitpick_ignore_regex = [
    # Other projects' types: linking them would take a download of their inventories.
    ("py:.*", r"(torch|np|npt|numpy|typing|collections|pathlib|hypothesis)\..*"),
    ("py:class", r"pytest_triguard\.engine\..*"),
    ("py:.*", r"(Tensor|Norm|PerChannel|Hashable|Unpack|Figure|optional)"),
    ("py:.*", r"pytest_triguard\.classifier\.PerChannel"),
]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 78
napoleon_numpy_docstring = False
napoleon_use_ivar = True
default_role = "code"
smartquotes_action = "D"  # quotes are code more often than not
toc_object_entries = False
highlight_language = "text"

html_theme = "furo"
html_title = f"pytest-triguard {release}"
html_show_copyright = False
html_copy_source = False
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["pages.css"]
