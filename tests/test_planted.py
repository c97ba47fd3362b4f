"""Planted faults: exact shares, whole units, nothing of it in validation and test, and no leaderboard that hides it."""

from __future__ import annotations

import csv
import random
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from scipy.stats import chisquare

from musicnet_eval import leaderboard, records
from musicnet_eval.contracts import Track
from musicnet_eval.datasets.planted import plant
from musicnet_eval.errors import ConfigError, DataError
from tests.conftest import TINY, Command


def tracks(classes: int = 4, groups: int = 20, songs: int = 2) -> list[Track]:
    """Make `groups` groups of `songs` songs a class: 16 of 20 train, 2 validate, 2 test."""
    made = []
    for label in range(classes):
        for number in range(groups):
            split = {0: "val", 1: "test"}.get(number % 10, "train")
            for song in range(songs):
                name = f"{label}/{number}/{song}"
                made.append(Track(name, Path(name), (f"class {label}",), f"{label}/{number}", split))
    return made


def of_training(found: list[Track]) -> dict[str, Track]:
    return {track.id: track for track in found if track.split == "train"}


def test_nothing_asked_for_is_nothing_done():
    assert plant(tracks()) == (tracks(), [])


@pytest.mark.parametrize(("share", "count"), [(0.2, 6), (0.4, 13), (0.999, 31)])
def test_wrong_labels_are_an_exact_share_of_each_class(share, count):
    found, faults = plant(tracks(), wrong_labels=share, seed=3)
    before, after = of_training(tracks()), of_training(found)
    changed = {name for name in before if before[name].labels != after[name].labels}
    assert Counter(before[name].labels for name in changed) == {(f"class {i}",): count for i in range(4)}
    assert {fault.song for fault in faults} == changed
    assert all((f.fault, f.true_label) == ("wrong_label", before[f.song].labels[0]) for f in faults)
    assert all((f.label, f.group) == (after[f.song].labels[0], before[f.song].group) for f in faults)


def test_wrong_labels_are_drawn_evenly_from_the_other_classes():
    faults = [fault for seed in range(20) for fault in plant(tracks(groups=50), wrong_labels=0.4, seed=seed)[1]]
    count = Counter((fault.true_label, fault.label) for fault in faults)
    assert len(count) == 4 * 3
    assert all(true != label for true, label in count)
    assert chisquare(list(count.values())).pvalue > 0.01


@pytest.mark.parametrize("imbalance", [2, 10])
def test_classes_become_unequal_geometrically(imbalance):
    found, faults = plant(tracks(groups=100), imbalance=imbalance)
    left = sorted(Counter(track.labels for track in of_training(found).values()).values(), reverse=True)
    assert left == [round(160 * imbalance ** (-place / 3)) for place in range(4)]
    assert Counter(fault.fault for fault in faults) == {"left_out": 4 * 160 - sum(left)}
    assert all(fault.label == "" for fault in faults)


def test_another_seed_makes_other_classes_rare():
    rarest = {min(_counts(plant(tracks(), imbalance=10, seed=seed)[0]).items(), key=lambda x: x[1])[0] for seed in range(12)}
    assert len(rarest) > 1


def _counts(found: list[Track]) -> Counter[str]:
    return Counter(track.labels[0] for track in of_training(found).values())


def test_both_at_once_mislabel_what_is_left():
    found, faults = plant(tracks(groups=100), wrong_labels=0.25, imbalance=10)
    wrong = Counter(fault.true_label for fault in faults if fault.fault == "wrong_label")
    left_out = Counter(fault.true_label for fault in faults if fault.fault == "left_out")
    assert all(wrong[label] == round(0.25 * (160 - left_out[label])) for label in wrong)
    assert len(wrong) == 4
    assert len(found) == len(tracks(groups=100)) - left_out.total()


def test_groups_are_changed_as_a_whole():
    found, faults = plant(tracks(), wrong_labels=0.25, imbalance=2, by="group")
    label_of = defaultdict(set)
    for track in found:
        label_of[track.group].add(track.labels)
    assert all(len(labels) == 1 for labels in label_of.values())
    songs = Counter(fault.group for fault in faults)
    assert set(songs.values()) == {2}


@pytest.mark.parametrize("by", ["track", "group"])
def test_validation_and_test_stay_as_they_are_and_order_does_not_matter(by):
    found, faults = plant(tracks(), wrong_labels=0.3, imbalance=3, by=by, seed=1)
    assert [track for track in found if track.split != "train"] == [track for track in tracks() if track.split != "train"]
    mixed = tracks()
    random.Random(0).shuffle(mixed)
    again, same = plant(mixed, wrong_labels=0.3, imbalance=3, by=by, seed=1)
    assert same == faults
    assert sorted(again, key=lambda track: track.id) == sorted(found, key=lambda track: track.id)
    assert plant(tracks(), wrong_labels=0.3, imbalance=3, by=by, seed=2)[1] != faults


def test_every_class_keeps_a_right_label():
    found, _ = plant(tracks(groups=10, songs=1), wrong_labels=0.99, imbalance=100)
    assert set(_counts(tracks())) == {track.labels[0] for track in found if track.split == "train"}


@pytest.mark.parametrize(
    ("choice", "key"),
    [
        ({"wrong_labels": 0}, "wrong_labels"),
        ({"wrong_labels": 1.0}, "wrong_labels"),
        ({"wrong_labels": "a fifth"}, "wrong_labels"),
        ({"wrong_labels": True}, "wrong_labels"),
        ({"imbalance": 1}, "imbalance"),
        ({"imbalance": float("nan")}, "imbalance"),
        ({"by": "song"}, "by"),
    ],
)
def test_values_out_of_range_are_refused(choice, key):
    with pytest.raises(ConfigError, match=rf"data\.plant\.{key}="):
        plant(tracks(), **choice)


def test_several_labels_or_no_effect_are_refused():
    several = [*tracks(), Track("x", Path("x"), ("class 0", "class 1"), "x", "train")]
    with pytest.raises(DataError, match="one label a track"):
        plant(several, wrong_labels=0.2)
    with pytest.raises(DataError, match="change nothing"):
        plant(tracks(groups=10, songs=1), wrong_labels=0.01)


# --- in a run -------------------------------------------------------------------------------------------------------------------

RUN = ("data=folder", "backbone=stats_linear", *TINY, "trainer.max_epochs=1", "callbacks=none")


@pytest.mark.slow
def test_runs_store_what_was_planted_and_leaderboards_tell_it(tones: Path, train: Command, tmp_path: Path):
    common = (*RUN, f"data.root={tones}")
    assert train("-m", *common, "seed=0,1", "data.plant.wrong_labels=null,0.3") == 0
    assert train(*common, "data.plant.imbalance=3") == 0
    runs = {folder: records.read_result(folder) for folder in records.find_runs([tmp_path])}
    asked = defaultdict(list)
    for folder, record in runs.items():
        asked[record["config"]["data"]["plant"]["wrong_labels"], record["config"]["data"]["plant"]["imbalance"]].append(folder)
    assert {key: len(folders) for key, folders in asked.items()} == {(None, None): 2, (0.3, None): 2, (None, 3): 1}
    for key, folders in asked.items():  # seeds repeat a configuration, though each has its own faults
        assert len({runs[folder]["configuration"] for folder in folders}) == 1
        assert len({runs[folder]["signature"] for folder in folders}) == len(folders)
        assert all((folder / "planted.csv").exists() == (key != (None, None)) for folder in folders)
    assert len({record["configuration"] for record in runs.values()}) == 3
    (unequal,) = asked[None, 3]
    assert runs[unequal]["facts"]["planted"] == {"left_out": 2}
    assert sorted(runs[unequal]["facts"]["class_counts"]) == [1, 1, 2]
    wrong = asked[0.3, None][0]
    with (wrong / "planted.csv").open(newline="") as file:
        planted = list(csv.DictReader(file))
    assert {row["true_label"] for row in planted} == {"low", "middle", "high"}
    assert all(row["song"].startswith(row["true_label"]) and row["label"] != row["true_label"] for row in planted)
    assert all(row.song.startswith(row.label) for folder in runs for row in records.read_predictions(folder))
    (table,) = leaderboard.collect([tmp_path]).tables
    labels = {row.label for row in table.rows}
    assert len(labels) == 3
    assert any("data.plant.wrong_labels=0.3" in label for label in labels)
    assert any("data.plant.imbalance=3" in label for label in labels)


def test_a_plant_that_plants_nothing_is_no_part_of_the_configuration():
    bare = {"data": {"fold": 0}}
    nothing = {"data": {"fold": 0, "plant": {"wrong_labels": None, "imbalance": None, "by": "track", "seed": 3}}}
    wrong = {"data": {"fold": 0, "plant": {**nothing["data"]["plant"], "wrong_labels": 0.2}}}
    other_seed = {"data": {"fold": 0, "plant": {**wrong["data"]["plant"], "seed": 4}}}
    assert records.signature(bare, "i") == records.signature(nothing, "i") == records.signature(wrong, "i")
    assert records.configuration(bare, "i") == records.configuration(nothing, "i")
    assert records.configuration(wrong, "i") == records.configuration(other_seed, "i") != records.configuration(bare, "i")
