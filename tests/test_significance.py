"""Intervals and tests against SciPy, plain loops, a published example, and simulated sweeps with a stated truth."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from experiments.statistics import simulate
from musicnet_eval import significance


def drawn(seed: int = 0, seeds: int = 3, songs: int = 40, share: float = 0.7) -> np.ndarray:
    rng = np.random.default_rng(seed)
    chance = np.clip(share + 0.3 * rng.standard_normal(songs) + 0.1 * rng.standard_normal((seeds, 1)), 0, 1)
    return (rng.random((seeds, songs)) < chance).astype(float)


def limits(*arguments, **options) -> list[float]:
    return [float(limit) for limit in significance.interval(*arguments, **options)]


def two(a: np.ndarray, b: np.ndarray, sizes: np.ndarray | None = None, hits: np.ndarray | None = None) -> significance.Pairs:
    return significance.pairs([significance.parts(a, sizes), significance.parts(b, sizes)], hits)


# --- one row ------------------------------------------------------------------------------------------------------------------


def test_parts_are_the_mean_squares_of_plain_loops():
    scores = drawn(seeds=4, songs=9)
    s, g = scores.shape
    mean = sum(map(sum, scores)) / (s * g)
    of_seed = [sum(row) / g for row in scores]
    of_song = [sum(scores[i][j] for i in range(s)) / s for j in range(g)]
    ms_seed = sum(g * (x - mean) ** 2 for x in of_seed) / (s - 1)
    rest = [(scores[i][j] - of_seed[i] - of_song[j] + mean) ** 2 for i, j in itertools.product(range(s), range(g))]
    found = significance.parts(scores)
    assert found.mean == pytest.approx(mean)
    assert found.seed == pytest.approx(ms_seed / (s * g))
    assert found.error == pytest.approx(sum(rest) / ((s - 1) * (g - 1)) / (s * g))
    assert found.songs == pytest.approx(np.array(of_song) - mean)


@pytest.mark.parametrize("songs", [2, 30, 290])
def test_one_model_has_the_interval_of_clopper_and_pearson(songs):
    for right in range(songs + 1):
        exact = stats.binomtest(right, songs).proportion_ci(method="exact")
        scores = (np.arange(songs) < right).astype(float)[None]
        assert significance.interval(scores) == pytest.approx((exact.low, exact.high), abs=1e-7)


def test_a_seed_that_repeats_another_teaches_nothing():
    one = drawn(seeds=1)
    assert limits(np.repeat(one, 3, axis=0)) == pytest.approx(limits(one))


def test_where_only_seeds_differ_the_limits_lie_as_far_as_students():
    """Many songs at hand, seeds far apart: the interval is the t interval of the seeds' means, up to the bend near 0 and 1."""
    rng = np.random.default_rng(1)
    means = np.array([0.46, 0.5, 0.54])
    scores = (rng.permuted(np.tile((np.arange(20000) + 0.5) / 20000, (3, 1)), axis=1) < means[:, None]).astype(float)
    low, high = significance.interval(scores)
    student = stats.t.interval(0.95, 2, means.mean(), stats.sem(means))
    assert (low, high) == pytest.approx(student, abs=0.01)


def test_clips_of_one_work_narrow_nothing():
    works = drawn(seeds=1, songs=30)
    clips = np.repeat(works, 4, axis=1)
    low, high = limits(works)
    grouped = limits(works, np.ones(30), songs=120)  # sums over the four clips of a work, scaled
    assert grouped == pytest.approx((low, high), abs=0.02)
    assert np.diff(limits(clips))[0] < 0.6 * (high - low)


@given(st.integers(1, 5), st.integers(2, 40), st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_an_interval_holds_its_mean_and_stays_within_0_and_1(seeds, songs, seed):
    scores = (np.random.default_rng(seed).random((seeds, songs)) < np.random.default_rng(seed + 1).random()).astype(float)
    low, high = significance.interval(scores)
    assert 0 <= low <= scores.mean() <= high <= 1
    assert low < high


# --- two rows -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_two_single_models_are_tested_by_mcnemar(seed):
    a, b = drawn(seed, 1, share=0.8), drawn(seed + 100, 1, share=0.5)
    only_a, only_b = int((a > b).sum()), int((b > a).sum())
    found = two(a, b, hits=np.concatenate([a, b]))
    assert found.p[0, 1] == pytest.approx(stats.binomtest(only_a, only_a + only_b).pvalue)


def test_two_equal_models_have_p_1():
    a = drawn(seeds=1)
    assert two(a, a, hits=np.concatenate([a, a])).p.tolist() == [[1, 1], [1, 1]]
    assert two(drawn(), drawn()).p.tolist() == [[1, 1], [1, 1]]


def test_single_models_on_groups_are_tested_as_by_scipy():
    """The paired t of group scores; a permutation of signs, which assumes less, agrees."""
    rng = np.random.default_rng(3)
    a, b = rng.random((2, 1, 25))
    a += 0.15
    p = two(a, b).p[0, 1]
    assert p == pytest.approx(stats.ttest_rel(a[0], b[0]).pvalue, rel=1e-4)
    signs = stats.permutation_test(
        (a[0], b[0]), lambda x, y: (x - y).mean(), permutation_type="samples", n_resamples=20_000, rng=rng
    )
    assert p == pytest.approx(signs.pvalue, abs=0.01)


def test_where_only_seeds_differ_rows_are_tested_by_welch():
    a, b = (np.repeat(np.array(means)[:, None], 50, axis=1) for means in ((0.7, 0.74, 0.8, 0.69), (0.6, 0.69, 0.66)))
    expected = stats.ttest_ind(a[:, 0], b[:, 0], equal_var=False)
    assert two(a, b).p[0, 1] == pytest.approx(expected.pvalue, rel=1e-4)


def test_an_interval_that_misses_in_p_just_reaches_0():
    found = two(drawn(0), drawn(7, share=0.5))
    assert found.half_width(float(found.p[0, 1]))[0, 1] == pytest.approx(abs(found.difference[0, 1]), rel=1e-4)
    assert found.difference == pytest.approx(-found.difference.T)
    assert found.p == pytest.approx(found.p.T)


def test_no_p_is_below_that_of_all_signs_alike():
    right, wrong = np.ones((3, 6)), np.zeros((3, 6))
    assert two(right, wrong).p[0, 1] == 2 / 2**6


def test_rows_that_fail_on_the_same_songs_are_told_apart_sooner():
    rng = np.random.default_rng(5)
    hard = rng.permutation(100) < 30
    a = np.tile(~hard, (3, 1)).astype(float)
    alike, unlike = a.copy(), np.tile(rng.permutation(100) < 60, (3, 1)).astype(float)
    alike[:, np.flatnonzero(a[0])[:10]] = 0
    assert alike.mean() == unlike.mean()
    assert two(a, alike).p[0, 1] < two(a, unlike).p[0, 1]


# --- many rows ----------------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_rejects_what_the_step_down_procedure_rejects(p):
    corrected = significance.holm(np.array(p))
    for alpha in (0.01, 0.05, 0.3):
        rejected = set()
        for step, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
            if p[i] * (len(p) - step) > alpha:
                break
            rejected.add(i)
        assert set(np.flatnonzero(corrected <= alpha)) == rejected


def test_all_pairs_are_corrected_together():
    p = np.ones((3, 3))
    p[0, 1] = p[1, 0] = 0.01
    p[0, 2] = p[2, 0] = 0.02
    p[1, 2] = p[2, 1] = 0.5
    assert significance.holm_all_pairs(p) == pytest.approx(np.array([[1, 0.03, 0.04], [0.03, 1, 0.5], [0.04, 0.5, 1]]))


DEMSAR = """
.763 .768 .771 .798  .599 .591 .590 .569  .954 .971 .968 .967  .628 .661 .654 .657  .882 .888 .886 .898  .936 .931 .916 .931
.661 .668 .609 .685  .583 .583 .563 .625  .775 .838 .866 .875  1 1 1 1  .940 .962 .965 .962  .619 .666 .614 .669
.972 .981 .9751 .975  .957 .978 .946 .970
"""
# Area under the curve of four variants of C4.5 on 14 data sets: table 6 of Demšar (2006). It prints .975 twice for `voting`, but
# its mean ranks follow only if the third is the higher one.


def test_ranks_over_data_sets_are_demsars():
    scores = np.array(DEMSAR.split(), float).reshape(14, 4)
    found = significance.mean_ranks(scores)
    assert found.ranks.round(3).tolist() == [3.143, 2.0, 2.893, 1.964]
    assert found.statistic == pytest.approx(3.69, abs=0.005)
    assert found.critical_difference == pytest.approx(1.25, abs=0.005)
    assert found.p == pytest.approx(stats.f.sf(found.statistic, 3, 39))
    assert significance.mean_ranks(scores, 0.1).critical_difference == pytest.approx(1.12, abs=0.005)


def test_pairs_over_data_sets_equal_a_second_library():
    scores = np.array(DEMSAR.split(), float).reshape(14, 4)
    found = significance.mean_ranks(scores)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own dependencies
        import scikit_posthocs
    nemenyi = scikit_posthocs.posthoc_nemenyi_friedman(scores).to_numpy()
    apart = np.abs(found.ranks[:, None] - found.ranks) >= found.critical_difference
    np.testing.assert_array_equal(apart[np.triu_indices(4, 1)], (nemenyi < 0.05)[np.triu_indices(4, 1)])
    pairs = scikit_posthocs.posthoc_wilcoxon(pd.DataFrame(scores).melt(), "value", "variable", p_adjust="holm").to_numpy()
    np.testing.assert_allclose(found.p_holm[np.triu_indices(4, 1)], pairs[np.triu_indices(4, 1)], atol=1e-9)


@given(st.integers(2, 7), st.randoms(use_true_random=False))
def test_cliques_are_the_longest_runs_of_equals(count, draw):
    ranks = np.array(draw.sample(range(20), count), float)
    same = np.eye(count, dtype=bool)
    for i, j in itertools.combinations(range(count), 2):
        same[i, j] = same[j, i] = draw.random() < 0.6
    order = np.argsort(ranks)
    runs = [order[a:b] for a in range(count) for b in range(a + 2, count + 1)]
    equal = [set(run) for run in runs if same[np.ix_(run, run)].all()]
    longest = [run for run in equal if not any(run < other for other in equal)]
    assert sorted(map(sorted, significance.cliques(ranks, same))) == sorted(map(sorted, longest))


def test_ranks_that_always_agree_are_certain():
    found = significance.mean_ranks(np.tile([0.9, 0.5, 0.1], (4, 1)))
    assert found.ranks.tolist() == [1, 2, 3]
    assert (found.statistic, found.p) == (math.inf, 0)


# --- simulated sweeps: the full tables are in experiments/statistics ------------------------------------------------------------

SWEEPS = 2000
WORST = [
    *itertools.product((0.3, 0.9), (30, 290), (3,), (0.0, 0.6)),
    *itertools.product((0.9,), (30, 290), (1, 5), (0.0, 0.6)),
    (0.5, 100, 1, 0.3),
    (0.5, 290, 3, 0.3),
]


@pytest.mark.parametrize("cell", WORST, ids=str)
def test_intervals_cover_the_truth(cell):
    assert simulate.coverage(np.random.default_rng(11), SWEEPS, cell)[0] >= 0.93


@pytest.mark.parametrize("cell", [(0.7, 100, 1, 0.0), (0.9, 100, 3, 0.6), (0.5, 290, 5, 0.3)], ids=str)
def test_intervals_of_groups_cover_the_truth(cell):
    assert simulate.coverage(np.random.default_rng(12), SWEEPS, cell, cell[1] // 4)[0] >= 0.93


@pytest.mark.slow
def test_the_simulation_can_tell_a_bad_interval():
    rng = np.random.default_rng(13)
    right, truth = simulate.draw(rng, 500, [0.7], 290, 3, 0.6)
    for low, high in (simulate.bootstrap(rng, right), significance.interval(right[:, :, :1])):
        assert ((low <= truth) & (truth <= high)).mean() < 0.9


@pytest.mark.parametrize(
    ("rows", "cell"),
    [(2, (0.5, 100, 5, 0.6)), (2, (0.9, 30, 3, 0.0)), (5, (0.7, 290, 1, 0.0)), (5, (0.9, 30, 3, 0.0)), (5, (0.3, 290, 3, 0.6))],
    ids=str,
)
def test_equal_rows_are_seldom_told_apart(rows, cell):
    assert simulate.false_exclusions(np.random.default_rng(14), SWEEPS, rows, cell) <= 0.055


def test_a_difference_of_10_points_is_found():
    excluded = simulate.excluded(simulate.discordant(np.random.default_rng(15), SWEEPS, 0.1, 0.15))
    assert excluded[:, 1].mean() >= 0.9
    assert excluded[:, 0].mean() < 0.001


def test_stated_accuracies_are_those_drawn():
    for accuracy, seeds, groups in itertools.product((0.3, 0.9), (1, 3), (None, 25)):
        right, truth = simulate.draw(np.random.default_rng(16), 3000, [accuracy], 100, seeds, 0.3, groups)
        assert right.mean() == pytest.approx(accuracy, abs=0.01)
        assert truth.mean() == pytest.approx(accuracy, abs=0.01)
