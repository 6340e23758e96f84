"""Sphinx extension: equations drawn into the pages, so that pages load no script from elsewhere.

Each equation becomes one outline in the colour of the text around it. What is understood is
matplotlib's mathtext, a part of TeX; an equation beyond it is a warning.
"""

from __future__ import annotations

from html import escape

from docutils import nodes
from matplotlib.font_manager import FontProperties
from matplotlib.path import Path
from matplotlib.textpath import TextPath
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

_SIZE = 12.0
_LARGER = 1.15
"""Times the size of the text: the letters of equations are lower than those around them."""
_FONT = FontProperties(size=_SIZE, math_fontfamily="cm")
_LETTERS = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C"}

logger = logging.getLogger(__name__)


def outline(equation: str) -> str:
    """Return an equation as SVG that stands on the line of text.

    Raises:
        ValueError: If it is not understood.
    """
    path = TextPath((0, 0), f"${' '.join(equation.split())}$", prop=_FONT)
    box = path.get_extents().padded(0.3)
    steps = []
    for points, code in path.iter_segments():
        places = " ".join(
            f"{x - box.x0:.2f} {box.y1 - y:.2f}" for x, y in points.reshape(-1, 2).tolist()
        )
        steps.append("Z" if code == Path.CLOSEPOLY else f"{_LETTERS[code]}{places}")
    scale = _LARGER / _SIZE
    style = f"height:{box.height * scale:.3f}em;vertical-align:{box.y0 * scale:.3f}em"
    return (
        f'<svg class="equation" role="img" aria-label="{escape(equation)}" style="{style}" '
        f'viewBox="0 0 {box.width:.2f} {box.height:.2f}"><path d="{"".join(steps)}" '
        'fill="currentColor"/></svg>'
    )


def _drawn(writer: HTML5Translator, node: nodes.Element) -> str:
    try:
        return outline(node.astext())
    except ValueError as error:
        logger.warning("equation %s: %s", node.astext(), error, location=node)
        return f"<code>{escape(node.astext())}</code>"


def inline(writer: HTML5Translator, node: nodes.math) -> None:
    """Draw an equation inside a sentence."""
    writer.body.append(_drawn(writer, node))
    raise nodes.SkipNode


def block(writer: HTML5Translator, node: nodes.math_block) -> None:
    """Draw an equation on a line of its own."""
    writer.body.append(f'<p class="equation">{_drawn(writer, node)}</p>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the renderer."""
    app.add_html_math_renderer("outline", (inline, None), (block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
