"""How sure a score is, and which scores differ: intervals, paired tests, corrections. NumPy and SciPy, loaded when first used.

Place in the flow: results song by song → significance → leaderboard. A row of a table is a matrix of scores: S seeds by G groups
of songs (a song alone where no groups are known). Seeds and songs are crossed: every seed is put to the same songs. Both are a
draw from many, so both make the mean uncertain. By the mean squares of the two-way layout, its variance has two parts:

- `MS_seed / SG`: what other seeds would change on these songs, with S - 1 degrees of freedom;
- `(MS_song - MS_error) / SG`: what other songs would change beyond that, with G - 1 degrees of freedom.

The squared half width of an interval is the sum of both, each times the square of its own t quantile, and at least `MS_song / SG`
times its own: that of the trained models at hand. This holds at three seeds, where a two-way bootstrap and Satterthwaite's single
number of degrees of freedom cover too little (`experiments/statistics/`). With one seed there is no first part: interval and test
speak of the trained model at hand only.

Reference:
    Cochran & Cox (1957), Experimental Designs, 2nd ed., 4.14: each variance with the t quantile of its own degrees of freedom.
    Searle, Casella & McCulloch (1992), Variance Components, 4.3: the two-way crossed layout.
    Korn & Graubard (1998), Survey Methodology 24(2): Clopper-Pearson limits at an effective sample size.
    Holm (1979), Scandinavian Journal of Statistics 6(2); McNemar (1947), Psychometrika 12(2), in its exact form.
    Demšar (2006), Journal of Machine Learning Research 7: Friedman's test and Nemenyi's critical difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

ALPHA = 0.05


class Parts(NamedTuple):
    """A row's mean, and what makes it uncertain. Leading dimensions are those of the scores.

    Args:
        mean: The row's score.
        seed: Variance of the mean over draws of seeds; 0 with one seed.
        error: The share of `seed` that is no property of a seed: which song a seed happens to fail.
        songs: Each group's score over all seeds, less what a group of its size scores at the row's mean.
        seeds: S, the number of seeds.
    """

    mean: Floats
    seed: Floats
    error: Floats
    songs: Floats
    seeds: int


def parts(scores: Floats, sizes: Floats | None = None) -> Parts:
    """Split the variance of a mean into that of seeds and that of songs.

    Args:
        scores: Sums over each group's songs, scaled so that their mean over groups is the score of a seed.
        sizes: Relative size of each group, mean 1; None: all the same.

    Shape:
        scores: `[..., S, G]`
        sizes: `[G]`
    """
    import numpy as np

    seeds, groups = scores.shape[-2:]
    mean = scores.mean(axis=(-2, -1))
    residual = scores - mean[..., None, None] * (np.ones(groups) if sizes is None else sizes)
    songs = residual.mean(axis=-2)
    if seeds == 1:
        return Parts(mean, np.zeros_like(mean), np.zeros_like(mean), songs, 1)
    of_seed = residual.mean(axis=-1)
    between = (of_seed**2).sum(axis=-1) / (seeds - 1) / seeds
    rest = residual - songs[..., None, :] - of_seed[..., None]
    error = (rest**2).sum(axis=(-2, -1)) / ((seeds - 1) * (groups - 1) * seeds * groups)
    return Parts(mean, between, error, songs, seeds)


def _quantile(freedom: Any, alpha: Any) -> Any:
    from scipy.special import stdtrit  # type: ignore[import-untyped]

    return -stdtrit(freedom, alpha / 2)


def interval(
    scores: Floats, sizes: Floats | None = None, songs: int = 0, alpha: float = ALPHA, *, bounded: bool = True
) -> tuple[Floats, Floats]:
    """Give an interval for a mean of scores: for new seeds and new songs, or with one seed for new songs alone.

    A mean between 0 and 1 is treated as a share: the half width is turned into the number of independent songs that would give
    the same; the limits are those of Clopper and Pearson for that number, so that they stay within 0 and 1, lean to the middle,
    and hold near both ends. For accuracies of one seed without groups they are exactly theirs.

    Args:
        scores: As in `parts`.
        sizes: As in `parts`.
        songs: Number of songs; 0: one a group.
        alpha: How often the interval may miss, 0 to 1.
        bounded: Whether the mean lies between 0 and 1; one that does not gets limits at equal distances.
    """
    import numpy as np
    from scipy.special import betaincinv

    seeds, groups = scores.shape[-2:]
    songs = songs or groups
    row = parts(scores, sizes)
    models = (row.songs**2).sum(axis=-1) / (groups - 1) / groups
    half = _squared_width(row.seed, float(seeds - 1), np.maximum(models - row.error, 0), models, groups, alpha)
    if not bounded:
        return row.mean - np.sqrt(half), row.mean + np.sqrt(half)
    sure = half < 1e-14  # all songs said alike: no more is known than from as many independent songs as there are groups
    number = 1 + row.mean * (1 - row.mean) * _quantile(songs - 1, alpha) ** 2 / np.where(sure, 1, half)
    number = np.where(sure, groups, np.clip(number, 1, seeds * songs))
    right = np.clip(row.mean, 0, 1) * number
    wrong = number - right
    low = betaincinv(np.maximum(right, 1e-9), wrong + 1, alpha / 2)
    high = betaincinv(right + 1, np.maximum(wrong, 1e-9), 1 - alpha / 2)
    return np.where(right < 1e-9, 0.0, low), np.where(wrong < 1e-9, 1.0, high)


def _squared_width(seed: Floats, freedom: Any, song: Floats, models: Floats, groups: int, alpha: Any) -> Floats:
    """Add the parts of the squared half width; `models` is the whole variance for the trained models at hand."""
    import numpy as np

    of_songs = _quantile(groups - 1, alpha) ** 2
    of_seeds = np.where(seed > 0, _quantile(np.where(seed > 0, freedom, 1.0), alpha) ** 2 * seed, 0)
    wide: Floats = np.maximum(of_seeds + of_songs * song, of_songs * models)
    return wide


class Pairs(NamedTuple):
    """Every row less every other: antisymmetric differences, symmetric p values (1 on the diagonal), and their variances.

    Shape:
        difference, p, seed, freedom, song, models: `[..., K, K]`
    """

    difference: Floats
    p: Floats
    seed: Floats
    freedom: Floats
    song: Floats
    models: Floats
    groups: int

    def half_width(self, alpha: float = ALPHA) -> Floats:
        """Give the half width of an interval for each difference; each misses in a share `alpha` of cases."""
        import numpy as np

        return np.sqrt(_squared_width(self.seed, self.freedom, self.song, self.models, self.groups, alpha))


def pairs(rows: Sequence[Parts], hits: Floats | None = None) -> Pairs:
    """Compare all rows with each other, song by song.

    Two rows of several seeds each are compared for new seeds and new songs. Where one has a single seed, they are compared for
    new songs only, as the trained models at hand; two single models whose songs make no groups by McNemar's exact test. No p
    value is below `2 ** (1 - G)`, the chance that the differences of all G groups have the same sign.

    Args:
        rows: The parts of each row, of the same groups in the same order.
        hits: Where songs make no groups: 1 where a row of one seed was right, else 0; other rows are not read.

    Shape:
        hits: `[..., K, G]`
    """
    import numpy as np

    groups = rows[0].songs.shape[-1]
    mean, each, error = (np.stack([row[i] for row in rows], axis=-1) for i in range(3))
    songs = np.stack([row.songs for row in rows], axis=-2)
    seeds = np.array([row.seeds for row in rows])
    several = (seeds[:, None] > 1) & (seeds > 1)
    gram = songs @ np.swapaxes(songs, -1, -2) / ((groups - 1) * groups)
    models = np.maximum(_sums(np.diagonal(gram, axis1=-2, axis2=-1)) - 2 * gram, 0)
    song = np.maximum(np.where(several, models - _sums(error), models), 0)
    seed = np.where(several, _sums(each), 0)
    squares = _sums(each**2 / np.maximum(seeds - 1, 1))
    freedom = np.where(seed > 0, seed**2 / np.where(squares > 0, squares, 1), 1.0)  # Welch's, for the seeds of two rows
    difference = mean[..., :, None] - mean[..., None, :]
    found = Pairs(difference, np.ones_like(difference), seed, freedom, song, models, groups)
    p = _p_values(found)
    if hits is not None:
        p = np.where((seeds[:, None] == 1) & (seeds == 1), mcnemar(hits), p)
    p = np.maximum(p, 2.0 ** (1 - groups))
    return found._replace(p=np.where(np.eye(len(rows), dtype=bool), 1.0, p))


def _sums(values: Floats) -> Floats:
    """Add every two of the last dimension."""
    total: Floats = values[..., :, None] + values[..., None, :]
    return total


def _p_values(found: Pairs) -> Floats:
    """Find the share of misses at which each interval just reaches zero, by bisection of its logarithm."""
    import numpy as np

    upper = np.triu(np.ones(found.p.shape[-2:], dtype=bool), 1)
    reach = np.abs(found.difference[..., upper]) - 1e-12
    seed, freedom, song, models = (field[..., upper] for field in (found.seed, found.freedom, found.song, found.models))
    low, high = np.full(reach.shape, -80.0), np.zeros(reach.shape)
    for _ in range(26):  # to a millionth of p
        middle = (low + high) / 2
        reached = _squared_width(seed, freedom, song, models, found.groups, np.exp(middle)) >= np.maximum(reach, 0) ** 2
        low, high = np.where(reached, middle, low), np.where(reached, high, middle)
    p = np.ones(found.p.shape)
    p[..., upper] = np.where(reach <= 0, 1.0, np.exp(high))
    return np.minimum(p, np.swapaxes(p, -1, -2))


def mcnemar(hits: Floats) -> Floats:
    """Test every two models for the same share of songs said right (McNemar, exact, two-sided).

    Args:
        hits: 1 where a model was right, else 0.

    Shape:
        hits: `[..., K, G]`; gives `[..., K, K]`
    """
    import numpy as np
    from scipy.special import bdtr

    only = hits @ np.swapaxes(1 - hits, -1, -2)
    both = only + np.swapaxes(only, -1, -2)
    p: Floats = np.minimum(2 * bdtr(np.minimum(only, np.swapaxes(only, -1, -2)), np.rint(both).astype(int), 0.5), 1)
    return p


def holm(p: Floats) -> Floats:
    """Correct p values for their number (Holm's step-down).

    >>> import numpy as np
    >>> holm(np.array([0.01, 0.04, 0.03])).tolist()
    [0.03, 0.06, 0.06]

    Shape:
        p: `[..., m]`, corrected along the last dimension
    """
    import numpy as np

    order = np.argsort(p, axis=-1, kind="stable")
    stepped = np.take_along_axis(p, order, axis=-1) * np.arange(p.shape[-1], 0, -1)
    stepped = np.minimum(np.maximum.accumulate(stepped, axis=-1), 1)
    corrected: Floats = np.empty_like(p)
    np.put_along_axis(corrected, order, stepped, axis=-1)
    return corrected


def holm_all_pairs(p: Floats) -> Floats:
    """Correct a symmetric matrix of p values for all its pairs: valid whichever row is looked at afterwards, the best one too.

    Shape:
        p: `[..., K, K]`
    """
    import numpy as np

    upper = np.triu(np.ones(p.shape[-2:], dtype=bool), 1)
    corrected = np.ones_like(p)
    if upper.any():
        corrected[..., upper] = holm(p[..., upper])
    return np.minimum(corrected, np.swapaxes(corrected, -1, -2))


class Ranks(NamedTuple):
    """Several rows over several data sets.

    Args:
        ranks: Mean ranks, 1 is best.
        statistic: Friedman's, in Iman and Davenport's form.
        p: The chance of such a statistic, or a larger one, if all rows were equal.
        critical_difference: How far two mean ranks must lie apart to differ (Nemenyi).
        p_holm: Of each two rows, Wilcoxon's signed-rank test over data sets, corrected for all pairs (Holm).

    Shape:
        ranks: `[K]`. p_holm: `[K, K]`, 1 on the diagonal.
    """

    ranks: Floats
    statistic: float
    p: float
    critical_difference: float
    p_holm: Floats


def mean_ranks(scores: Floats, alpha: float = ALPHA) -> Ranks:
    """Rank rows within each data set and test the mean ranks (Friedman in Iman and Davenport's form, Nemenyi).

    Args:
        scores: One score for each data set and row; higher is better.
        alpha: How often some two equal rows may be told apart, 0 to 1.

    Shape:
        scores: `[N, K]`, N data sets, K rows, each at least 2

    Reference: Demšar (2006), 3.1.3 and 3.2.2. Benavoli, Corani & Mangili (2016), JMLR 17: mean ranks of two rows depend on the
        other rows, pairwise signed-rank tests do not; both are given.
    """
    import numpy as np
    from scipy import stats  # type: ignore[import-untyped]

    n, k = scores.shape
    ranks = stats.rankdata(-scores, axis=1).mean(axis=0)
    chi = 12 * n / (k * (k + 1)) * (float((ranks**2).sum()) - k * (k + 1) ** 2 / 4)
    rest = n * (k - 1) - chi
    statistic = (n - 1) * chi / rest if rest > 1e-9 else float("inf")
    p = float(stats.f.sf(statistic, k - 1, (k - 1) * (n - 1)))
    apart = float(stats.studentized_range.ppf(1 - alpha, k, np.inf)) / np.sqrt(2) * np.sqrt(k * (k + 1) / (6 * n))
    return Ranks(ranks, statistic, p, float(apart), holm_all_pairs(_signed_ranks(scores)))


def _signed_ranks(scores: Floats) -> Floats:
    """Test every two rows by Wilcoxon's signed ranks over data sets; 1 where they are equal in all."""
    import numpy as np
    from scipy import stats

    rows = scores.shape[1]
    p = np.ones((rows, rows))
    for i in range(rows):
        for j in range(i):
            difference = scores[:, i] - scores[:, j]
            if difference.any():
                p[i, j] = p[j, i] = stats.wilcoxon(difference).pvalue
    return p


def cliques(ranks: Floats, same: NDArray[np.bool_]) -> list[tuple[int, ...]]:
    """Find the bars of a critical-difference diagram: largest runs of rows, in order of rank, of which no two differ.

    Args:
        ranks: Mean ranks.
        same: Whether two rows cannot be told apart.

    Shape:
        ranks: `[K]`. same: `[K, K]`

    >>> import numpy as np
    >>> cliques(np.array([1.0, 2.0, 3.0]), np.array([[1, 1, 0], [1, 1, 1], [0, 1, 1]], dtype=bool))
    [(0, 1), (1, 2)]
    """
    import numpy as np

    order = [int(i) for i in np.argsort(ranks, kind="stable")]
    found: list[tuple[int, ...]] = []
    for first in range(len(order)):
        last = first
        while last + 1 < len(order) and all(same[order[last + 1], order[i]] for i in range(first, last + 1)):
            last += 1
        run = tuple(order[first : last + 1])
        if len(run) > 1 and not any(set(run) <= set(other) for other in found):
            found.append(run)
    return found
