"""The pictures of docs/wandb.md: what the panels of a W&B workspace show, drawn from the files that runs leave offline.

    musicnet-train -m backbone=stats_linear,mobilenetv3_small_050 loss=cross_entropy,balanced_trusted seed=0,1 \
        trainer.max_epochs=6 spectrogram.n_mels=64 spectrogram.hop_length=1024 data.batch_size=16 optimizer.lr=3e-3 logger=wandb
    python -m experiments.dashboards.pictures runs/wandb          # pip install pyte

The files are read by W&B's own reader, `wandb leet inspect`; one picture is its terminal, `wandb leet`. All others are drawn here
by matplotlib, panel by panel of `musicnet-dashboard`: they show which numbers stand where, not what W&B's site looks like.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from experiments.dashboards import terminal
from musicnet_eval import wandb_run, wandb_sweep

PICTURES = Path(__file__).resolve().parents[2] / "docs" / "pictures"
FOOT = "No screenshot: drawn by experiments/dashboards/pictures.py from what was logged. W&B's site draws it in its own look."
SCORE, GAP = "test/song/accuracy", "best/gap/segment/accuracy"
COLOURS = ("#0b69b7", "#c2410c", "#2f7d32", "#7b4ea3")


@dataclass(frozen=True)
class Logged:
    """One W&B run as its own reader gives it.

    Args:
        files: Its folder of media.
        name: As shown.
        job: Its job type.
        config: Nested.
        summary: By key.
        history: One dictionary a row.
    """

    files: Path
    name: str
    job: str
    config: dict[str, Any]
    summary: dict[str, Any]
    history: list[dict[str, Any]]

    @property
    def label(self) -> str:
        """Name the configuration."""
        return f"{self.config['choices']['backbone']} · {self.config['choices']['loss']}"

    def table(self, key: str) -> tuple[list[str], list[list[Any]]]:
        """Give a logged table's columns and rows."""
        told = json.loads((self.files / self.summary[key]["path"]).read_text(encoding="utf8"))
        return told["columns"], told["data"]


def read(file: Path) -> Logged:
    """Read an offline run with `wandb leet inspect`."""

    def inspect(*options: str) -> str:
        command = [sys.executable, "-m", "wandb", "leet", "inspect", *options, "--json", str(file)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    lines = [json.loads(line) for line in inspect().splitlines()]
    whole = json.loads(inspect("--summary"))
    (run,) = (line["run"] for line in lines if line["type"] == "run")
    history = [line["history"]["item"] for line in lines if line["type"] == "history"]
    return Logged(file.parent / "files", whole["name"], run.get("job_type", ""), whole["config"], whole["summary"], history)


# --- panels -------------------------------------------------------------------------------------------------------------------


def sheet(title: str, width: float, height: float, columns: int, rows: int = 1, **ratios: Sequence[float]) -> tuple[Figure, Any]:
    """Make a figure with a title, its place in the workspace, and the foot that says what it is."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(rect=(0, 0.04, 1, 0.94))  # type: ignore[union-attr]
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    figure.text(0.01, 0.008, FOOT, fontsize=7, color="#555")
    return figure, figure.subplots(rows, columns, gridspec_kw=ratios, squeeze=False)


def quiet(axes: Axes, title: str) -> Axes:
    """Give a panel its title and little else."""
    axes.set_title(title, fontsize=9, loc="left")
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def parallel(axes: Axes, runs: Sequence[Logged]) -> None:
    """Draw parallel coordinates from settings to score."""
    names = ("backbone", "loss", "train-test gap", SCORE)
    values = [[r.config["choices"]["backbone"], r.config["choices"]["loss"], r.summary[GAP], r.summary[SCORE]] for r in runs]
    places = []
    for column in zip(*values, strict=True):
        words = sorted(set(column)) if isinstance(column[0], str) else None
        low, high = (0, len(words) - 1) if words else (min(column), max(column))
        at = [words.index(v) if words else v for v in column]
        places.append([(v - low) / ((high - low) or 1) for v in at])
        x = len(places) - 1
        for place, text in (
            [(i / max(1, len(words) - 1), w) for i, w in enumerate(words)] if words else [(0, f"{low:.2f}"), (1, f"{high:.2f}")]
        ):
            axes.text(
                x + 0.03, place, text, fontsize=8, va="center", bbox={"fc": "white", "ec": "none", "pad": 0.6, "alpha": 0.8}
            )
    for i in range(len(runs)):
        axes.plot(range(4), [column[i] for column in places], color=_shade(places[-1][i]), linewidth=1.6)
    axes.set_xticks(range(4), names)
    axes.set_xlim(-0.1, 3.35)
    axes.set_yticks([])
    for x in range(4):
        axes.axvline(x, color="#999", linewidth=0.8, zorder=0)
    quiet(axes, f"From settings to {SCORE}").spines[:].set_visible(False)


def _shade(share: float) -> tuple[float, float, float]:
    return (0.15 + 0.7 * (1 - share), 0.35 + 0.25 * (1 - share), 0.75 * share + 0.1)


def bars(axes: Axes, groups: dict[str, list[float]], title: str) -> None:
    """Draw a bar a group: the mean, from lowest to highest."""
    order = sorted(groups, key=lambda name: statistics.fmean(groups[name]))
    means = [statistics.fmean(groups[name]) for name in order]
    spread = [
        [m - min(groups[n]) for n, m in zip(order, means, strict=True)],
        [max(groups[n]) - m for n, m in zip(order, means, strict=True)],
    ]
    axes.barh(order, means, xerr=spread, color=COLOURS[0], ecolor="#333", height=0.6, capsize=3)
    for y, value in enumerate(means):
        axes.text(0.01 * max(means), y, f"{value:.3f}", va="center", color="white", fontsize=8)
    quiet(axes, title)


def grouped(runs: Sequence[Logged], key: Callable[[Logged], str], value: str = SCORE) -> dict[str, list[float]]:
    """Collect a number of the summary by group."""
    found = defaultdict(list)
    for run in runs:
        found[key(run)].append(run.summary[value])
    return dict(found)


def curves(axes: Axes, runs: Sequence[Logged], key: str, title: str) -> None:
    """Draw a line a configuration: the mean over its seeds, shaded from lowest to highest."""
    labels = sorted({run.label for run in runs})
    for label, colour in zip(labels, COLOURS, strict=False):
        by_epoch = defaultdict(list)
        for row in (row for run in runs if run.label == label for row in run.history if key in row):
            by_epoch[row[wandb_run.EPOCH]].append(row[key])
        epochs = sorted(by_epoch)
        axes.plot(epochs, [statistics.fmean(by_epoch[e]) for e in epochs], color=colour, label=label, marker="o", markersize=3)
        axes.fill_between(
            epochs, [min(by_epoch[e]) for e in epochs], [max(by_epoch[e]) for e in epochs], color=colour, alpha=0.18, linewidth=0
        )
    quiet(axes, title).set_xlabel("epoch", fontsize=8)


# --- pictures -----------------------------------------------------------------------------------------------------------------


def models(runs: Sequence[Logged]) -> Figure:
    """Draw the section "Models compared"."""
    figure, axes = sheet("Section “Models compared”", 11, 5.6, 2, 2, width_ratios=(1.5, 1))
    parallel(axes[0, 0], runs)
    bars(axes[0, 1], grouped(runs, lambda run: run.config["choices"]["backbone"]), f"{SCORE} by backbone: mean, least to most")
    bars(axes[1, 1], grouped(runs, lambda run: run.config["choices"]["loss"]), f"{SCORE} by loss: mean, least to most")
    for label, colour in zip(sorted({run.label for run in runs}), COLOURS, strict=False):
        own = [run for run in runs if run.label == label]
        axes[1, 0].scatter([r.summary["seconds/fit"] for r in own], [r.summary[SCORE] for r in own], color=colour, label=label)
    axes[1, 0].legend(fontsize=8, frameon=False)
    axes[1, 0].set_xlabel("seconds/fit", fontsize=8)
    quiet(axes[1, 0], f"{SCORE} against training time, seconds")
    return figure


def history(runs: Sequence[Logged]) -> Figure:
    """Draw the section "Curves by configuration"."""
    figure, axes = sheet("Section “Curves by configuration”", 11, 5.4, 3, 2)
    keys = (
        "val/song/accuracy",
        "val/segment/log_loss",
        "gap/segment/accuracy",
        "train/segment/accuracy",
        "train/segment/loss",
        "lr",
    )
    for panel, key in zip(axes.flat, keys, strict=True):
        curves(panel, runs, key, key)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper right", ncols=2, fontsize=8, frameon=False)
    return figure


def one_run(run: Logged) -> Figure:
    """Draw what one run shows once it is tested."""
    figure, axes = sheet(f"Sections “Test” and “Data” of one run: {run.name}", 11, 6.2, 3, 2, height_ratios=(1.5, 1))
    _, counts = run.table(f"{wandb_run.CONFUSION}_table")
    classes = list(dict.fromkeys(row[0] for row in counts))
    grid = [[next(n for true, said, n in counts if (true, said) == (a, b)) for b in classes] for a in classes]
    axes[0, 0].imshow(grid, cmap="Blues")
    for y, row in enumerate(grid):
        for x, n in enumerate(row):
            axes[0, 0].text(
                x, y, n, ha="center", va="center", fontsize=7, color="white" if n > max(map(max, grid)) / 2 else "#222"
            )
    axes[0, 0].set_xticks(range(len(classes)), classes, rotation=40, ha="right")
    axes[0, 0].set_yticks(range(len(classes)), classes)
    quiet(axes[0, 0], "test/confusion_matrix: label (rows), said")
    columns, rows = run.table(f"{wandb_run.RELIABILITY}_table")
    step, name, value = (columns.index(key) for key in ("step", "lineKey", "lineVal"))
    for line in dict.fromkeys(row[name] for row in rows):
        own = [row for row in rows if row[name] == line]
        axes[0, 1].plot([row[step] for row in own], [row[value] for row in own], marker="o", markersize=3, label=line)
    axes[0, 1].legend(fontsize=8, frameon=False)
    axes[0, 1].set_xlabel("claimed probability", fontsize=8)
    quiet(axes[0, 1], f"test/reliability (ECE {run.summary['test/song/ece']:.3f})")
    as_table(axes[0, 2], *run.table(wandb_run.CLASSES), "test/classes")
    (shown,) = (row for row in run.history if "examples.filenames" in row)
    grid_of = axes[1, 0].get_gridspec()
    for panel in axes[1]:
        panel.remove()
    inner = grid_of[1, :].subgridspec(1, len(shown["examples.filenames"]))
    for place, (file, caption) in enumerate(zip(shown["examples.filenames"], shown["examples.captions"], strict=True)):
        panel = figure.add_subplot(inner[place])
        panel.imshow(Image.open(run.files / file), aspect="auto")
        panel.axis("off")
        panel.set_title(caption.partition(":")[0], fontsize=8, loc="left")
    return figure


def as_table(
    axes: Axes, columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str, widths: Sequence[float] | None = None
) -> None:
    """Draw a table, numbers to three places."""
    text = [[f"{cell:.3f}" if isinstance(cell, float) else "" if cell is None else str(cell) for cell in row] for row in rows]
    drawn = axes.table(
        cellText=text, colLabels=list(columns), loc="upper left", cellLoc="left", edges="horizontal", colWidths=widths
    )
    drawn.auto_set_font_size(value=False)
    drawn.set_fontsize(7.5)
    drawn.scale(1, 1.35)
    if widths is None:
        drawn.auto_set_column_width(range(len(columns)))
    quiet(axes, title).axis("off")


def board(run: Logged) -> Figure:
    """Draw the section "Leaderboard", which a run of its own holds."""
    figure, axes = sheet(f"Section “Leaderboard”: the run “{run.name}”", 11, 3.4, 2, 1, width_ratios=(2.6, 1))
    columns, rows = run.table(wandb_sweep.TABLE)
    keep = ("rank", "label", "runs", "songs", "mean", "ci_low", "ci_high", "sd", "p_holm", "best_group", "gap")
    short = [[row[columns.index(key)] for key in keep] for row in rows]
    as_table(axes[0, 0], keep, short, f"leaderboard ({len(keep)} of its {len(columns)} columns)")
    chart = next(key for key in run.summary if key.startswith(f"{wandb_sweep.TABLE}/") and key.endswith("_table"))
    _, means = run.table(chart)
    axes[0, 1].barh([name for name, _ in means][::-1], [mean for _, mean in means][::-1], color=COLOURS[0], height=0.6)
    quiet(axes[0, 1], chart.removesuffix("_table"))
    return figure


def save(figure: Figure, name: str) -> None:
    """Write a picture of few colours, small enough for a repository."""
    path = PICTURES / name
    figure.savefig(path, dpi=100, facecolor="white")
    Image.open(path).convert("RGB").quantize(160, method=Image.Quantize.MAXCOVERAGE).save(path, optimize=True)
    print(f"{path} ({path.stat().st_size / 1000:.0f} kB)")


def main() -> None:
    """Draw every picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the folder `wandb` beside the runs")
    parser.add_argument(
        "--wait", type=float, default=1.5, help="seconds after each key; more on a busy machine, which loses keys"
    )
    options = parser.parse_args()
    PICTURES.mkdir(parents=True, exist_ok=True)
    every = [read(file) for file in sorted(options.folder.glob("offline-run-*/run-*.wandb"))]
    runs = [run for run in every if run.job == wandb_run.TRAIN and run.summary.get(wandb_run.STATE) == "done"]
    save(board(next(run for run in reversed(every) if run.job == wandb_run.LEADERBOARD)), "wandb-leaderboard.png")
    save(models(runs), "wandb-models.png")
    save(history(runs), "wandb-curves.png")
    save(one_run(max(runs, key=lambda run: run.summary[SCORE])), "wandb-run.png")
    command = [sys.executable, "-m", "wandb", "leet", str(options.folder)]
    os.environ["WANDB_CONFIG_DIR"] = tempfile.mkdtemp()  # it keeps which panes were open here,
    (options.folder / ".wandb-leet.json").unlink(missing_ok=True)  # and what was chosen and filtered there
    keys = [
        *[b"\x1b[B", b" "] * (len(every) - 1),
        b"]",
        b"/",
        b"val/(song|segment)/(acc|f1|log)",
        b"\r",
    ]  # choose runs, say what is shown
    shown = terminal.screen(command, keys, columns=150, rows=40, wait=options.wait)
    terminal.draw(shown, PICTURES / "wandb-leet.png")


if __name__ == "__main__":
    main()
