"""Matplotlib figures as SVG inside a page: small, in the page's own colours, with ids of their own."""

from __future__ import annotations

import io
import re

import matplotlib
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from matplotlib.legend import Legend

from ghmdet.report.figures import INK


def inline_svg(figure: Figure, name: str, label: str) -> Markup:
    """The figure as an <svg> element of a page.

    The background is clear and ink takes the colour of the text around it, so it reads in light and in dark. Text stays
    text, in the page's font.

    Args:
        figure: what to draw; its legends' names are taken as they are, never as mathematics.
        name: unlike any other figure's of the page: its ids begin with it.
        label: what the figure shows, for who listens to the page.
    """
    for legend in figure.findobj(Legend):
        for text in legend.get_texts():
            text.set_parse_math(False)
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r"<(metadata|style).*?</\1>|<!--.*?-->", "", drawing, flags=re.DOTALL)
    # Ids that nothing refers to clash with the next figure's.
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', drawing))
    drawing = re.sub(
        r' id="([^"]*)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", drawing
    )
    drawing = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", drawing)
    drawing = re.sub(rf"{INK}|#000000", "currentColor", drawing)
    drawing = re.sub(r"font-family: [^;\"]*;? ?", "", drawing)
    drawing = re.sub(r'(?<= )(?:d|x|y|transform)="[^"]*"', lambda found: _shorter(found[0]), drawing)
    drawing = re.sub(r"\s*\n\s*", "\n", drawing)
    size = re.search(r'viewBox="([^"]*)"', drawing)
    assert size is not None
    head = f'<svg viewBox="{size[1]}" role="img" aria-label="{escape(label)}">'
    return Markup(head + drawing[drawing.index(">") + 1 :].strip())  # matplotlib escapes text


def _shorter(coordinates: str) -> str:
    return re.sub(r"(\.\d\d)\d+", r"\1", coordinates)
