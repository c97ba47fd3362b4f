"""Class names in letters that matplotlib's font lacks: drawn in a font of the system that has them, else told by their codes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.t2CharStringPen import T2CharStringPen
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.figure import Figure

from musicnet_eval import report
from musicnet_eval.report import figures, fonts
from tests.fake_runs import write_run

MUSIC, SONG = "音樂", "歌"


def make_font(path: Path, letters: str) -> None:
    """Make a font of boxes; as TrueType or as OpenType's other kind of outlines, by the file's name."""
    names = [".notdef", *(f"uni{ord(letter):04X}" for letter in letters)]
    builder = FontBuilder(1000, isTTF=path.suffix == ".ttf")
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(letter): name for letter, name in zip(letters, names[1:], strict=True)})
    glyphs = {}
    for name in names:
        pen = TTGlyphPen(None) if path.suffix == ".ttf" else T2CharStringPen(1000, None)
        pen.moveTo((100, 0))
        for corner in ((900, 0), (900, 800), (100, 800)):
            pen.lineTo(corner)
        pen.closePath()
        glyphs[name] = pen.glyph() if path.suffix == ".ttf" else pen.getCharString()
    if path.suffix == ".ttf":
        builder.setupGlyf(glyphs)
    else:
        builder.setupCFF("TestHan", {"FullName": "TestHan"}, glyphs, {})
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 100)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "TestHan", "styleName": "Regular", "psName": "TestHan", "fullName": "TestHan"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)


@pytest.fixture
def only_own() -> Iterator[Callable[[Path], None]]:
    """Leave matplotlib the fonts that it brings along, and give what adds one."""
    manager = font_manager.fontManager
    before = list(manager.ttflist)
    manager.ttflist[:] = [font for font in before if "matplotlib" in font.fname]
    yield manager.addfont
    manager.ttflist[:] = before


def figure() -> Figure:
    made = figures.blank(3, 2)
    axes = figures.quiet(made.subplots(), figures.PRINT, f"{MUSIC} and jazz")
    axes.plot([-0.5, 0.5], [0, 1])
    axes.set_yticks([0, 1], [MUSIC, "jazz"])
    return made


@pytest.mark.parametrize("name", ["han.ttf", "han.otf"])
def test_a_font_of_the_system_that_has_them_is_used(name: str, only_own: Callable[[Path], None], tmp_path: Path) -> None:
    make_font(tmp_path / name, MUSIC)
    only_own(tmp_path / name)
    assert figures.pdf(figure(), tmp_path / "figure.pdf") == ""  # and no warning of a missing glyph, which would be an error
    assert b"TestHan" in (tmp_path / "figure.pdf").read_bytes()


def test_letters_that_no_font_has_are_told_by_their_codes(only_own: Callable[[Path], None], tmp_path: Path) -> None:
    made = figure()
    before = made.axes[0].get_xlim()
    assert set(figures.pdf(made, tmp_path / "figure.pdf")) == set(MUSIC)
    (axes,) = made.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [r"\u97f3\u6a02", "jazz"]
    assert axes.get_title("left") == r"\u97f3\u6a02 and jazz"
    assert axes.get_xlim() == before  # numbers below zero, whose sign is no letter of ASCII, stay as they are


def test_the_rest_is_left_alone(only_own: Callable[[Path], None]) -> None:
    made = figures.blank(3, 2)
    figures.quiet(made.subplots(), figures.PRINT, "Δ blues · naïve – Ω")
    assert fonts.fit(made) == ""
    assert made.axes[0].title.get_fontfamily() == ["sans-serif"]


def test_the_report_says_so_once(only_own: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "runs", classes=(MUSIC, SONG))
    assert report.main([str(tmp_path / "runs"), "--format", "latex", "--output", str(tmp_path / "paper")]) == 0
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "has 3 letters of the figures" in told
    assert "Install a font" in told
