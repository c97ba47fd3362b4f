"""Letters that matplotlib's own font lacks (Chinese class names, say): another font of this system, or the letter's code.

Only what is written to files needs this: in a page, the browser has its own fonts.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OWN = "DejaVu Sans"  # matplotlib brings it along
# Families that hold much, tried before all others: what systems have for Chinese, Japanese, Korean and the rest of Unicode.
FIRST = (
    "Noto Sans CJK",
    "Source Han Sans",
    "WenQuanYi",
    "PingFang",
    "Hiragino",
    "Microsoft YaHei",
    "Malgun",
    "Noto Sans",
    "Arial Unicode",
)


def fit(figure: Figure) -> str:
    """Give a figure's texts the fonts that they need; letters that no font of this system has become codes, as in `\\u97f3`.

    Returns:
        The letters that were replaced.
    """
    from matplotlib.text import Text

    ticks = {axis: axis.get_ticklabels() for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)}  # these are made late
    texts = [text for text in figure.findobj(Text) if isinstance(text, Text)]
    foreign = _foreign("".join(sorted({letter for text in texts for letter in text.get_text()})))
    if not foreign:
        return ""
    families, replaced = _cover(foreign)
    for axis, labels in ticks.items():
        if any(not foreign.isdisjoint(label.get_text()) for label in labels):
            axis.set_ticks(axis.get_ticklocs(), [_written(label.get_text(), replaced) for label in labels], fontfamily=families)
    for text in texts:
        text.set_text(_written(text.get_text(), replaced))
        text.set_fontfamily(families)
    return replaced


def _written(text: str, replaced: str) -> str:
    return "".join(f"\\u{ord(letter):04x}" if letter in replaced else letter for letter in text)


def _foreign(letters: str) -> frozenset[str]:
    """List the letters that matplotlib's own font lacks."""
    from matplotlib.font_manager import findfont

    own = _letters(findfont(OWN))
    return frozenset(letter for letter in letters if not letter.isspace() and ord(letter) not in own)


def _cover(foreign: frozenset[str]) -> tuple[list[str], str]:
    """Find families that have the letters, after matplotlib's own, and give those letters that none has."""
    from matplotlib.font_manager import fontManager

    # A font of last resort draws a box for every letter.
    paths = {font.name: font.fname for font in fontManager.ttflist if not font.name.startswith("Last Resort")}
    families, left = [OWN], set(foreign)
    for name in sorted(paths, key=lambda name: next((i for i, first in enumerate(FIRST) if name.startswith(first)), len(FIRST))):
        held = {letter for letter in left if ord(letter) in _letters(paths[name])} if left else set()
        if held:
            families.append(name)
        left -= held
    return families, "".join(sorted(left))


@cache
def _letters(path: str) -> frozenset[int]:
    """List the letters of a font; none for one that cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError, ValueError):
        return frozenset()
