"""Embedded data sets on disk: built once from the installed scores, listed in a manifest, verified on each later use.

Layer 5, after `rendering.py`. The package ships neither scores nor sound: only which pieces make a class, and the fingerprints of
their notes (`checksums/NAME.json`). Each class has its own folder, so that another choice of classes adds to what is there.

`python -m musicnet_eval.embedded` is the worker that the build starts, one a core: a line in, a piece rendered, a line out.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from filelock import FileLock

from musicnet_eval.contracts import Track
from musicnet_eval.errors import DataError, nearest
from musicnet_eval.pieces import Embedded, Piece, pieces, shipped
from musicnet_eval.rendering import COLUMNS, RECIPE, render
from musicnet_eval.scores import package_file


# --- the build: once, under a lock, by one worker process a core ---------------------------------------------------------------
def work() -> None:
    """Render the pieces that standard input gives, one JSON list `[root, [label, name, …]]` a line; answer each in one line."""
    for line in sys.stdin:
        root, piece = json.loads(line)
        try:
            answer: dict[str, Any] = {"rows": render(Piece(*piece), Path(root))}
        except DataError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)


def build(chosen: Sequence[Piece], root: Path, workers: int, done: Callable[[], object] = lambda: None) -> list[dict[str, Any]]:
    """Render pieces by several worker processes; give their manifest rows in the order of the pieces.

    Processes, since the synthesiser holds Python's lock; started as commands, since a forked copy of a program that runs torch is
    unsafe and a spawned one would run the caller's script again.

    Args:
        chosen: Pieces to render.
        root: Folder of the data set.
        workers: Number of processes.
        done: Is called after each piece.
    """
    here = threading.local()
    running: list[subprocess.Popen[str]] = []

    def start() -> None:
        command = [sys.executable, "-m", "musicnet_eval.embedded"]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
        here.worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        running.append(here.worker)

    def ask(piece: Piece) -> list[dict[str, Any]]:
        with contextlib.suppress(BrokenPipeError):
            here.worker.stdin.write(json.dumps([str(root), piece]) + "\n")
            here.worker.stdin.flush()
        line = here.worker.stdout.readline()
        if not line:
            raise DataError(f"The process that rendered {piece.label}/{piece.name} died; its last words are above. Call again.")
        answer = json.loads(line)
        if "error" in answer:
            raise DataError(answer["error"])
        done()
        rows: list[dict[str, Any]] = answer["rows"]
        return rows

    with ThreadPoolExecutor(workers, initializer=start) as pool:
        try:
            return [row for rows in pool.map(ask, chosen) for row in rows]
        finally:
            pool.shutdown(cancel_futures=True)
            for worker in running:
                worker.communicate()


@contextlib.contextmanager
def reporting(total: int, what: str) -> Iterator[Callable[[], object]]:
    """Show progress on standard error: a bar on a terminal, else one line at the start and one at the end."""
    from rich.console import Console
    from rich.progress import Progress

    console, began = Console(stderr=True), time.monotonic()
    if console.is_terminal:
        with Progress(console=console) as progress:
            task = progress.add_task(what, total=total)
            yield lambda: progress.advance(task)
    else:
        print(f"{what}: {total} pieces, about a minute, once", file=sys.stderr)
        yield lambda: None
    print(f"{what}: done in {time.monotonic() - began:.0f} s", file=sys.stderr)


def read_manifest(root: Path) -> list[dict[str, str]]:
    """Read the rows of `root/manifest.csv`; none if there is no such file."""
    path = root / "manifest.csv"
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def write_manifest(root: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write `root/manifest.csv` whole or not at all."""
    part = root / f"manifest.{os.getpid()}.part"
    with part.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.DictWriter(lines, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    part.replace(root / "manifest.csv")


def built(root: Path, label: str) -> list[dict[str, str]]:
    """Give the manifest rows of a class if it is built: in the manifest, and with its folder there."""
    return [row for row in read_manifest(root) if row["label"] == label] if (root / label).is_dir() else []


def ensure(embedded: Embedded, root: Path, classes: Sequence[str]) -> None:
    """Build the classes that are not there yet; of several processes that ask at once, one builds and the others wait."""
    if all(built(root, label) for label in classes):
        return
    for package in ("music21", "pretty_midi", "midirenderer"):
        package_file(package, "__init__.py")
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / ".lock"):
        missing = [label for label in classes if not built(root, label)]
        chosen = [piece for label in missing for piece in pieces(embedded, label)]
        if not chosen:
            return
        with reporting(len(chosen), f"rendering {', '.join(missing)} into {root}") as done:
            rows = build(chosen, root, os.cpu_count() or 1, done)
        write_manifest(root, [*(row for row in read_manifest(root) if row["label"] not in missing), *rows])


def verify(embedded: Embedded, root: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Check size and SHA-256 of every clip against the manifest.

    Raises:
        DataError: clips are missing or damaged, or another release made them; names the first and the remedy.
    """
    current = {piece["notes"] for label in shipped(embedded.name).values() for piece in label.values()}
    for row in rows:
        path = root / row["path"]
        remedy = f"Remove the folder {root / row['label']} and call again: it will be rendered anew (about 10 s)."
        if row["recipe"] != str(RECIPE) or row["notes"] not in current:
            raise DataError(f"Clip {path} was rendered by another release of musicnet_eval. {remedy}")
        if not path.is_file():
            raise DataError(f"Clip {path} is missing. {remedy}")
        audio = path.read_bytes()
        if len(audio) != int(row["bytes"]) or hashlib.sha256(audio).hexdigest() != row["sha256"]:
            raise DataError(f"Clip {path} is damaged: its checksum differs from the one in {root / 'manifest.csv'}. {remedy}")


def tracks(embedded: Embedded, root: Path | str, classes: Sequence[str]) -> list[Track]:
    """List the clips of an embedded data set, rendered under `root` on first use and verified on each later one.

    Args:
        embedded: The data set.
        root: Its folder; each class has its own subfolder, and `manifest.csv` lists all that is there.
        classes: Names out of the set's.

    Raises:
        DataError: an unknown class, a missing package, another corpus, or a damaged clip.
    """
    for label in classes:
        if label not in embedded.classes:
            raise DataError(f"Unknown class {label!r} in data.classes; {nearest(label, embedded.classes)}")
    if len(set(classes)) < len(classes) or not classes:
        raise DataError(f"data.classes={list(classes)}: name at least one class, each once.")
    root = Path(root)
    ensure(embedded, root, classes)
    rows = [row for label in classes for row in built(root, label)]
    verify(embedded, root, rows)
    return [Track(row["path"], root / row["path"], (row["label"],), row["group"]) for row in rows]


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        work()
