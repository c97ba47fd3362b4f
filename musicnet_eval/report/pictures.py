"""Pictures out of run folders: checked, counted, and put into the page itself."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from musicnet_eval.leaderboard.text import plain

if TYPE_CHECKING:
    from musicnet_eval.leaderboard import Board, Run

MOST_CLASSES = 30
MOST_BYTES = 1_000_000  # of one picture
MOST_PICTURES = 3_000_000  # bytes of all pictures on a page
PNG = b"\x89PNG\r\n\x1a\n"


def spectrograms(board: Board) -> list[dict[str, Any]]:
    """Take one picture a class, for each data set from the first of its runs that has any."""
    found: dict[str, dict[str, Any]] = {}
    room = MOST_PICTURES
    for table in board.tables:
        for run in sorted((run for row in table.rows for run in row.runs), key=lambda run: run.name):
            if table.data not in found and (pictures := _pictures(run)):
                fitting = [picture for picture in pictures if (room := room - len(picture["image"])) > 0]
                found[table.data] = {
                    "data": table.data,
                    "run": run.name,
                    "pictures": fitting,
                    "left_out": len(pictures) - len(fitting),
                }
    return list(found.values())


def _pictures(run: Run) -> list[dict[str, str]]:
    folder = run.folder / "pictures"
    try:
        listed = json.loads((folder / "spectrograms.json").read_text(encoding="utf8"))
    except (OSError, ValueError, RecursionError):
        return []
    pictures: dict[str, dict[str, str]] = {}
    for entry in listed if isinstance(listed, list) else []:
        if not (isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in ("class", "file"))):
            continue
        name = plain(entry["class"])
        image = png(folder, entry["file"]) if name not in pictures else None
        if image:
            caption = plain(entry.get("caption") or entry.get("song") or "")
            pictures[name] = {"class": name, "caption": caption, "image": base64.b64encode(image).decode()}
    return list(pictures.values())[:MOST_CLASSES]


def png(folder: Path, file: str) -> bytes | None:
    """Read a picture that lies in the folder itself, is a PNG by its first bytes, and is not too large for the page."""
    try:
        path = (folder / file).resolve()
        if path.parent != folder or not path.is_file() or path.stat().st_size >= MOST_BYTES:
            return None
        image = path.read_bytes()
    except (OSError, ValueError):  # ValueError: a null byte in the name
        return None
    return image if image.startswith(PNG) else None
