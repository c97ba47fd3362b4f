"""A picture of a terminal program: run in a pseudo terminal, its screen drawn cell by cell (pip install pyte)."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

CELL = (8, 17)  # pixels
INK, PAPER = "#d7dce2", "#14171c"
NAMED = {
    "black": "#14171c",
    "red": "#e06c75",
    "green": "#98c379",
    "brown": "#e5c07b",
    "blue": "#61afef",
    "magenta": "#c678dd",
    "cyan": "#56b6c2",
    "white": "#d7dce2",
}
DOTS = ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (0, 3), (1, 3))  # column and row of each bit of a braille character

# What programs ask their terminal, and its answers. Its colour is not told: an answer that comes late is taken for keys.
QUESTIONS = {b"\x1b[6n": b"\x1b[1;1R", b"\x1b[c": b"\x1b[?62c"}


def screen(command: Sequence[str], keys: Sequence[bytes], columns: int, rows: int, wait: float) -> Any:
    """Run a command in a terminal, press keys, and give the screen (pyte's).

    Args:
        command: What is run.
        keys: Pressed one after another.
        columns: Of the terminal.
        rows: Of the terminal.
        wait: How long to look on after each key, seconds; four times as long before the first and after the last.
    """
    shown, stream = _emulator(columns, rows)
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"}
    process = subprocess.Popen(command, stdin=child, stdout=child, stderr=child, env=environment, start_new_session=True)
    os.close(child)
    try:
        _look_on(parent, stream, 4 * wait)
        for key in keys:
            os.write(parent, key)
            _look_on(parent, stream, wait)
        _look_on(parent, stream, 4 * wait)
    finally:
        os.killpg(process.pid, signal.SIGTERM)  # what it has started, too
        process.wait(timeout=10)
        os.close(parent)
    return shown


def _emulator(columns: int, rows: int) -> tuple[Any, Any]:
    """Make pyte's screen and stream, with what they lack of what programs send: scrolling, and going back a tab stop."""
    import pyte

    class Screen(pyte.Screen):  # type: ignore[misc]
        def scroll_up(self, count: int = 1) -> None:
            self._scroll(count or 1, (self.margins.bottom if self.margins else self.lines - 1), self.index)

        def scroll_down(self, count: int = 1) -> None:
            self._scroll(count or 1, (self.margins.top if self.margins else 0), self.reverse_index)

        def _scroll(self, count: int, line: int, move: Callable[[], None]) -> None:
            before = self.cursor.y
            for _ in range(count):
                self.cursor.y = line
                move()
            self.cursor.y = before

        def back_tab(self, count: int = 1) -> None:
            for _ in range(count or 1):
                self.cursor.x = max((stop for stop in self.tabstops if stop < self.cursor.x), default=0)

    more = {"S": "scroll_up", "T": "scroll_down", "Z": "back_tab"}

    class Stream(pyte.ByteStream):  # type: ignore[misc]
        csi = {**pyte.Stream.csi, **more}  # noqa: RUF012
        events = pyte.Stream.events | set(more.values())

    shown = Screen(columns, rows)
    return shown, Stream(shown)


def _look_on(parent: int, stream: Any, seconds: float) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if select.select([parent], [], [], left)[0]:
            try:
                data = os.read(parent, 65536)
            except OSError:  # it has ended
                return
            for asked, answer in QUESTIONS.items():
                if asked in data:
                    os.write(parent, answer)
            stream.feed(data)


def draw(shown: Any, path: Path) -> None:
    """Draw a screen as a PNG of few colours, without its last line, in which programs tell paths."""
    from matplotlib.font_manager import FontProperties, findfont

    mono = {w: ImageFont.truetype(findfont(FontProperties(family="DejaVu Sans Mono", weight=w)), 13) for w in ("normal", "bold")}
    width, height = CELL
    picture = Image.new("RGB", (shown.columns * width, (shown.lines - 1) * height), PAPER)
    pen = ImageDraw.Draw(picture)
    for row in range(shown.lines - 1):
        for column in range(shown.columns):
            cell = shown.buffer[row][column]
            ink, paper = _colour(cell.fg, INK), _colour(cell.bg, PAPER)
            if cell.reverse:
                ink, paper = paper, ink
            x, y = column * width, row * height
            if paper != PAPER:
                pen.rectangle((x, y, x + width - 1, y + height - 1), fill=paper)
            code = ord(cell.data[0]) if cell.data else 32
            if 0x2800 <= code < 0x2900:
                _braille(pen, code - 0x2800, x, y, ink)
            elif cell.data.strip():
                pen.text((x, y + 1), cell.data, font=mono["bold" if cell.bold else "normal"], fill=ink)
    picture.quantize(48).save(path, optimize=True)


def _braille(pen: Any, bits: int, x: int, y: int, ink: str) -> None:
    for bit, (column, row) in enumerate(DOTS):
        if bits >> bit & 1:
            left, top = x + 1 + 4 * column, y + 1 + 4 * row
            pen.rectangle((left, top, left + 1, top + 1), fill=ink)


def _colour(name: str, default: str) -> str:
    if name == "default":
        return default
    if name in NAMED:
        return NAMED[name]
    return f"#{name}" if len(name) == 6 else NAMED.get(name.removeprefix("bright"), default)
