"""The split protocols against scikit-learn's splitters, published counts, and the rule that no group crosses splits."""

from __future__ import annotations

import random
import warnings
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from musicnet_eval import datasets
from musicnet_eval.contracts import SPLITS, Track
from musicnet_eval.datasets.faults import fault_filtered_splits
from musicnet_eval.errors import DataError


def tracks(groups: dict[str, list[str]]) -> list[Track]:
    """Make tracks from {group: [label of each track]}."""
    return [
        Track(f"{group}/{i}", Path(f"{group}/{i}.wav"), (label,), group)
        for group, labels in groups.items()
        for i, label in enumerate(labels)
    ]


def unequal(seed: int) -> list[Track]:
    """Make a data set as they are: 5 classes of unequal size, artists with 1 to 30 tracks, a few of them in two classes."""
    draw = random.Random(seed)
    groups = {}
    for number in range(120):
        main, second = draw.choices("abcde", weights=[8, 4, 3, 2, 2], k=2)
        groups[f"artist {number}"] = [main if draw.random() < 0.9 else second for _ in range(min(30, int(draw.paretovariate(1))))]
    return tracks(groups)


def spread(parts: list[list[Track]], classes: tuple[str, ...]) -> float:
    """Say how uneven parts are: the mean, over classes, of the standard deviation of their share of the class."""
    total = 0.0
    for name in classes:
        counts = [sum(track.labels[0] == name for track in part) for part in parts]
        share = [count / sum(counts) for count in counts]
        total += (sum((s - 1 / len(parts)) ** 2 for s in share) / len(parts)) ** 0.5
    return total / len(classes)


def parts_of(made: list[Track], protocol: str, folds: int = 5, seed: int = 0, **options: bool) -> list[list[Track]]:
    return [
        [t for t in datasets.assign_splits(made, protocol, fold, folds, seed, **options) if t.split == "test"]
        for fold in range(folds)
    ]


def test_groups_are_spread_as_evenly_as_scikit_learn_spreads_them() -> None:
    ours, theirs = [], []
    for seed in range(10):
        made = unequal(seed)
        classes = datasets.classes_of(made)
        ours.append(spread(parts_of(made, "group_kfold"), classes))
        splitter = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of small classes
            folds = list(splitter.split(made, [t.labels[0] for t in made], [t.group for t in made]))
        theirs.append(spread([[made[i] for i in test] for _, test in folds], classes))
    assert sum(ours) <= 1.1 * sum(theirs)


def test_single_tracks_are_spread_as_evenly_as_scikit_learn_spreads_them() -> None:
    made = unequal(3)
    labels = [t.labels[0] for t in made]
    folds = [[labels[i] for i in test] for _, test in StratifiedKFold(5, shuffle=True, random_state=0).split(made, labels)]
    ours = [[t.labels[0] for t in part] for part in parts_of(made, "kfold", allow_group_overlap=True)]
    for name in set(labels):
        yardstick = [part.count(name) for part in folds]
        counts = [part.count(name) for part in ours]
        assert max(counts) - min(counts) <= max(1, max(yardstick) - min(yardstick))
    sizes = [len(part) for part in ours]
    assert max(sizes) - min(sizes) <= 5  # no more than one track a class


@pytest.mark.parametrize("protocol", ["kfold", "group_kfold"])
def test_folds_test_every_track_once(protocol: str) -> None:
    made = unequal(1)
    seen = [t.id for part in parts_of(made, protocol, allow_group_overlap=True) for t in part]
    assert sorted(seen) == sorted(t.id for t in made)


@pytest.mark.parametrize(("protocol", "folded"), [("group", "group_kfold"), ("stratified", "kfold")])
def test_a_hold_out_is_one_fold_of_its_folded_sibling(protocol: str, folded: str) -> None:
    made = unequal(2)
    once = datasets.assign_splits(made, protocol, folds=10, split_seed=4, allow_group_overlap=True)
    assert once == datasets.assign_splits(made, folded, fold=0, folds=10, split_seed=4, allow_group_overlap=True)
    assert Counter(t.split for t in once)["train"] > 0.7 * len(made)


@settings(deadline=None, max_examples=80)
@given(
    labels=st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=4), min_size=4, max_size=25),
    protocol=st.sampled_from(["group", "group_kfold", "stratified", "kfold"]),
    folds=st.integers(3, 6),
    seed=st.integers(0, 3),
)
def test_no_group_ever_crosses_unseen(labels: list[list[str]], protocol: str, folds: int, seed: int) -> None:
    made = tracks({f"g{i}": names for i, names in enumerate(labels)})
    try:
        split = datasets.assign_splits(made, protocol, 0, folds, seed)
    except DataError:
        return  # refused, which is fine; never split wrongly
    places: dict[str, set[str | None]] = {}
    for track in split:
        places.setdefault(track.group, set()).add(track.split)
    assert all(len(splits) == 1 for splits in places.values())
    assert {t.split for t in split} == set(SPLITS)
    assert datasets.overlapping_groups(split) == []


def test_overlap_is_refused_unless_allowed_and_then_named() -> None:
    made = unequal(0)
    with pytest.raises(DataError, match=r"groups stand in more than one split .*data.allow_group_overlap=true"):
        datasets.assign_splits(made, "stratified")
    split = datasets.assign_splits(made, "stratified", allow_group_overlap=True)
    crossing = datasets.overlapping_groups(split)
    assert crossing
    assert crossing == sorted(g for g in {t.group for t in split} if len({t.split for t in split if t.group == g}) > 1)


def test_allowing_overlap_makes_none_where_none_is() -> None:
    made = unequal(0)
    strict = datasets.assign_splits(made, "group")
    assert datasets.assign_splits(made, "group", allow_group_overlap=True) == strict
    assert datasets.overlapping_groups(strict) == []


def test_splits_hang_on_protocol_seed_and_ids_alone() -> None:
    made = unequal(5)
    moved = [Track(t.id, Path("/elsewhere") / t.path, t.labels, t.group) for t in reversed(made)]
    for protocol in ("group", "stratified", "kfold", "group_kfold"):
        one, other = (datasets.assign_splits(m, protocol, allow_group_overlap=True) for m in (made, moved))
        assert {t.id: t.split for t in one} == {t.id: t.split for t in other}
        anew = datasets.assign_splits(made, protocol, split_seed=1, allow_group_overlap=True)
        assert [t.split for t in anew] != [t.split for t in one]


@pytest.mark.parametrize(
    ("made", "options", "message"),
    [
        (unequal(0), {"protocol": "group", "fold": 2}, r"data.fold=2 means nothing under data.protocol=group,"),
        (unequal(0), {"protocol": "stratified", "fold": 1}, r"data.fold=1 means nothing under data.protocol=stratified,"),
        (tracks({"a": ["x", "y"], "b": ["x", "y"]}), {"protocol": "kfold"}, "needs 3 tracks a class"),
        (tracks({"a": ["x", "y"] * 3, "b": ["x", "y"]}), {"protocol": "group"}, "data.protocol=group needs 3 groups a class"),
        (unequal(0), {"protocol": "fault_filtered"}, r"443/197/290 tracks of GTZAN; 930 are not in this data set"),
        (unequal(0), {"protocol": "statified"}, "did you mean 'stratified'"),
    ],
)
def test_refusals(made: list[Track], options: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        datasets.assign_splits(made, **options)  # type: ignore[arg-type]


def test_fault_filtered_lists_are_torchaudios() -> None:
    from torchaudio.datasets import gtzan

    ours = fault_filtered_splits()
    for split, theirs in (("train", gtzan.filtered_train), ("val", gtzan.filtered_valid), ("test", gtzan.filtered_test)):
        assert sorted(name for name, place in ours.items() if place == split) == sorted(theirs)
    assert Counter(ours.values()) == {"train": 443, "val": 197, "test": 290}  # as published


@pytest.mark.slow
def test_a_hundred_thousand_tracks_are_split_and_checked(tmp_path: Path) -> None:
    manifest = tmp_path / "songs.csv"
    rows = (f"{i // 100:03d}/{i}.mp3,genre {i % 16},artist {i // 7}\n" for i in range(100_000))
    manifest.write_text("path,label,group\n" + "".join(rows))
    split = datasets.assign_splits(datasets.csv(manifest), "group_kfold")
    assert len(split) == 100_000
    assert not datasets.overlapping_groups(split)
