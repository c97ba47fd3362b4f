"""Sweeps with a stated truth: how often intervals cover it, equal rows are told apart, and a difference is found.

A song is said right with probability `sigmoid(level + seed + group + song + own)`: the seed effect is a trained model's, group
and song effects are shared by all rows (songs are hard for every network), the own effect is that of one row on one song. `level`
is chosen so that the mean over all effects is the stated accuracy.

Run from the repository's root, about 5 minutes of one core; replaces the tables of the README beside it:

    python -m experiments.statistics.simulate
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from scipy import optimize, special, stats

from musicnet_eval import significance
from musicnet_eval.leaderboard import values

ACCURACIES, SONGS, SEEDS, SEED_SDS = (0.3, 0.5, 0.7, 0.9), (30, 100, 290), (1, 3, 5), (0.0, 0.3, 0.6)
SHARED, OWN, GROUP = 1.5, 1.0, 1.0  # standard deviations on the logit
Cell = tuple[float, int, int, float]  # accuracy, songs, seeds, seed sd
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(61)


def marginal(level: np.ndarray | float, sd: float) -> np.ndarray:
    """Average the sigmoid over a normal effect (Gauss-Hermite quadrature)."""
    return special.expit(np.asarray(level)[..., None] + sd * NODES) @ WEIGHTS / WEIGHTS.sum()


def level(accuracy: float, sd: float) -> float:
    """Find the logit at which the average is the stated accuracy."""
    return float(optimize.brentq(lambda mu: float(marginal(mu, sd)) - accuracy, -30, 30))


def draw(
    rng: np.random.Generator,
    sweeps: int,
    accuracies: Sequence[float],
    songs: int,
    seeds: int,
    seed_sd: float,
    groups: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw sweeps.

    Returns:
        Right or wrong, `[sweeps, rows, seeds, songs]`, and the true accuracy, `[sweeps, rows]`: that of the configuration, or
        with one seed that of the trained model.
    """
    sd = float(np.sqrt(SHARED**2 + OWN**2 + (GROUP**2 if groups else 0)))
    base = np.array([level(accuracy, float(np.hypot(sd, seed_sd))) for accuracy in accuracies])[:, None, None]
    seed = seed_sd * rng.standard_normal((sweeps, len(accuracies), seeds, 1))
    if seeds == 1:
        seed[:] = seed[:, :1]  # no true difference of trained models: all rows share the one effect
    effect = base + seed + SHARED * rng.standard_normal((sweeps, 1, 1, songs))
    effect += OWN * rng.standard_normal((sweeps, len(accuracies), 1, songs))
    if groups:
        effect += (GROUP * rng.standard_normal((sweeps, 1, 1, groups)))[..., member(songs, groups)]
    truth = np.broadcast_to(accuracies, effect.shape[:2]) if seeds > 1 else marginal((base + seed)[..., 0, 0], sd)
    return (rng.random(effect.shape) < special.expit(effect)).astype(float), truth


def member(songs: int, groups: int) -> np.ndarray:
    """Give each song its group; sizes differ as 1 : 2 : 3."""
    return np.sort(np.resize(np.repeat(np.arange(groups), np.resize((1, 2, 3), groups)), songs))


def by_group(right: np.ndarray, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Sum songs into groups as `significance.parts` expects them."""
    indicator = np.eye(groups)[member(right.shape[-1], groups)] * groups / right.shape[-1]
    return right @ indicator, indicator.sum(axis=0)


def coverage(rng: np.random.Generator, sweeps: int, cell: Cell, groups: int | None = None) -> Iterable[float]:
    """Give how often the interval covers the truth in one cell (accuracy, songs, seeds, seed sd), and its mean width."""
    accuracy, songs, seeds, seed_sd = cell
    right, truth = draw(rng, sweeps, [accuracy], songs, seeds, seed_sd, groups)
    scores, sizes = by_group(right, groups) if groups else (right, None)
    low, high = significance.interval(scores, sizes, songs)
    return float(((low <= truth) & (truth <= high)).mean()), float((high - low).mean())


def excluded(right: np.ndarray) -> np.ndarray:
    """Tell which rows of each sweep are not in the best group, `[sweeps, rows]`."""
    rows = [significance.parts(right[:, k]) for k in range(right.shape[1])]
    found = significance.pairs(rows, right[:, :, 0] if right.shape[2] == 1 else None)
    corrected = significance.holm_all_pairs(found.p)
    best = right.mean(axis=(2, 3)).argmax(axis=1)
    return corrected[np.arange(len(right)), best] < significance.ALPHA


def false_exclusions(rng: np.random.Generator, sweeps: int, rows: int, cell: Cell) -> float:
    """Give how often some row is excluded although all are equal."""
    accuracy, songs, seeds, seed_sd = cell
    return float(excluded(draw(rng, sweeps, [accuracy] * rows, songs, seeds, seed_sd)[0]).any(axis=1).mean())


def power(rng: np.random.Generator, sweeps: int, seeds: int, seed_sd: float, gain: float, rows: int = 2) -> float:
    """Give how often the poorest of `rows` is excluded that is worse by `gain`, at .8 on 290 songs."""
    right, _ = draw(rng, sweeps, [0.8] * (rows - 1) + [0.8 - gain], 290, seeds, seed_sd)
    return float(excluded(right)[:, -1].mean())


def discordant(rng: np.random.Generator, sweeps: int, gain: float, share: float, songs: int = 290) -> np.ndarray:
    """Draw two single models of which a stated share of songs is said right by one alone."""
    case = rng.random((sweeps, songs))
    only_first = case < (share + gain) / 2
    only_second = (case >= (share + gain) / 2) & (case < share)
    both = rng.random((sweeps, songs)) < 0.8
    first, second = only_first | (both & ~only_second), only_second | (both & ~only_first)
    return np.stack([first, second], axis=1)[:, :, None].astype(float)


def macro_f1_coverage(rng: np.random.Generator, sweeps: int, cell: Cell, classes: int = 6) -> float:
    """Give how often the interval of macro F1 covers the truth: classes alike, so that it is the accuracy."""
    accuracy, songs, seeds, seed_sd = cell
    right, truths = draw(rng, sweeps, [accuracy], songs, seeds, seed_sd)
    labels = rng.integers(classes, size=(sweeps, 1, songs))
    elsewhere = 1 + rng.integers(classes - 1, size=(sweeps, 1, songs))  # seeds that fail a song take it for the same class
    said = np.where(right[:, 0] > 0, labels, (labels + elsewhere) % classes)
    one_hot = np.eye(classes)
    inside = 0
    for label, one, truth in zip(labels[:, 0], said, truths[:, 0], strict=True):
        answers = (values.Answers(one_hot[label], one_hot[of_seed], one_hot[of_seed], several=False) for of_seed in one)
        low, high = significance.interval(np.stack([values.VALUES["f1_macro"](answer) for answer in answers]), None, songs)
        inside += int(low <= truth <= high)
    return inside / sweeps


# --- rivals ---------------------------------------------------------------------------------------------------------------------


def satterthwaite(right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give the t interval with one number of degrees of freedom for the sum of variances."""
    row = significance.parts(right)
    songs = right.shape[-1]
    models = (row.songs**2).sum(axis=-1) / (songs - 1) / songs
    variance = np.maximum(row.seed - row.error, 0) + models
    freedom = variance**2 / np.maximum(models**2 / (songs - 1) + row.seed**2 / (row.seeds - 1), 1e-300)
    half = stats.t.ppf(0.975, np.maximum(freedom, row.seeds - 1)) * np.sqrt(variance)
    return row.mean - half, row.mean + half


def bootstrap(rng: np.random.Generator, right: np.ndarray, draws: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Give the percentile interval of a two-way bootstrap: seeds and songs resampled together."""
    seeds, songs = right.shape[-2:]
    limits = []
    for one in right.reshape(-1, seeds, songs):
        of_seed = rng.multinomial(seeds, np.full(seeds, 1 / seeds), draws) / seeds
        of_song = rng.multinomial(songs, np.full(songs, 1 / songs), draws) / songs
        limits.append(np.quantile(((of_seed @ one) * of_song).sum(axis=1), (0.025, 0.975)))
    low, high = np.array(limits).T
    return low.reshape(right.shape[:-2]), high.reshape(right.shape[:-2])


# --- the tables -----------------------------------------------------------------------------------------------------------------


def cells() -> Iterator[Cell]:
    """Give all cells: accuracy, songs, seeds, seed sd."""
    return itertools.product(ACCURACIES, SONGS, SEEDS, SEED_SDS)


def _pipes(heading: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [heading, ["---:"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(f"{x:.3f}" if isinstance(x, float) else str(x) for x in line) + " |" for line in lines)


def tables(sweeps: int = 2000) -> str:
    """Run everything and write it as Markdown."""
    rng = np.random.default_rng(6)
    cover = {cell: coverage(rng, sweeps, cell) for cell in cells()}
    grouped = {cell: coverage(rng, sweeps, cell, cell[1] // 4) for cell in cells()}
    by = [(accuracy, songs, seeds) for accuracy in ACCURACIES for songs in SONGS for seeds in SEEDS]
    parts = ["### Coverage of the 95 % interval, by seed sd; the last three for songs in groups of about four"]
    heading = [
        "accuracy",
        "songs",
        "seeds",
        *(f"sd {sd}" for sd in SEED_SDS),
        "mean width",
        *(f"grouped, sd {sd}" for sd in SEED_SDS),
    ]
    rows = []
    for key in by:
        found, others = ([table[(*key, sd)] for sd in SEED_SDS] for table in (cover, grouped))
        rows.append(
            [str(key[0]), *key[1:], *(a for a, _ in found), float(np.mean([w for _, w in found])), *(a for a, _ in others)]
        )
    parts.append(_pipes(heading, rows))
    for name, table in (("songs", cover), ("groups", grouped)):
        shares = [share for share, _ in table.values()]
        parts.append(
            f"By {name}: least {min(shares):.3f}, mean {np.mean(shares):.3f}, most {max(shares):.3f} of {len(shares)} cells."
        )
    parts += ["### Rivals at three seeds: least coverage over accuracies", _rivals(rng, sweeps // 2)]
    parts.append(
        "### Equal rows: share of sweeps in which some row is left out of the best group (5 rows / 2 rows, most over seed sd)"
    )
    wrong = {(rows, cell): false_exclusions(rng, 2 * sweeps, rows, cell) for rows in (5, 2) for cell in cells()}
    heading = ["accuracy", "songs", *(f"{seeds} seeds" for seeds in SEEDS)]
    lines = []
    for accuracy, songs in itertools.product(ACCURACIES, SONGS):
        most = [[max(wrong[rows, (accuracy, songs, seeds, sd)] for sd in SEED_SDS) for rows in (5, 2)] for seeds in SEEDS]
        lines.append([str(accuracy), songs, *(f"{five:.3f} / {two:.3f}" for five, two in most)])
    parts += [
        _pipes(heading, lines),
        f"Most of {len(wrong)} cells: {max(wrong.values()):.4f}, mean {np.mean(list(wrong.values())):.4f}.",
    ]
    return "\n\n".join([*parts, *_powers(rng, sweeps), *_macro_f1(np.random.default_rng(7), sweeps // 2)]) + "\n"


def _macro_f1(rng: np.random.Generator, sweeps: int) -> list[str]:
    by = list(itertools.product(ACCURACIES, SONGS, SEEDS))
    rows = [[str(key[0]), *key[1:], *(macro_f1_coverage(rng, sweeps, (*key, sd)) for sd in SEED_SDS)] for key in by]
    return [
        "### Coverage of the 95 % interval of macro F1, six classes, by seed sd",
        _pipes(["accuracy", "songs", "seeds", *(f"sd {sd}" for sd in SEED_SDS)], rows),
    ]


def _rivals(rng: np.random.Generator, sweeps: int) -> str:
    rows = []
    for songs, sd in itertools.product(SONGS, SEED_SDS):
        shares = []
        for accuracy in ACCURACIES:
            right, truth = draw(rng, sweeps, [accuracy], songs, 3, sd)
            limits = (significance.interval(right, None, songs), satterthwaite(right), bootstrap(rng, right))
            shares.append([float(((low <= truth) & (truth <= high)).mean()) for low, high in limits])
        rows.append([songs, str(sd), *np.min(shares, axis=0).tolist()])
    return _pipes(["songs", "seed sd", "ours", "Satterthwaite t", "two-way bootstrap"], rows)


def _powers(rng: np.random.Generator, sweeps: int) -> list[str]:
    gains = (0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2)
    heading = ["seeds", "seed sd", "rows", *(f"{100 * gain:.0f} points" for gain in gains)]
    rows = [
        [seeds, str(sd), count, *(power(rng, sweeps, seeds, sd, gain, count) for gain in gains)]
        for seeds, sd, count in itertools.product(SEEDS, SEED_SDS, (2, 5))
        if not (seeds == 1 and sd)
    ]
    share = 0.15
    found = [float(excluded(discordant(rng, sweeps, gain, share))[:, 1].mean()) for gain in gains if gain <= share]
    heads = [f"{100 * gain:.0f} points" for gain in gains if gain <= share]
    return [
        "### Power: share of sweeps in which the one worse row is left out (the others at .8, 290 songs)",
        _pipes(heading, rows),
        "### Power for two single models, 15 % of 290 songs discordant",
        _pipes(heads, [found]),
    ]


if __name__ == "__main__":
    page = Path(__file__).with_name("README.md")
    text = page.read_text(encoding="utf8")
    mark = "<!-- what follows is written by simulate.py -->\n"
    page.write_text(text[: text.index(mark) + len(mark)] + "\n" + tables(), encoding="utf8")
