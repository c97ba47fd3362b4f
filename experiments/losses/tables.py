"""The loss study's tables and figure, from run folders: `results.csv`, `differences.png` and the middle of `README.md`.

Scores that are means over songs (accuracy, macro F1, log loss) are compared for new seeds and new groups of songs. Calibration
error and train-test gap are not; they are compared for new seeds alone, on these test songs. All differences are paired by seed.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import stats

from musicnet_eval import records, significance
from musicnet_eval.leaderboard import values

CONDITIONS = {
    (None, None): "clean",
    (0.2, None): "20 % wrong labels",
    (0.4, None): "40 % wrong labels",
    (None, 10): "classes 1:10",
}
LOSSES = {  # choice of loss, balance_factor → name
    ("cross_entropy", None): "cross_entropy",
    ("label_smoothing", None): "label_smoothing (0.1, = trust factor 1e-1)",
    ("balanced_trusted", 2): "balanced_trusted, trust factor 1e-2",
    ("balanced_trusted", 3): "balanced_trusted, trust factor 1e-3 (default)",
    ("balanced_trusted", 4): "balanced_trusted, trust factor 1e-4",
    ("balanced_trusted", 5): "balanced_trusted, trust factor 1e-5",
    ("balanced_trusted_robust", None): "balanced_trusted_robust",
    ("balanced_trusted_balanced", None): "balanced_trusted_balanced",
    ("balanced_trusted_noisy", None): "balanced_trusted_noisy",
    ("generalized_cross_entropy", None): "generalized_cross_entropy",
    ("focal", None): "focal",
    ("class_balanced", None): "class_balanced",
}
BASELINE = "cross_entropy"
BY_SONG = ("test/song/accuracy", "test/song/f1_macro", "test/song/log_loss")
BY_SEED = ("test/song/ece", "gap/segment/accuracy")
GIVEN_UP, AREA = "classes given up", "label trust AUROC"
BEGIN, END = "<!-- tables: written by tables.py -->", "<!-- end of tables -->"

Runs = dict[str, dict[str, dict[int, Path]]]  # condition → loss → seed → run folder


class Line(NamedTuple):
    """One number of the study: a metric of a loss under a condition, and its paired difference to cross-entropy (95 %)."""

    condition: str
    loss: str
    metric: str
    seeds: int
    mean: float
    sd: float
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_holm: float | None = None


def find(folder: Path) -> Runs:
    """Find the finished runs; a loss keeps the seeds that cross-entropy has too, so that all differences are paired."""
    runs: Runs = defaultdict(lambda: defaultdict(dict))
    for run in records.find_runs([folder]):
        if records.state(run) == "done":
            record = records.read_result(run)
            plant, loss = record["config"]["data"]["plant"], record["config"]["loss"]
            condition = CONDITIONS.get((plant["wrong_labels"], plant["imbalance"]))
            name = LOSSES.get((record["choices"]["loss"], loss.get("balance_factor")))
            if condition and name:
                runs[condition][name][record["choices"]["seed"]] = run
    return {condition: _paired(runs[condition]) for condition in CONDITIONS.values() if condition in runs}


def _paired(losses: Mapping[str, dict[int, Path]]) -> dict[str, dict[int, Path]]:
    base = losses.get(BASELINE, {})
    found = {
        name: {seed: losses[name][seed] for seed in sorted(losses.get(name, {})) if seed in base} for name in LOSSES.values()
    }
    return {name: seeds for name, seeds in found.items() if seeds}


# --- numbers --------------------------------------------------------------------------------------------------------------------


def lines(runs: Runs) -> list[Line]:
    """Give every number, p values corrected within each condition and metric for the number of losses compared (Holm)."""
    found = []
    for condition, losses in runs.items():
        for metric in (*BY_SONG, *BY_SEED):
            compare = _by_song if metric in BY_SONG else _by_seed
            told = [compare(condition, name, metric, losses) for name in losses]
            p = significance.holm(np.array([line.p for line in told if line.p is not None]))
            corrected = iter(p.tolist())
            found += [line if line.p is None else line._replace(p_holm=next(corrected)) for line in told]
        found += [_line(condition, name, GIVEN_UP, [_given_up(run) for run in losses[name].values()]) for name in losses]
    return found + [line for condition in runs for line in _label_trust(condition, runs[condition])]


def _values(losses: Mapping[str, dict[int, Path]], name: str, metric: str, seeds: Iterable[int] = ()) -> list[float]:
    return [records.read_result(losses[name][seed])["metrics"][metric] for seed in seeds or losses[name]]


def _line(condition: str, name: str, metric: str, numbers: Sequence[float]) -> Line:
    sd = statistics.stdev(numbers) if len(numbers) > 1 else float("nan")
    return Line(condition, name, metric, len(numbers), statistics.fmean(numbers), sd)


def _by_song(condition: str, name: str, metric: str, losses: Mapping[str, dict[int, Path]]) -> Line:
    """Compare seed by seed and song by song; seeds and groups of songs are both a draw from many.

    The differences make one row, tested against a row of zeros: a seed is one training set, order and start for all losses.
    """
    line = _line(condition, name, metric, _values(losses, name, metric))
    if name == BASELINE:
        return line
    own, base = (np.stack([_songs(losses[loss][seed], metric) for seed in losses[name]]) for loss in (name, BASELINE))
    groups, at = np.unique(_groups(next(iter(losses[name].values()))), return_inverse=True)
    member = np.eye(len(groups))[at] * len(groups) / len(at)
    rows = [significance.parts(scores @ member, member.sum(axis=0)) for scores in (own - base, np.zeros_like(own))]
    found = significance.pairs(rows)
    difference, wide, p = (float(matrix[0, 1]) for matrix in (found.difference, found.half_width(), found.p))
    return line._replace(difference=difference, low=difference - wide, high=difference + wide, p=p)


def _songs(run: Path, metric: str) -> np.ndarray:
    """Give a metric's value of each test song, in the order of their names."""
    classes = records.read_result(run)["facts"]["classes"]
    return values.of(metric, _tested(run), classes, several=False)


def _given_up(run: Path) -> int:
    """Count the classes that a run says of no test song."""
    return len(records.read_result(run)["facts"]["classes"]) - len({row.predicted for row in _tested(run)})


def _groups(run: Path) -> list[str]:
    return [row.group for row in _tested(run)]


def _tested(run: Path) -> list[records.Prediction]:
    return sorted((row for row in records.read_predictions(run) if row.split == "test"), key=lambda row: row.song)


def _by_seed(condition: str, name: str, metric: str, losses: Mapping[str, dict[int, Path]]) -> Line:
    """Compare seed by seed (Student's t), on these test songs."""
    own, base = _values(losses, name, metric), _values(losses, BASELINE, metric, losses[name])
    line = _line(condition, name, metric, own)
    if name == BASELINE or len(own) < 2:
        return line
    differences = np.subtract(own, base)
    mean, error = float(differences.mean()), float(stats.sem(differences))
    wide = error * float(stats.t.ppf(0.975, len(own) - 1))
    p = float(stats.ttest_1samp(differences, 0).pvalue) if error > 1e-12 else 1.0
    return line._replace(difference=mean, low=mean - wide, high=mean + wide, p=p)


# --- label trust ----------------------------------------------------------------------------------------------------------------


def _label_trust(condition: str, losses: Mapping[str, dict[int, Path]]) -> list[Line]:
    """Give the AUROC with which low trust tells planted labels, its interval from resampling seeds and groups of songs."""
    found = []
    for name, seeds in losses.items():
        ranked = [_ranked(run) for run in seeds.values() if (run / records.PLANTED).exists()]
        if ranked and all(wrong.any() for _, _, wrong in ranked):
            line = _line(condition, name, AREA, [_auroc(trust, wrong) for _, trust, wrong in ranked])
            low, high = _bootstrap(ranked)
            found.append(line._replace(low=low, high=high))
    return found


def _ranked(run: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read group, trust, and whether the label was planted wrong, of each training song."""
    with (run / records.PLANTED).open(newline="", encoding="utf8") as file:
        wrong = {row["song"] for row in csv.DictReader(file) if row["fault"] == "wrong_label"}
    with (run / records.SUSPECTS).open(newline="", encoding="utf8") as file:
        rows = list(csv.DictReader(file))
    groups = np.array([row["group"] for row in rows])
    return groups, np.array([float(row["trust"]) for row in rows]), np.array([row["song"] in wrong for row in rows])


def _auroc(trust: np.ndarray, wrong: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Give the chance that a wrong label is trusted less than a right one, ties counting half."""
    weight = np.ones(len(trust)) if weight is None else weight
    level = np.unique(trust, return_inverse=True)[1]
    of_wrong, of_right = np.bincount(level, weight * wrong), np.bincount(level, weight * ~wrong)
    above = of_right.sum() - np.cumsum(of_right)
    return float((of_wrong * (above + of_right / 2)).sum() / (of_wrong.sum() * of_right.sum()))


def _bootstrap(ranked: list[tuple[np.ndarray, np.ndarray, np.ndarray]], repeats: int = 1000) -> tuple[float, float]:
    """Resample seeds, and groups of songs (the same for all seeds), and take the middle 95 % of mean AUROCs."""
    draw = np.random.default_rng(0)
    names = np.unique(np.concatenate([groups for groups, _, _ in ranked]))
    places = [np.searchsorted(names, groups) for groups, _, _ in ranked]
    means = []
    for _ in range(repeats):
        weights = np.bincount(draw.integers(len(names), size=len(names)), minlength=len(names)).astype(float)
        chosen = np.bincount(draw.integers(len(ranked), size=len(ranked)), minlength=len(ranked))
        each = [_auroc(t, w, weights[at]) if n else 0.0 for n, at, (_, t, w) in zip(chosen, places, ranked, strict=True)]
        means.append(float(np.dot(chosen, each)) / len(ranked))
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


# --- writing --------------------------------------------------------------------------------------------------------------------


def write(runs: Path, out: Path) -> None:
    """Write `results.csv`, `differences.png`, and the tables of `README.md` where that has their place."""
    found = find(runs)
    told = lines(found)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(Line._fields)
    writer.writerows([f"{cell:.6g}" if isinstance(cell, float) else cell for cell in line] for line in told)
    records.write_text(out / "results.csv", file.getvalue())
    _draw(told, out / "differences.png")
    text = "\n\n".join(_markdown(told))
    readme = out / "README.md"
    if readme.exists() and BEGIN in (old := readme.read_text(encoding="utf8")):
        text = f"{old[: old.index(BEGIN)]}{BEGIN}\n{text}\n{END}{old[old.index(END) + len(END) :]}"
        records.write_text(readme, text)
    print(text)


def _markdown(told: list[Line]) -> Iterable[str]:
    for condition in dict.fromkeys(line.condition for line in told):
        here = {(line.loss, line.metric): line for line in told if line.condition == condition}
        losses = list(dict.fromkeys(loss for loss, _ in here))
        yield f"### {condition[0].upper()}{condition[1:]}"
        heads = ("loss", "seeds", "accuracy", "less cross-entropy", "p (Holm)")
        heads += ("macro F1", "log loss", "ECE", "gap", "given up", "trust AUROC")
        rows = [heads, ("---", *["---:"] * (len(heads) - 1))]
        for loss in losses:
            accuracy = here[loss, BY_SONG[0]]
            row = [loss, str(accuracy.seeds), f"{accuracy.mean:.3f} ± {accuracy.sd:.3f}", *_compared(accuracy)]
            row += [_told(here[loss, metric]) for metric in (*BY_SONG[1:], *BY_SEED)]
            rows.append((*row, f"{here[loss, GIVEN_UP].mean:.1f}", _area(here, loss)))
        yield "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _compared(line: Line) -> tuple[str, str]:
    if line.difference is None or line.low is None or line.high is None or line.p_holm is None:
        return "–", "–"
    return f"{line.difference:+.3f} ({line.low:+.3f} to {line.high:+.3f})", f"{line.p_holm:.3f}"


def _told(line: Line) -> str:
    """Write a mean, and mark it where its difference to cross-entropy holds after Holm's correction."""
    return f"{line.mean:.3f}{'*' if line.p_holm is not None and line.p_holm < significance.ALPHA else ''}"


def _area(here: Mapping[tuple[str, str], Line], loss: str) -> str:
    line = here.get((loss, AREA))
    return "–" if line is None else f"{line.mean:.2f} ({line.low:.2f}–{line.high:.2f})"


def _draw(told: list[Line], path: Path) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    shown = [line for line in told if line.metric == BY_SONG[0] and line.difference is not None]
    conditions = list(dict.fromkeys(line.condition for line in shown))
    losses = list(dict.fromkeys(line.loss for line in shown))
    figure = Figure(figsize=(3.2 + 2.3 * len(conditions), 1.2 + 0.27 * len(losses)), layout="constrained", dpi=130)
    for axes, condition in zip(
        np.atleast_1d(figure.subplots(1, len(conditions), sharey=True, sharex=True)), conditions, strict=True
    ):
        for line in (line for line in shown if line.condition == condition):
            clear = line.p_holm is not None and line.p_holm < significance.ALPHA
            place = -losses.index(line.loss)
            axes.plot([line.low, line.high], [place, place], color="#48126b", linewidth=1.6, alpha=1 if clear else 0.45)
            axes.plot(line.difference, place, "o", color="#48126b", fillstyle="full" if clear else "none")
        axes.axvline(0, color="0.5", linewidth=0.8)
        axes.set_title(condition, fontsize=10)
        axes.set_yticks([-i for i in range(len(losses))], [loss.partition(" (")[0] for loss in losses], fontsize=8)
        axes.tick_params(axis="x", labelsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.grid(axis="x", color="0.9")
        axes.spines[:].set_visible(False)
    figure.supxlabel("song accuracy less that of cross-entropy, 95 % interval; filled: p < .05 after Holm", fontsize=9)
    figure.savefig(path)
