from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musicnet_eval import datasets
from musicnet_eval.contracts import Track
from musicnet_eval.errors import DataError


def tracks(groups: dict[str, list[str]]) -> list[Track]:
    """Make tracks from {group: [label of each track]}."""
    return [
        Track(f"{group}/{i}", Path(f"{group}/{i}.wav"), (label,), group)
        for group, labels in groups.items()
        for i, label in enumerate(labels)
    ]


def many(count: int = 12, classes: int = 3) -> list[Track]:
    return tracks({f"g{i}": [f"c{i % classes}"] * 2 for i in range(count)})


@pytest.mark.parametrize("fold", range(4))
def test_group_kfold_roles(fold: int) -> None:
    parts = [datasets.group_kfold(many(), fold=f, folds=4, split_seed=0) for f in range(4)]
    tested = {t.id for t in parts[fold] if t.split == "test"}
    validated_next = {t.id for t in parts[(fold - 1) % 4] if t.split == "val"}
    assert tested == validated_next  # fold k tests what fold k-1 validates
    assert Counter(t.split for t in parts[fold]) == {"train": 12, "val": 6, "test": 6}


def test_folds_cover_every_track_once() -> None:
    tested = [t.id for f in range(5) for t in datasets.group_kfold(many(15), fold=f, folds=5, split_seed=3) if t.split == "test"]
    assert sorted(tested) == sorted(t.id for t in many(15))


def test_folds_are_stratified() -> None:
    split = datasets.group_kfold(many(60), fold=0, folds=5, split_seed=0)
    assert Counter(t.labels[0] for t in split if t.split == "test") == {"c0": 8, "c1": 8, "c2": 8}


def test_split_ignores_the_order_of_tracks_and_paths() -> None:
    one = datasets.assign_splits(many(), "group_kfold")
    other = datasets.assign_splits(many()[::-1], "group_kfold")
    assert {t.id: t.split for t in one} == {t.id: t.split for t in other}
    assert datasets.fingerprint(one) == datasets.fingerprint(other)


def test_split_seed_deals_anew() -> None:
    assert datasets.assign_splits(many(), "group_kfold") != datasets.assign_splits(many(), "group_kfold", split_seed=1)


@settings(deadline=None, max_examples=60)
@given(
    labels=st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=4), min_size=4, max_size=25),
    folds=st.integers(3, 6),
    fold=st.integers(0, 5),
)
def test_no_group_ever_crosses(labels: list[list[str]], folds: int, fold: int) -> None:
    made = tracks({f"g{i}": names for i, names in enumerate(labels)})
    try:
        split = datasets.assign_splits(made, "group_kfold", fold % folds, folds)
    except DataError:
        return  # refused, which is fine; never split wrongly
    places: dict[str, set[str | None]] = {}
    for track in split:
        places.setdefault(track.group, set()).add(track.split)
    assert all(len(splits) == 1 for splits in places.values())
    assert {t.split for t in split} == {"train", "val", "test"}


def test_official_takes_missing_val_from_train_by_group() -> None:
    made = [Track(t.id, t.path, t.labels, t.group, "test" if t.group in ("g0", "g1", "g2") else "train") for t in many(15)]
    split = datasets.assign_splits(made, "official")
    assert {t.group for t in split if t.split == "test"} == {"g0", "g1", "g2"}
    assert not {t.group for t in split if t.split == "val"} & {t.group for t in split if t.split == "train"}
    assert any(t.split == "val" for t in split)


def test_group_in_two_splits_is_named() -> None:
    made = [Track(t.id, t.path, t.labels, "elvis", s) for t, s in zip(many(), ["train", "val", "test"] * 8, strict=True)]
    with pytest.raises(DataError, match=r"1 groups stand in more than one split \('elvis' in test and train and val\)"):
        datasets.assign_splits(made, "official")


@pytest.mark.parametrize(
    ("made", "options", "message"),
    [
        (tracks({"a": ["x"], "b": ["x"]}), {}, "needs at least 2"),
        (tracks({"a": ["x"], "b": ["y"], "c": ["x"]}), {}, r"\['y'\] have one track each"),
        (tracks({"a": ["x", "y"] * 3, "b": ["x", "y"]}), {}, "needs 3 groups a class"),
        (many(), {"protocol": "group_kfol"}, "did you mean 'group_kfold'"),
        (many(), {"fold": 5}, r"data.fold=5 is outside 0..4"),
        (many(), {"folds": 2}, "data.folds=2 is too few"),
        (many(), {"protocol": "official"}, "needs a split for every track"),
        (many() + many(), {}, "listed twice"),
    ],
)
def test_refusals(made: list[Track], options: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        datasets.assign_splits(made, **{"protocol": "group_kfold", **options})  # type: ignore[arg-type]


def test_folder(tones: Path) -> None:
    found = datasets.folder(tones)
    assert Counter(t.labels[0] for t in found) == {"low": 6, "middle": 6, "high": 6}
    assert found[0].id == "high/0.wav"
    assert found[0].group == found[0].id


@pytest.mark.parametrize(
    ("layout", "message"),
    [([], "holds no class folders"), (["blues/readme.txt"], "no audio files"), (None, "does not exist")],
)
def test_folder_refusals(tmp_path: Path, layout: list[str] | None, message: str) -> None:
    root = tmp_path / "set"
    if layout is not None:
        root.mkdir()
        for name in layout:
            (root / name).parent.mkdir()
            (root / name).write_text("x")
    with pytest.raises(DataError, match=message):
        datasets.folder(root)


def test_csv(tmp_path: Path) -> None:
    manifest = tmp_path / "songs.csv"
    manifest.write_text("path,label,group,split,title\na.wav,x|y,elvis,train,Hey\n/abs/b.wav,x,,test,\n", encoding="utf8")
    one, two = datasets.csv(manifest)
    assert (one.path, one.labels, one.group, one.split) == (tmp_path / "a.wav", ("x", "y"), "elvis", "train")
    assert (two.path, two.group, two.split) == (Path("/abs/b.wav"), "/abs/b.wav", "test")
    (tmp_path / "audio").mkdir()
    assert datasets.csv(manifest, tmp_path / "audio")[0].path == tmp_path / "audio" / "a.wav"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,genre\na,b\n", r"lacks \['path', 'label'\]"),
        ("path,label\n", "no rows"),
        ("path,label\na.wav,\n", "line 2 has no label"),
        ("path,label\n,x\n", "line 2 has no path"),
        ("path,label,split\na.wav,x,dev\n", "split='dev'"),
    ],
)
def test_csv_refusals(tmp_path: Path, text: str, message: str) -> None:
    manifest = tmp_path / "songs.csv"
    manifest.write_text(text)
    with pytest.raises(DataError, match=message):
        datasets.csv(manifest)


JSONL = """
{"path": "a.wav", "label": ["x", "y"], "group": "elvis", "split": "train", "title": "Hey"}

{"path": "/abs/b.wav", "label": "x|y", "group": null, "year": 1999}
{"path": "c.wav", "label": 7}
"""


def test_jsonl(tmp_path: Path) -> None:
    (tmp_path / "songs.jsonl").write_text(JSONL, encoding="utf8")
    one, two, three = datasets.jsonl(tmp_path / "songs.jsonl")
    assert (one.path, one.labels, one.group, one.split) == (tmp_path / "a.wav", ("x", "y"), "elvis", "train")
    assert (two.path, two.labels, two.group, two.split) == (Path("/abs/b.wav"), ("x", "y"), "/abs/b.wav", None)
    assert three.labels == ("7",)


def test_jsonl_says_the_same_as_csv(tmp_path: Path) -> None:
    rows = [(f"{i}.wav", f"c{i % 3}", f"g{i // 2}", ("train", "val", "test")[i % 3]) for i in range(12)]
    (tmp_path / "songs.csv").write_text("path,label,group,split\n" + "".join(",".join(row) + "\n" for row in rows))
    lines = [json.dumps(dict(zip(("path", "label", "group", "split"), row, strict=True))) for row in rows]
    (tmp_path / "songs.jsonl").write_text("\n".join(lines))
    assert datasets.jsonl(tmp_path / "songs.jsonl") == datasets.csv(tmp_path / "songs.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\n", "line 1 is no JSON"),
        ('["a.wav", "x"]\n', "line 1 is a list"),
        ('{"path": "a.wav"}\n', "line 1 has no label"),
        ('\n{"label": "x"}\n', "line 2 has no path"),
        ('{"path": "a.wav", "label": "x", "split": "dev"}\n', "split='dev'"),
        ("\n", "no rows"),
    ],
)
def test_jsonl_refusals(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "songs.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        datasets.jsonl(tmp_path / "songs.jsonl")


def test_a_manifest_that_is_not_there(tmp_path: Path) -> None:
    for read in (datasets.csv, datasets.jsonl):
        with pytest.raises(DataError, match=r"does not exist\. Point data\.manifest at"):
            read(tmp_path / "songs")


def test_csv_not_text(tmp_path: Path) -> None:
    (tmp_path / "songs.csv").write_bytes(b"\xff\xfe\x00\x80" * 20)
    with pytest.raises(DataError, match="cannot be read"):
        datasets.csv(tmp_path / "songs.csv")


def test_fingerprint_sees_what_matters_and_not_where_files_lie() -> None:
    one = many()
    moved = [Track(t.id, Path("/elsewhere") / t.path, t.labels, t.group) for t in one]
    relabelled = [Track(t.id, t.path, ("other",) if t.id == "g0/0" else t.labels, t.group) for t in one]
    assert datasets.fingerprint(moved) == datasets.fingerprint(one)
    assert datasets.fingerprint(relabelled) != datasets.fingerprint(one)


def test_class_counts_are_of_training() -> None:
    split = datasets.assign_splits(many(), "group_kfold", folds=3)
    classes = datasets.classes_of(split)
    expected = Counter(t.labels[0] for t in split if t.split == "train")
    assert datasets.class_counts(split, classes) == tuple(expected[c] for c in classes)
