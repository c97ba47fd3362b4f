"""A W&B workspace that compares the models of a sweep: `musicnet-dashboard`. Layer 6; imports no torch.

It is laid out by the sweep's own records: what was varied becomes the axes, groups and colours of the panels. What is drawn is
named as in `wandb_run` and `wandb_sweep`. wandb-workspaces (extra `dashboard`) turns the panels into W&B's own JSON; with
`--save` that goes into a file, and nothing is asked of a server.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from musicnet_eval import leaderboard, records, wandb_run, wandb_sweep
from musicnet_eval.errors import ConfigError, MusicnetError, RecordError, TrainingError
from musicnet_eval.leaderboard.labels import SHOWN

if TYPE_CHECKING:
    from musicnet_eval.leaderboard import Board

KEPT = "dashboard.json"  # beside the runs: which view of which project is theirs, so that it is updated
MOST_RUNS = 100  # drawn in one panel
CONFUSION_CHART, LINES_CHART, BAR_CHART = "wandb/confusion_matrix/v1", "wandb/lineseries/v0", "wandb/bar/v0"
DESCRIPTION = """\
Build a workspace in Weights & Biases that compares the models of a sweep whose runs were logged there (logger=wandb):
leaderboard, parallel coordinates from settings to score, bars by backbone, by loss and by whatever else was varied,
score against size and time, curves grouped by configuration, confusion matrices, reliability, tables of classes and
songs, the run table grouped likewise.

Asked for again, it updates the same workspace. Needs the extra: pip install 'musicnet-eval[dashboard]'."""
EPILOG = """\
examples:
  musicnet-dashboard runs/tradition                           # in the project and team that its runs were logged to
  musicnet-dashboard runs/tradition --project music --entity mylab
  musicnet-dashboard runs/tradition --save dashboard.json     # no server, no key: W&B's JSON of the workspace

exit codes:
  0  saved; the address, or the file, is printed
  1  W&B cannot be reached, or refuses
  2  no finished run, none that was logged to W&B, no API key, or the extra is not installed"""


@dataclass(frozen=True)
class Sweep:
    """What the panels are laid out by.

    Args:
        name: Of the folder.
        project: W&B's project.
        entity: W&B's team or user; empty: the account's own.
        groups: W&B's groups of the runs.
        varied: Config keys by which the configurations differ, as W&B has them; the backbone always.
        charts: The leaderboard's charts.
        metric: What ranks the models.
    """

    name: str
    project: str
    entity: str
    groups: tuple[str, ...]
    varied: tuple[str, ...]
    charts: tuple[str, ...]
    metric: str
    multilabel: bool = False  # songs of several labels have no confusion matrix


# --- what the sweep is --------------------------------------------------------------------------------------------------------


def read(folder: Path, metric: str, project: str | None = None, entity: str | None = None) -> Sweep:
    """Read from its records where a sweep was logged, and what it varied.

    Raises:
        MusicnetError: No finished run, none that was logged to W&B, or a metric that no run has.
    """
    if project is not None and (not project or set(project) & set("/\\#?%: ")):
        raise ConfigError(f"--project {project!r} must be a name without blanks and / \\ # ? % :, as W&B takes it.")
    board = leaderboard.collect([folder], metric)
    runs = [run for table in board.tables for row in table.rows for run in row.runs]
    told = [found for run in runs if (found := _logged(run.record, run.folder)) is not None]
    if not board.tables:
        raise RecordError(f"no finished run at or below '{folder}'. Give the folder of a sweep.")
    if not told:
        raise RecordError(f"no run at or below '{folder}' was logged to W&B. Train with logger=wandb; done runs: run.force=true.")
    places = {(one["project"], one["entity"]) for one in told}
    places -= {(p, "") for p, e in places if e}  # runs that were logged offline do not know their team yet
    if len(places) > 1 and not (project and entity):
        listed = ", ".join(sorted(f"{e or '(own)'}/{p}" for p, e in places))
        raise RecordError(f"The runs below '{folder}' were logged to several places ({listed}). Say --project and --entity.")
    found_project, found_entity = sorted(places)[0]
    return Sweep(
        name=folder.resolve().name,
        project=project or found_project,
        entity=entity or found_entity or os.environ.get("WANDB_ENTITY", ""),
        groups=tuple(sorted({one["group"] for one in told})),
        varied=_varied(board),
        charts=tuple(f"{wandb_sweep.TABLE}/{name}" for name in wandb_sweep.named(board)),
        metric=metric,
        multilabel=all(run.record["facts"].get("multilabel") for run in runs),
    )


def _logged(record: Mapping[str, Any], folder: Path) -> dict[str, str] | None:
    """Say where a run was logged; None if it was not."""
    if not wandb_sweep.logged(record["config"]):
        return None
    asked, told = record["config"]["logger"]["wandb"], record["facts"].get("wandb") or {}
    if told.get("mode") == "disabled":
        return None
    parts = urlsplit(str(told.get("url") or "")).path.strip("/").split("/")
    return {
        "project": str(told.get("project") or asked.get("project") or wandb_run.PROJECT),
        "group": str(told.get("group") or asked.get("group") or folder.parent.name),
        "entity": str(asked.get("entity") or (parts[0] if len(parts) > 1 else "")),
    }


def _varied(board: Board) -> tuple[str, ...]:
    """List the config keys that tell the configurations apart; where these do not, the configuration itself, a hash, is one."""
    rows = [row for table in board.tables for row in table.rows]
    whole = [row.runs[0].record for row in rows]
    flat = [
        dict(_leaves({**told["config"], "choices": told["choices"], "configuration": told["configuration"]})) for told in whole
    ]

    def differ(name: str) -> bool:
        return len({leaves.get(name) for leaves in flat}) > 1

    found = {"choices.data": None} if differ("choices.data") else {}
    for key in dict.fromkeys(key for row in rows for key in row.settings):
        if key in SHOWN:
            below = [f"choices.{key}"]
        else:  # of a part that was chosen as a whole (optimizer=sgd), its `_target_` or the first leaf that differs
            below = sorted({name for leaves in flat for name in leaves if name == key or name.startswith(f"{key}.")})
        name = next((name for name in below if differ(name) or key == "backbone"), None)
        if name is not None and (key == "backbone" or len({row.settings.get(key) for row in rows}) > 1):
            found[name] = None
    if len({tuple(leaves.get(name) for name in found) for leaves in flat}) < len(rows):
        found["configuration"] = None
    return tuple(found)


def _leaves(node: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if not isinstance(node, Mapping):
        yield name, str(node)
        return
    for key, value in node.items():
        yield from _leaves(value, f"{name}.{key}".lstrip("."))


# --- panels -------------------------------------------------------------------------------------------------------------------


def workspace(sweep: Sweep) -> Any:
    """Lay the panels out as a workspace of wandb-workspaces.

    Raises:
        RecordError: It is not installed.
    """
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise RecordError("musicnet-dashboard needs wandb-workspaces. Install it with: pip install 'musicnet-eval[dashboard]'")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it still writes its validators as pydantic 1 would
        import wandb_workspaces.workspaces as ws

        sections = [
            _section("Leaderboard", _leaderboard(sweep), columns=1, rows=1),
            _section("Models compared", _comparison(sweep), columns=2),
            _section("Curves by configuration", _curves(sweep)),
            _section("Test: confusion and reliability", _test_charts(sweep), columns=2, rows=1),
            _section("Test: classes and songs", _test_tables(), columns=1, rows=1, is_open=False),
            _section("Data: examples and suspect labels", _data(), columns=1, rows=1, is_open=False),
        ]
        score = f"summary:{sweep.metric}"
        columns = ["run:displayName", "run:state", score, *(f"config:{_nested(key)}" for key in sweep.varied)]
        columns += [f"summary:{name}" for name in ("best/gap/segment/accuracy", "parameters", "seconds/fit")]
        return ws.Workspace(
            entity=sweep.entity,
            project=sweep.project,
            name=f"Models of {sweep.name}",
            sections=sections,
            settings=ws.WorkspaceSettings(x_axis=wandb_run.EPOCH, max_runs=MOST_RUNS),
            runset_settings=ws.RunsetSettings(
                filters=[ws.Metric("Group").isin(list(sweep.groups))],
                groupby=[ws.Config(key) for key in sweep.varied],
                order=[ws.Ordering(ws.Summary(sweep.metric), ascending=leaderboard.lower_is_better(sweep.metric))],
                pinned_columns=columns,
            ),
        )


def _nested(key: str) -> str:
    """Name a nested key as W&B stores it: `optimizer.lr` is `optimizer.value.lr`."""
    first, dot, rest = key.partition(".")
    return f"{first}.value{dot}{rest}"


def _section(name: str, panels: list[Any], *, columns: int = 3, rows: int = 2, is_open: bool = True) -> Any:
    import wandb_workspaces.workspaces as ws

    for place, panel in enumerate(panels):  # wandb-workspaces would draw them: the same sweep gives the same workspace
        panel._id = hashlib.sha256(f"{name} {place}".encode()).hexdigest()[:11]
    layout = ws.SectionLayoutSettings(columns=columns, rows=rows)
    return ws.Section(name=name, panels=panels, is_open=is_open, layout_settings=layout)


def _leaderboard(sweep: Sweep) -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    bars = [
        _chart(
            f"{chart}_table", BAR_CHART, {"label": "configuration", "value": "mean"}, f"{chart.partition('/')[2]}: {sweep.metric}"
        )
        for chart in sweep.charts
    ]
    page = wr.MediaBrowser(title="The sweep's own report", media_keys=[wandb_sweep.REPORT], num_columns=1)
    return [_table(wandb_sweep.TABLE), *bars, page]


def _comparison(sweep: Sweep) -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    score, gap = wr.SummaryMetric(sweep.metric), wr.SummaryMetric("best/gap/segment/accuracy")
    lower = leaderboard.lower_is_better(sweep.metric) or None
    column = wr.ParallelCoordinatesPlotColumn
    ends = [column(metric=gap, display_name="train-test gap"), column(metric=score, display_name=sweep.metric, inverted=lower)]
    settings = [column(metric=wr.Config(key), display_name=_short(key)) for key in sweep.varied]
    panels: list[Any] = [wr.ParallelCoordinatesPlot(title=f"From settings to {sweep.metric}", columns=[*settings, *ends])]
    by = dict.fromkeys(("choices.backbone", "choices.loss", *sweep.varied))
    for key in by:
        title = f"{sweep.metric} by {_short(key)}: mean, least to most"
        group: dict[str, Any] = {"groupby": wr.Config(key), "groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
        panels.append(wr.BarPlot(title=title, metrics=[sweep.metric], **group))
    for name, axis in (("parameters", "parameters"), ("seconds/fit", "training time, seconds")):
        panels.append(wr.ScatterPlot(title=f"{sweep.metric} against {axis}", x=wr.SummaryMetric(name), y=score, log_x=True))
    return panels


def _short(key: str) -> str:
    return key.removeprefix("choices.").removesuffix("._target_")


def _curves(sweep: Sweep) -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    level = "/".join(sweep.metric.split("/")[1:])
    shown = {f"val/{level}": "validation", "val/segment/accuracy": "validation, segments", "val/segment/log_loss": "validation"}
    shown |= {"train/segment/accuracy": "training", "train/segment/loss": "training, the run's own loss"}
    shown |= {"gap/segment/accuracy": "training above validation", "lr": "learning rate"}
    return [
        wr.LinePlot(title=f"{key} ({what})", x=wandb_run.EPOCH, y=[key], groupby_aggfunc="mean", groupby_rangefunc="minmax")
        for key, what in shown.items()
    ]


def _test_charts(sweep: Sweep) -> list[Any]:
    counts = {name: name for name in ("Actual", "Predicted", "nPredictions")}
    lines = {"step": "step", "lineKey": "lineKey", "lineVal": "lineVal"}
    confusion = _chart(f"{wandb_run.CONFUSION}_table", CONFUSION_CHART, counts, "Test songs: label and what is said")
    reliability = _chart(f"{wandb_run.RELIABILITY}_table", LINES_CHART, lines, "Reliability: claimed probability and what holds")
    return [reliability] if sweep.multilabel else [confusion, reliability]


def _test_tables() -> list[Any]:
    return [_table(name) for name in (wandb_run.CLASSES, wandb_run.PREDICTIONS, wandb_run.HARDEST)]


def _data() -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    pictures = wr.MediaBrowser(title="A spectrogram of each class", media_keys=[wandb_run.EXAMPLES], num_columns=6)
    return [pictures, _table(wandb_run.SUSPECTS)]


def _chart(table: str, chart: str, fields: dict[str, str], title: str) -> Any:
    import wandb_workspaces.reports.v2 as wr

    query = {"summaryTable": {"tableKey": table}}
    return wr.CustomChart(query=query, chart_name=chart, chart_fields=fields, chart_strings={"title": title})


def _table(name: str) -> Any:
    import wandb_workspaces.reports.v2 as wr

    return wr.WeavePanelSummaryTable(table_name=name)


# --- saving -------------------------------------------------------------------------------------------------------------------


def as_json(made: Any) -> str:
    """Write a workspace as W&B's JSON: what is sent when it is saved."""
    text = made._to_model().model_dump_json(by_alias=True, exclude_none=True)
    return json.dumps(json.loads(text), indent=1, ensure_ascii=False) + "\n"


def save(made: Any, folder: Path) -> str:
    """Save a workspace in W&B, in place of the one that was saved for the folder before, and give its address.

    Raises:
        RecordError: There is no API key.
        TrainingError: W&B cannot be reached, or refuses.
    """
    import wandb

    address = "its server"
    try:
        address = wandb.setup(wandb.Settings(silent=True)).settings.base_url
        if not (os.environ.get("WANDB_API_KEY") or wandb.login(prompt=False, verify=False)):
            raise RecordError("There is no API key. Run `wandb login` once, set WANDB_API_KEY, or use --save FILE.")
        made.entity = made.entity or wandb.Api().default_entity or ""
        place = {"entity": made.entity, "project": made.project}
        earlier = _earlier(folder)
        if place.items() <= earlier.items():
            made._internal_name, made._internal_id = earlier["name"], earlier["id"]
        made.save()
        told = {**place, "name": made._internal_name, "id": made._internal_id, "url": made.url}
    except MusicnetError:
        raise
    except Exception as error:  # whatever wandb, its service or the server raises
        with wandb_run.guarded("leave its service"):
            wandb_run.leave_service()  # it would go on trying, and keep this command from ending
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        if "did not respond in time" in reason:  # wandb calls its own process busy, which still waits for the server
            reason = f"no answer from {address}"
        raise TrainingError(f"W&B did not take the workspace ({reason}). Or use --save FILE.") from None
    records.write_json(folder / KEPT, told)
    return str(told["url"])


def _earlier(folder: Path) -> dict[str, str]:
    try:
        told = records.read_json(folder / KEPT)
    except RecordError:
        return {}
    return {key: str(told.get(key, "")) for key in ("entity", "project", "name", "id")}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `musicnet-dashboard` and give its exit code."""
    lines = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("musicnet-dashboard", description=DESCRIPTION, epilog=EPILOG, formatter_class=lines)
    parser.add_argument("folder", metavar="SWEEP_DIR", type=Path, help="a folder that holds the runs of a sweep")
    parser.add_argument("--project", metavar="P", help="W&B's project; default: the one that the runs were logged to")
    parser.add_argument("--entity", metavar="E", help="W&B's team or user; default: that of the runs, else WANDB_ENTITY")
    parser.add_argument("--metric", default=leaderboard.METRIC, help=f"what is compared; default: {leaderboard.METRIC}")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the workspace there as JSON, and ask no server")
    options = parser.parse_args(arguments)
    try:
        made = workspace(read(options.folder, options.metric, options.project, options.entity))
        if options.save:
            records.write_text(options.save, as_json(made))
            print(options.save)
        else:
            print(save(made, options.folder))
    except MusicnetError as error:
        print(f"musicnet-dashboard: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"musicnet-dashboard: '{error.filename}' cannot be written ({error.strerror}).", file=sys.stderr)
        return MusicnetError.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
