"""A sweep's leaderboard as a W&B run of its own, made at the sweep's end. Layer 5.

job_type = `leaderboard`, group = that of the sweep's runs, id = kept in the sweep's `wandb.json`, so that a sweep that is asked
for again updates its leaderboard. It is made of the files of the runs: which processes trained them does not matter. Logged:
    `leaderboard`                one row a configuration: every column of leaderboard.csv
    `leaderboard/<data set>`     bars: the mean of each configuration of a data set, best first
    `leaderboard/report`         report.html, if it is not larger than `REPORT_MEGABYTES`
    summary                      `best/<data set>`, `mean/<data set>`, `metric`, `configurations`, `runs`, `failed`
Whatever goes wrong is said on stderr, and the sweep is none the worse for it (`wandb_run`).
"""

from __future__ import annotations

import shlex
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from musicnet_eval import leaderboard, records, wandb_files, wandb_run
from musicnet_eval.errors import MusicnetError
from musicnet_eval.leaderboard.tables import COLUMNS

if TYPE_CHECKING:
    from musicnet_eval.leaderboard import Board, Table

KEPT = "wandb.json"  # beside the runs: which W&B run is their leaderboard, and where it lies
TABLE, REPORT = "leaderboard", "leaderboard/report"
REPORT_MEGABYTES = 20.0
MOST_BARS = 50


def publish(folder: Path, board: Board, page: Path, options: Mapping[str, Any]) -> None:
    """Log a sweep's leaderboard to W&B, unless none of its runs was logged there.

    Args:
        folder: Where the sweep's runs lie.
        board: Their leaderboard.
        page: Their report.
        options: The node `logger.wandb` of the sweep's config.
    """
    if not any(logged(run.record["config"]) for table in board.tables for row in table.rows for run in row.runs):
        return
    try:
        run = _start(folder, board, options)
    except MusicnetError as error:
        print(f"no leaderboard in W&B: {error}", file=sys.stderr)
        return
    wandb_run.bounded("log the leaderboard", lambda: _log(run, board, page))
    told = wandb_run.finish()
    if told is not None:
        with wandb_run.guarded(f"write {KEPT}"):
            records.write_json(folder / KEPT, told)
        if told["mode"] == "offline":
            beside = shlex.quote(str(Path(told["folder"]).parent))
            print(f"W&B: all that lies there: {wandb_files.SYNC} {beside}/*run-*", flush=True)


def logged(config: Mapping[str, Any]) -> bool:
    """Say whether a run of this config was logged to W&B."""
    loggers = config.get("logger")
    return isinstance(loggers, Mapping) and bool(loggers.get("wandb"))


def _start(folder: Path, board: Board, options: Mapping[str, Any]) -> Any:
    names = ("offline", "init_seconds", "finish_seconds", "settings")
    name = folder.resolve().name
    return wandb_run.start(
        Path(options.get("save_dir") or folder.parent),
        **{key: options[key] for key in names if key in options},
        id=_identity(folder),
        project=options.get("project") or wandb_run.PROJECT,
        entity=options.get("entity"),
        name=f"leaderboard of {name}"[:128],
        group=name[:128] if options.get("group") is None else options["group"],
        job_type=wandb_run.LEADERBOARD,
        tags=[wandb_run.LEADERBOARD],
        config={"metric": board.metric},
    )


def _identity(folder: Path) -> str:
    """Give the id of a folder's leaderboard: that of an earlier time, else a new one."""
    try:
        return str(records.read_json(folder / KEPT)["id"])
    except (MusicnetError, KeyError):
        return uuid.uuid4().hex[:12]


def _log(run: Any, board: Board, page: Path) -> None:
    import wandb

    shown: dict[str, Any] = {TABLE: wandb.Table(columns=list(COLUMNS), data=rows(board), allow_mixed_types=True)}
    tables = named(board)
    shown |= {f"{TABLE}/{name}": _bars(table) for name, table in tables.items()}
    if page.stat().st_size <= REPORT_MEGABYTES * 1e6:
        shown[REPORT] = wandb.Html(page.read_text(encoding="utf8"), inject=False)
    run.log(shown)
    told: dict[str, Any] = {f"best/{name}": table.rows[0].label for name, table in tables.items()}
    told |= {f"mean/{name}": table.rows[0].mean for name, table in tables.items()}
    every = [row for table in board.tables for row in table.rows]
    counts = {"configurations": len(every), "runs": sum(len(row.runs) for row in every)}
    failed = sum(listed.state == "failed" for listed in board.failures)
    run.summary.update({**told, **counts, "failed": failed, "metric": board.metric})


def named(board: Board) -> dict[str, Table]:
    """Name the tables by their data set; where it has several protocols, by the protocol too."""
    sets = [table.data for table in board.tables]
    return {t.data if sets.count(t.data) == 1 else f"{t.data} {t.protocol}": t for t in board.tables}


def rows(board: Board) -> list[list[Any]]:
    """Give the leaderboard's rows, a cell for each of `leaderboard.tables.COLUMNS`; lists become text."""
    flat = [{**row["choices"], **row} for row in leaderboard.as_rows(board)]
    return [[_cell(row.get(column)) for column in COLUMNS] for row in flat]


def _cell(value: Any) -> Any:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else value


def _bars(table: Table) -> Any:
    import wandb

    shown = [[row.label, row.mean] for row in table.rows[:MOST_BARS]]
    return wandb.plot.bar(wandb.Table(columns=["configuration", "mean"], data=shown), "configuration", "mean", title=table.title)
