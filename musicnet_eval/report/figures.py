"""What all figures share: colours, axes, and how a figure becomes part of the page or a file."""

from __future__ import annotations

import io
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from musicnet_eval import records
from musicnet_eval.report import fonts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Palette(NamedTuple):
    """The four colours of all figures: text, the two things compared, and lines that only guide."""

    ink: str
    train: str
    val: str
    rule: str


# matplotlib cannot write `currentColor` or a CSS variable: these stand-ins are replaced in its SVG.
PAGE = Palette("#010203", "#010204", "#010205", "#010206")
CSS = Palette("currentColor", "var(--train)", "var(--val)", "var(--rule)")
PRINT = Palette("#1b1f24", "#0b69b7", "#c2410c", "#c3cad2")
MOST_LABEL = 48  # letters of a label in a figure


def short(label: str) -> str:
    """Cut a label to what a figure has room for; `$` would begin a formula."""
    cut = label if len(label) <= MOST_LABEL else label[: MOST_LABEL - 1] + "…"
    return cut.replace("$", r"\$")


def blank(width: float, height: float, **margins: float) -> Figure:
    """Make an empty figure, inches, with margins in shares of it; without margins it lays itself out, in twice the time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="none", layout=None if margins else "constrained")
    if margins:
        figure.subplots_adjust(**margins)
    return figure


def quiet(axes: Axes, colours: Palette, title: str = "", x: str = "", y: str = "") -> Axes:
    """Give axes the look of all figures: no frame, thin guides, small text."""
    axes.set_title(short(title), fontsize=9, loc="left", color=colours.ink)
    axes.set_xlabel(short(x), fontsize=8, color=colours.ink)
    axes.set_ylabel(short(y), fontsize=8, color=colours.ink)
    axes.tick_params(which="both", labelsize=8, color=colours.rule, labelcolor=colours.ink)
    axes.grid(color=colours.rule, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_facecolor("none")
    axes.spines[:].set_visible(False)
    return axes


def svg(figure: Figure, alt: str, salt: str) -> Any:
    """Write a figure as inline SVG that takes the page's colours and font, with ids that no other figure of the page has."""
    import matplotlib
    from markupsafe import Markup

    buffer = io.StringIO()
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt, "path.simplify": True}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # the browser has its own fonts
        figure.savefig(buffer, format="svg", metadata=metadata)
    text = buffer.getvalue()
    text = re.sub(r"<style.*?</style>|<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*">', "<g>", text)
    for standin, colour in zip(PAGE, CSS, strict=True):
        text = text.replace(standin, colour)
    box = re.search(r'viewBox="[^"]*"', text)
    body = text[text.index(">") + 1 :]
    opening = Markup('<svg role="img" aria-label="{}" {} xmlns:xlink="http://www.w3.org/1999/xlink">')
    return opening.format(alt, Markup(box.group() if box else "")) + Markup(body)


def pdf(figure: Figure, path: Path) -> str:
    """Write a figure as PDF with its fonts inside, atomically and without a date, so that the same numbers give the same file.

    Returns:
        Letters that no font of this system has: they are replaced by their codes.
    """
    import matplotlib

    replaced = fonts.fit(figure)
    with matplotlib.rc_context({"pdf.fonttype": 42}), records.replacing(path) as temporary:
        figure.savefig(temporary, format="pdf", metadata={"CreationDate": None})
    return replaced
