"""The leaderboard against hand arithmetic, SciPy, pandas and the wording of what it must not hide."""

from __future__ import annotations

import io
import itertools
import json
import random
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from musicnet_eval import leaderboard, records
from musicnet_eval.errors import ConfigError, RecordError
from musicnet_eval.leaderboard import values
from musicnet_eval.leaderboard.board import upper_quantile
from musicnet_eval.metrics import METRICS, ONE_LABEL, Scored
from musicnet_eval.records import Prediction
from tests.fake_runs import predictions, said, write_failed, write_run, write_status

CONTRACT = [
    *("configuration", "choices", "runs", "songs", "mean", "sd"),
    *("ci_low", "ci_high", "p_value", "p_holm", "rank", "best_group"),
]


def only_row(folder: Path, **options) -> leaderboard.Row:
    (table,) = leaderboard.collect([folder], **options).tables
    (row,) = table.rows
    return row


def labels(folder: Path, **options) -> list[str]:
    return [row.label for table in leaderboard.collect([folder], **options).tables for row in table.rows]


# --- numbers ------------------------------------------------------------------------------------------------------------------


def test_mean_and_sd_are_those_of_the_statistics_module(tmp_path):
    counts = [11, 14, 18]
    for seed, correct in enumerate(counts):
        write_run(tmp_path, correct, seed=seed)
    row = only_row(tmp_path)
    assert row.mean == pytest.approx(statistics.mean(c / 20 for c in counts))
    assert row.sd == pytest.approx(statistics.stdev(c / 20 for c in counts))
    assert row.gap == pytest.approx(statistics.mean(0.95 - 0.9 * c / 20 for c in counts))
    assert (len(row.runs), row.songs, row.seconds, row.parameters) == (3, 20, 60.0, 11_170_000)


def test_one_run_has_no_sd(tmp_path):
    write_run(tmp_path)
    row = only_row(tmp_path)
    assert row.sd is None
    assert "–" in leaderboard.to_markdown(leaderboard.collect([tmp_path]))


def test_folds_test_different_songs(tmp_path):
    for fold in range(3):
        write_run(tmp_path, 10 + fold, fold=fold)
    row = only_row(tmp_path)
    assert (len(row.runs), row.songs, row.repeats("fold")) == (3, 60, [0, 1, 2])


@pytest.mark.parametrize(
    ("metric", "best"), [("test/song/accuracy", "good"), ("test/song/log_loss", "good"), ("gap/segment/accuracy", "good")]
)
def test_rank_follows_the_direction_of_the_metric(tmp_path, metric, best):
    write_run(tmp_path, 18, backbone="good")
    write_run(tmp_path, 12, backbone="poor")
    (table,) = leaderboard.collect([tmp_path], metric).tables
    assert [(row.rank, row.label) for row in table.rows] == [(1, best), (2, "poor")]


def test_equal_means_share_a_rank(tmp_path):
    for backbone, correct in (("a", 15), ("b", 15), ("c", 10)):
        write_run(tmp_path, correct, backbone=backbone)
    (table,) = leaderboard.collect([tmp_path]).tables
    assert [row.rank for row in table.rows] == [1, 1, 3]


@given(st.integers(1, 400), st.floats(0.001, 0.999), st.sampled_from([0.9, 0.95, 0.99]))
def test_binomial_quantile_is_scipys(n, p, level):
    assert upper_quantile(n, p, level) == stats.binom.ppf(level, n, p)


@pytest.mark.parametrize(("n", "half"), [(1, 0), (9, 4), (69, 34), (401, 200)])
def test_an_exact_tie_is_not_lost_to_rounding(n, half):
    assert upper_quantile(n, 0.5, 0.5) == half  # by symmetry; SciPy's own answer for 69 is 35


def test_certain_guess_can_not_be_beaten():
    assert upper_quantile(7, 1.0) == 7


@pytest.mark.parametrize(
    ("correct", "at_chance"), [(58, True), (59, False)]
)  # P(X ≤ 58) = 0.956, P(X ≤ 57) = 0.933 for (100, 1/2)
def test_at_chance_begins_where_the_binomial_says(tmp_path, correct, at_chance):
    write_run(tmp_path, correct, songs=100)
    board = leaderboard.collect([tmp_path])
    chance = board.tables[0].rows[0].chance
    assert (chance.rate, chance.not_beaten) == (0.5, at_chance)
    text = leaderboard.to_markdown(board)
    assert ("0.5800 †" in text) == at_chance
    assert ("binomial" in text) == at_chance


def test_more_seeds_are_not_more_songs(tmp_path):
    for seed in range(5):
        write_run(tmp_path, 56, songs=100, seed=seed)
    chance = only_row(tmp_path).chance
    assert (chance.songs, chance.not_beaten) == (100, True)  # 280 of 500 independent songs would not be at chance
    assert stats.binom.ppf(0.95, 500, 0.5) < 280


def test_groups_count_where_they_are_fewer_than_songs(tmp_path):
    write_run(tmp_path / "songs", 65, songs=100)
    write_run(tmp_path / "groups", 65, songs=100, groups=10)
    assert not only_row(tmp_path / "songs").chance.not_beaten
    row = only_row(tmp_path / "groups")
    assert (row.chance.groups, row.chance.not_beaten) == (10, True)  # 6.5 of 10; the quantile is 8


def test_multilabel_has_no_chance(tmp_path):
    rows = [row._replace(label="blues|jazz") for row in predictions(10, 20, ["blues", "jazz"])]
    write_run(tmp_path, rows=rows)
    assert only_row(tmp_path).chance is None


# --- which runs make which row ------------------------------------------------------------------------------------------------


def test_data_sets_and_protocols_are_never_mixed(tmp_path):
    write_run(tmp_path, data="gtzan")
    write_run(tmp_path, data="fma")
    write_run(tmp_path, data="fma", protocol="official")
    board = leaderboard.collect([tmp_path])
    assert [(table.data, table.protocol) for table in board.tables] == [
        ("fma", "group_kfold"),
        ("fma", "official"),
        ("gtzan", "group_kfold"),
    ]
    assert [(row["choices"]["data"], row["rank"]) for row in leaderboard.as_rows(board)] == [("fma", 1), ("fma", 1), ("gtzan", 1)]


def test_a_run_found_twice_counts_once_and_is_named(tmp_path):
    run = write_run(tmp_path / "runs", 15)
    write_run(tmp_path / "runs", 16, seed=1)
    shutil.copytree(run, tmp_path / "runs" / "zz-copy")
    board = leaderboard.collect([tmp_path / "runs", run])
    assert len(board.tables[0].rows[0].runs) == 2
    assert [(listed.name, listed.message) for listed in board.duplicates] == [("zz-copy", f"the same run as {run.name}")]


def test_data_sets_that_share_names_and_labels_are_no_copies(tmp_path):
    clean = write_run(tmp_path / "clean", 15, data="clean")
    noisy = write_run(tmp_path / "noisy", 12, data="noisy")
    record = records.read_json(noisy / "result.json")
    records.write_json(noisy / "result.json", record | {"signature": records.read_result(clean)["signature"]})
    board = leaderboard.collect([tmp_path])
    assert board.duplicates == []
    assert [(table.data, len(table.rows)) for table in board.tables] == [("clean", 1), ("noisy", 1)]


def test_a_copy_with_another_number_is_said_to_differ(tmp_path):
    run = write_run(tmp_path, 15)
    copy = tmp_path / "zz"
    shutil.copytree(run, copy)
    record = records.read_json(copy / "result.json")
    record["metrics"]["test/song/accuracy"] = 0.99
    records.write_json(copy / "result.json", record)
    (listed,) = leaderboard.collect([tmp_path]).duplicates
    assert "0.7500" in listed.message
    assert "0.9900" in listed.message


def test_label_shows_the_choices_that_differ(tmp_path):
    write_run(tmp_path, 15, backbone="vgg11", loss="trusted")
    write_run(tmp_path, 14, backbone="vgg11", loss="cross_entropy")
    assert labels(tmp_path) == ["vgg11 · trusted", "vgg11 · cross_entropy"]


def test_label_shows_every_override_that_tells_rows_apart(tmp_path):
    quiet = [
        "hydra.launcher.n_jobs=2",
        "hydra/launcher=own",
        "run.force=true",
        "logger=wandb",
        "data.root=/x",
        "trainer.enable_progress_bar=false",
    ]
    for seed in range(2):
        lr = ["1e-3", "0.001"][seed]  # the same number, written in two ways
        write_run(
            tmp_path, 15, seed=seed, overrides=[f"optimizer.lr={lr}", "trainer.max_epochs=3", *quiet[seed:]], config={"lr": 0.001}
        )
    write_run(tmp_path, 14, overrides=["++optimizer.lr=0.1", "trainer.max_epochs=3", "data.fold=0"], config={"lr": 0.1})
    write_run(tmp_path, 13, overrides=["trainer.max_epochs=3", "augment=none"], config={"lr": 0.3})
    assert labels(tmp_path) == ["resnet18 · optimizer.lr=0.001", "resnet18 · optimizer.lr=0.1", "resnet18"]


def test_label_falls_back_on_the_config_and_then_on_the_name(tmp_path):
    write_run(tmp_path / "yaml", 15, config={"optimizer": {"lr": 0.1}})
    write_run(tmp_path / "yaml", 14, config={"optimizer": {"lr": 0.2}})
    assert labels(tmp_path / "yaml") == ["resnet18 · optimizer.lr=0.1", "resnet18 · optimizer.lr=0.2"]
    for number, correct in enumerate((15, 14)):  # other songs under the same config: only the configuration's name differs
        run = write_run(tmp_path / "songs", correct)
        record = records.read_json(run / "result.json")
        records.write_json(run / "result.json", {**record, "configuration": f"{number}" * 12, "signature": f"{number}"})
        run.rename(run.with_name(str(number)))
    assert labels(tmp_path / "songs") == ["resnet18 · #000000", "resnet18 · #111111"]


def test_rows_tested_on_other_songs_or_seeds_are_said_to_differ(tmp_path):
    write_run(tmp_path, 15, backbone="a")
    write_run(tmp_path, 15, backbone="b", seed=1, songs=30)
    assert "differ in their seeds and folds and in their test songs" in leaderboard.to_markdown(leaderboard.collect([tmp_path]))


# --- intervals and tests ------------------------------------------------------------------------------------------------------


def rows_of(folder: Path, **options) -> dict[str, dict]:
    return {row["label"]: row for row in leaderboard.as_rows(leaderboard.collect([folder], **options))}


def notes_of(folder: Path, **options) -> str:
    return "\n".join(leaderboard.collect([folder], **options).tables[0].inference)


def mixed(share: float, songs: int = 60, shift: int = 0) -> list[bool]:
    right = set(random.Random(shift).sample(range(songs), round(share * songs)))
    return [i in right for i in range(songs)]


def test_one_run_has_the_interval_of_clopper_and_pearson_and_says_whose_it_is(tmp_path):
    write_run(tmp_path, 17)
    exact = stats.binomtest(17, 20).proportion_ci(method="exact")
    assert only_row(tmp_path).interval == pytest.approx((exact.low, exact.high))
    assert "of that trained model only" in notes_of(tmp_path)


def test_two_single_runs_are_compared_by_mcnemar(tmp_path):
    good, poor = mixed(0.9), mixed(0.6, shift=5)
    write_run(tmp_path, rows=said(good), songs=60, backbone="good")
    write_run(tmp_path, rows=said(poor), songs=60, backbone="poor")
    only = [sum(a and not b for a, b in zip(x, y, strict=True)) for x, y in ((good, poor), (poor, good))]
    row = rows_of(tmp_path)["poor"]
    assert row["p_value"] == pytest.approx(stats.binomtest(only[0], sum(only)).pvalue)
    assert row["p_holm"] == row["p_value"]  # one pair: nothing to correct
    assert row["difference"] == pytest.approx(-0.3)
    assert row["best_group"] is False
    assert "McNemar" in notes_of(tmp_path)


def test_best_group_is_marked_and_said(tmp_path):
    for backbone, share in (("a", 0.9), ("b", 0.85), ("c", 0.3)):
        for seed in range(5):
            write_run(tmp_path, rows=said(mixed(share, shift=seed + 10 * ord(backbone))), backbone=backbone, seed=seed)
    rows = rows_of(tmp_path)
    assert {label: row["best_group"] for label, row in rows.items()} == {"a": True, "b": True, "c": False}
    assert rows["c"]["p_holm"] > rows["c"]["p_value"]
    assert rows["a"]["p_value"] is None
    text = leaderboard.to_markdown(leaderboard.collect([tmp_path]))
    assert [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")][2:] == ["1*", "2*", "3"]
    assert "corrected for all 3 pairs (Holm)" in text
    assert "of that trained model only" not in text


def test_baseline_takes_the_place_of_the_best(tmp_path):
    for backbone, share in (("a", 0.9), ("b", 0.85), ("c", 0.3)):
        write_run(tmp_path, rows=said(mixed(share)), backbone=backbone)
    rows = rows_of(tmp_path, baseline={"backbone": "c"})
    assert rows["a"]["compared_with"] == "c"
    assert rows["a"]["difference"] == pytest.approx(0.6)
    assert rows["a"]["difference_low"] > 0
    assert rows["c"]["p_value"] is None
    assert rows["c"]["best_group"] is False
    with pytest.raises(ConfigError, match="fits 3 rows"):
        leaderboard.collect([tmp_path], baseline={"loss": "cross_entropy"})


def test_clips_of_a_work_do_not_count_as_songs(tmp_path):
    hits = mixed(0.7)
    for name, groups in (("alone", None), ("grouped", [f"g{i // 6}" for i in range(60)])):
        write_run(tmp_path / name, rows=said([hits[i - i % 6] for i in range(60)], groups))
    (low, high), (wide_low, wide_high) = (only_row(tmp_path / name).interval for name in ("alone", "grouped"))
    assert wide_high - wide_low > 2 * (high - low)


def test_folds_are_one_test_a_seed(tmp_path):
    hits = mixed(0.7, 40)
    for fold in range(2):
        rows = [row._replace(song=f"{fold}-{row.song}", group=f"{fold}-{row.song}") for row in said(hits[20 * fold :][:20])]
        write_run(tmp_path / "folds", rows=rows, fold=fold)
    write_run(tmp_path / "whole", rows=said(hits))
    assert only_row(tmp_path / "folds").interval == pytest.approx(only_row(tmp_path / "whole").interval)


def altered(rows, **change):
    return [rows[0]._replace(**change), *rows[1:]]


@pytest.mark.parametrize("change", [{"song": "other", "group": "other"}, {"label": "jazz"}, {"group": "elsewhere"}])
def test_another_test_set_is_refused_with_the_reason(tmp_path, change):
    rows = said(mixed(0.6))
    write_run(tmp_path, rows=said(mixed(0.9)), backbone="a")
    write_run(tmp_path, rows=altered(rows, **change), backbone="b")
    write_run(tmp_path, rows=rows, backbone="c")
    found = rows_of(tmp_path)
    assert [found["b"][key] for key in ("p_value", "p_holm", "best_group")] == [None] * 3
    assert found["c"]["p_value"] is not None
    assert "b: not tested: other songs, labels, groups, folds or classes" in notes_of(tmp_path)


def test_other_classes_are_said_and_not_tested(tmp_path):
    write_run(tmp_path, rows=said(mixed(0.9)), backbone="a")
    other = write_run(tmp_path, rows=said(mixed(0.6)), backbone="b")
    record = records.read_json(other / "result.json")
    records.write_json(other / "result.json", {**record, "facts": {"classes": ["blues", "jazz", "pop"]}})
    assert rows_of(tmp_path)["b"]["p_value"] is None
    assert "differ in their classes" in leaderboard.to_markdown(leaderboard.collect([tmp_path]))


def test_seeds_on_other_songs_have_no_interval(tmp_path):
    write_run(tmp_path, songs=20)
    write_run(tmp_path, songs=30, seed=1)
    assert only_row(tmp_path).interval is None
    assert "its seeds were not put to the same songs" in notes_of(tmp_path)


@pytest.mark.parametrize(
    ("rows", "metrics", "reason"),
    [
        (said(mixed(0.7)), {"test/song/accuracy": 0.9}, "another accuracy"),
        ([*said(mixed(0.7)), said(mixed(0.7))[0]], None, "twice"),
        (said(mixed(0.7), ["one"] * 60), None, "one group"),
        ([row._replace(label="pop") for row in said(mixed(0.7))], {}, "names a class pop"),
    ],
)
def test_predictions_that_allow_no_interval_are_named(tmp_path, rows, metrics, reason):
    write_run(tmp_path, rows=rows, metrics=metrics)
    assert only_row(tmp_path).interval is None
    assert "resnet18: no interval" in notes_of(tmp_path)
    assert reason in notes_of(tmp_path)


def test_other_metrics_have_no_tests_and_say_so(tmp_path):
    for backbone in "ab":
        write_run(tmp_path, backbone=backbone, metrics={"test/song/ece": 0.1})
    assert {row["p_value"] for row in rows_of(tmp_path, metric="test/song/ece").values()} == {None}
    assert "exist for test/song/… (accuracy, " in notes_of(tmp_path, metric="test/song/ece")


def test_losses_get_t_intervals_and_paired_t_tests(tmp_path):
    draw = np.random.default_rng(0)
    chances = {name: np.clip(draw.normal(mean, 0.1, 40), 0.05, 0.95) for name, mean in (("a", 0.7), ("b", 0.6))}
    losses = {}
    for backbone, p in chances.items():
        rows = [
            row._replace(probabilities={row.label: round(x, 4), row.predicted: 1 - round(x, 4)})
            for row, x in zip(said([False] * 40), p, strict=True)
        ]
        losses[backbone] = np.array([-np.log(row.probabilities[row.label]) for row in rows])
        write_run(tmp_path, rows=rows, backbone=backbone, metrics={"test/song/log_loss": losses[backbone].mean()})
    found = rows_of(tmp_path, metric="test/song/log_loss")
    assert found["a"]["rank"] == 1
    for name, row in found.items():
        want = stats.t.interval(0.95, 39, losses[name].mean(), stats.sem(losses[name]))
        assert (row["ci_low"], row["ci_high"]) == pytest.approx(want, abs=1e-4)
    assert found["b"]["p_value"] == pytest.approx(stats.ttest_rel(losses["a"], losses["b"]).pvalue, rel=1e-2)


# --- metrics song by song -----------------------------------------------------------------------------------------------------


def answers(songs=60, classes=4, seed=0, several=False):
    draw = np.random.default_rng(seed)
    names = tuple("abcd"[:classes])
    rows = []
    for number in range(songs):
        chances = draw.dirichlet(np.ones(classes))
        if several:
            truth, told = (draw.random(classes) < 0.4, chances > 0.3)
            label, predicted = ("|".join(itertools.compress(names, held)) for held in (truth, told))
        else:
            label, predicted = names[draw.integers(classes)], names[int(chances.argmax())]
        rows.append(Prediction("test", f"{number}", f"{number}", label, predicted, dict(zip(names, chances, strict=True))))
    return rows, names


@pytest.mark.parametrize("metric", values.JUDGED)
@pytest.mark.parametrize("several", [False, True], ids=["one label", "several"])
def test_values_average_to_the_metric_and_follow_it(metric, several):
    name = metric.removeprefix("test/song/")
    if several and name in ONE_LABEL:
        return
    rows, names = answers(several=several)

    def whole(rows):
        held = torch.tensor([[c in row.label.split("|") for c in names] for row in rows])
        chances = torch.tensor([[row.probabilities[c] for c in names] for row in rows], dtype=torch.float64)
        told = torch.tensor([[c in row.predicted.split("|") for c in names] for row in rows])
        return float(METRICS[name](Scored(chances, held, told, several)))

    found = values.of(metric, rows, names, several=several)
    assert found.mean() == pytest.approx(whole(rows), abs=1e-6)
    # A song that is heard many times more pulls the metric along its value: the derivative by its weight.
    times = 50
    for number in (0, 7, 23):
        heard = [row for row in rows for _ in range(times)] + [rows[number]]
        slope = (whole(heard) - whole(rows)) * (len(rows) * times + 1)
        assert slope == pytest.approx(found[number] - found.mean(), abs=0.02)


@pytest.mark.parametrize("metric", ["test/song/accuracy", "test/song/log_loss"])
def test_rows_that_all_data_sets_have_are_ranked_over_them(tmp_path, metric):
    for number, scores in enumerate(((18, 15, 10), (16, 14, 12), (15, 17, 9), (19, 18, 11))):
        for backbone, correct in zip("abc", scores, strict=True):
            write_run(tmp_path, correct, data=f"data{number}", backbone=backbone)
    write_run(tmp_path, 20, data="data0", backbone="only here")
    board = leaderboard.collect([tmp_path], metric)
    assert "Mean ranks over 4 data sets, 1 is best: a 1.25; b 1.75; c 3.00." in board.notes[0]
    apart = 2.343 * (3 * 4 / (6 * 4)) ** 0.5  # 2.343: Nemenyi's q for three rows at 5 %, table 5 of Demšar (2006)
    assert f"lie {apart:.2f} apart" in board.notes[0]
    for written in (leaderboard.to_markdown(board), leaderboard.to_latex(board)):
        assert "Nemenyi" in written
    assert not leaderboard.collect([tmp_path / run.name for run in tmp_path.iterdir() if "only" in run.name], metric).notes


# --- --by ---------------------------------------------------------------------------------------------------------------------


def test_by_averages_over_what_every_row_has(tmp_path):
    scores = {("a", "ce"): 18, ("a", "trusted"): 16, ("b", "ce"): 12, ("b", "trusted"): 14}
    for (backbone, loss), correct in scores.items():
        write_run(tmp_path, correct, backbone=backbone, loss=loss)
    (table,) = leaderboard.collect([tmp_path], by=["backbone"]).tables
    assert [(row.label, row.mean, len(row.runs)) for row in table.rows] == [
        ("a", pytest.approx(0.85), 2),
        ("b", pytest.approx(0.65), 2),
    ]
    assert "averages over loss (ce, trusted)" in table.notes[-1]
    assert "loss" not in table.rows[0].choices


def test_by_refuses_to_compare_unlike_things(tmp_path):
    for backbone, loss in (("a", "ce"), ("a", "trusted"), ("b", "ce")):
        write_run(tmp_path, backbone=backbone, loss=loss)
    with pytest.raises(ConfigError, match=r"differ in loss\. Use --by backbone,loss,"):
        leaderboard.collect([tmp_path], by=["backbone"])


def test_by_takes_an_overridden_key(tmp_path):
    for lr in ("0.1", "0.2"):
        write_run(tmp_path, overrides=[f"optimizer.lr={lr}"], config={"lr": lr})
    assert labels(tmp_path, by=["optimizer.lr"]) == ["optimizer.lr=0.1", "optimizer.lr=0.2"]


def test_by_names_the_nearest(tmp_path):
    write_run(tmp_path)
    with pytest.raises(ConfigError, match="did you mean 'backbone'"):
        leaderboard.collect([tmp_path], by=["bakbone"])


# --- what is in no mean -------------------------------------------------------------------------------------------------------


def test_runs_that_did_not_finish_are_listed(tmp_path):
    write_run(tmp_path)
    write_failed(tmp_path / "oom", "RuntimeError: out of memory\nand more")
    write_status(tmp_path / "going", "running")
    write_status(tmp_path / "cut", "interrupted")
    board = leaderboard.collect([tmp_path])
    assert [(run.name, run.state) for run in board.failures] == [("cut", "interrupted"), ("going", "running"), ("oom", "failed")]
    assert board.failures[2].message == "RuntimeError: out of memory"
    assert "epoch 3" in board.failures[1].message


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": 2}', '{"schema": 1}', "\x00", '"text"', "9" * 5000])
def test_damaged_records_are_named_and_left_out(tmp_path, content):
    write_run(tmp_path)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "result.json").write_text(content)
    board = leaderboard.collect([tmp_path])
    assert [run.name for run in board.damaged] == ["bad"]
    assert len(board.tables[0].rows[0].runs) == 1


@pytest.mark.parametrize("name", ["status.json", "failed.json"])
def test_damaged_status_is_named(tmp_path, name):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / name).write_text("{")
    assert [run.name for run in leaderboard.collect([tmp_path]).damaged] == ["bad"]


def test_a_run_whose_record_is_gone_is_named(tmp_path):
    (write_run(tmp_path) / "result.json").unlink()
    write_status(tmp_path / "gone", "done")
    ((told),) = leaderboard.collect([tmp_path]).damaged
    assert told.name == "gone"
    assert "gone/result.json' does not exist" in told.message


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_a_run_without_the_number_is_listed_never_averaged(tmp_path, value):
    write_run(tmp_path, 15)
    run = write_run(tmp_path, 10, seed=1)
    record = records.read_json(run / "result.json")
    record["metrics"]["test/song/accuracy"] = value
    (run / "result.json").write_text(json.dumps(record))
    board = leaderboard.collect([tmp_path])
    assert board.tables[0].rows[0].values == (0.75,)
    assert [listed.name for listed in board.missing] == [run.name]


def test_a_record_without_predictions_is_ranked_and_named(tmp_path):
    run = write_run(tmp_path, 15)
    (run / "predictions.csv").unlink()
    board = leaderboard.collect([tmp_path])
    row = board.tables[0].rows[0]
    assert (row.mean, row.songs, row.chance) == (0.75, None, None)
    assert "predictions.csv" in board.missing[0].message


def test_unknown_metric_names_the_nearest(tmp_path):
    write_run(tmp_path)
    with pytest.raises(ConfigError, match="did you mean 'test/song/accuracy'"):
        leaderboard.collect([tmp_path], "test/song/acuracy")


def test_folder_that_is_not_there(tmp_path):
    with pytest.raises(RecordError, match="nowhere"):
        leaderboard.collect([tmp_path / "nowhere"])


# --- formats ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def board(tmp_path):
    write_run(tmp_path, 15, backbone="a|b", seed=0)
    write_run(tmp_path, 17, backbone="a|b", seed=1)
    write_run(tmp_path, 12, backbone="plain", loss="a,b")
    write_run(tmp_path, 12, data="other")
    return leaderboard.collect([tmp_path])


def test_json_rows_have_the_keys_of_the_contract(board):
    rows = json.loads(leaderboard.to_json(board))
    assert len(rows) == 3
    for row in rows:
        assert list(row)[: len(CONTRACT)] == CONTRACT
        assert (row["p_value"] is None) == (row["rank"] == 1)
        assert row["ci_low"] < row["mean"] < row["ci_high"]
    best = next(row for row in rows if row["choices"]["backbone"] == "a|b")
    assert (best["mean"], best["runs"], best["rank"], best["seeds"]) == (0.8, 2, 1, [0, 1])


def test_csv_reads_back_with_pandas(board):
    frame = pd.read_csv(io.StringIO(leaderboard.to_csv(board)), dtype={"configuration": str})
    rows = leaderboard.as_rows(board)
    assert frame["mean"].tolist() == [row["mean"] for row in rows]
    assert frame["label"].tolist() == [row["label"] for row in rows]
    assert frame["configuration"].tolist() == [row["configuration"] for row in rows]
    assert frame["sd"].isna().tolist() == [row["sd"] is None for row in rows]
    assert frame["data"].tolist() == ["other", "toy", "toy"]


def test_markdown_pipes_stand_below_each_other(board):
    lines = [line for line in leaderboard.to_markdown(board).splitlines() if line.startswith("|")]
    tables = [lines[:3], lines[3:]]
    for table in tables:
        bare = [line.replace("\\|", "__") for line in table]
        assert len({tuple(i for i, char in enumerate(line) if char == "|") for line in bare}) == 1
    assert any("a\\|b" in line for line in lines)


def test_texts_of_strangers_stay_text(tmp_path, capsys):
    write_run(tmp_path, backbone="[red]x[/red]\x1b[31m\n\u202eevil <script>", loss="=1+1")
    write_failed(tmp_path / "f", "\x1b]0;title\x07 [bold]oops[/bold]")
    board = leaderboard.collect([tmp_path])
    leaderboard.show(board)
    shown = capsys.readouterr().out
    assert "[red]x[/red]" in shown
    assert "[bold]oops[/bold]" in shown
    assert not set("\x1b\x07\u202e") & set(shown + leaderboard.to_markdown(board) + leaderboard.to_csv(board))
    assert "\\<script>" in leaderboard.to_markdown(board)
    assert pd.read_csv(io.StringIO(leaderboard.to_csv(board)))["loss"].tolist() == ["'=1+1"]


def test_latex_has_a_booktabs_row_each_and_no_bare_specials(board):
    text = leaderboard.to_latex(board)
    for name in ("toprule", "midrule", "bottomrule"):
        assert text.count(f"\\{name}") == len(board.tables)
    assert r"a\textbar{}b" in text
    assert r"95 \% interval" in text
    body = [line for line in text.splitlines() if not line.startswith("%") and not line.endswith(r"\\")]
    assert not re.search(r"(?<!\\)[#%&_$]", "\n".join(body))
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in rows} == {11}


def test_write_leaves_two_whole_files(board, tmp_path):
    leaderboard.write(board, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["leaderboard.csv", "leaderboard.md"]
    assert (tmp_path / "out" / "leaderboard.md").read_text(encoding="utf8") == leaderboard.to_markdown(board)


def test_write_says_that_nothing_finished(tmp_path):
    write_failed(tmp_path / "f")
    leaderboard.write(leaderboard.collect([tmp_path]), tmp_path)
    text = (tmp_path / "leaderboard.md").read_text(encoding="utf8")
    assert "No finished run" in text
    assert "out of memory" in text


# --- the command --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["terminal", "md", "csv", "latex", "json"])
def test_command_prints_and_writes_every_format(tmp_path, capsys, form):
    write_run(tmp_path / "runs", 17)
    assert leaderboard.main([str(tmp_path / "runs"), "--format", form]) == 0
    assert "0.85" in capsys.readouterr().out
    assert leaderboard.main([str(tmp_path / "runs"), "--format", form, "--output", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out")
    assert "0.85" in (tmp_path / "out").read_text(encoding="utf8")


def test_command_stays_at_0_with_damaged_and_failed_runs(tmp_path, capsys):
    write_run(tmp_path)
    write_failed(tmp_path / "failed")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "result.json").write_text("{")
    assert leaderboard.main([str(tmp_path), "--format", "json"]) == 0
    said = capsys.readouterr()
    assert len(json.loads(said.out)) == 1
    assert "out of memory" in said.err
    assert "bad" in said.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "not a folder"),
        (["empty"], "no finished run"),
        (["runs", "--metric", "test/song/f1"], "is in none"),
        (["runs", "--by", "seed"], "neither a choice"),
        (["runs", "--baseline", "backbone=vgg"], "fits 0 rows"),
        (["runs", "--output", "empty"], "cannot be written"),
    ],
)
def test_command_says_what_is_wrong_and_exits_2(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    write_run(tmp_path / "runs")
    assert leaderboard.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_command_names_the_failures_when_nothing_finished(tmp_path, capsys):
    write_failed(tmp_path / "f")
    assert leaderboard.main([str(tmp_path)]) == 2
    assert "out of memory" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["leaderboard", "report"])
def test_help_loads_nothing_heavy(name):
    code = (
        f"import sys; from musicnet_eval.{name} import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as leave: assert leave.code == 0\n"
        "heavy = {'torch', 'scipy', 'lightning', 'hydra', 'numpy', 'matplotlib', 'jinja2', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "exit codes" in done.stdout
