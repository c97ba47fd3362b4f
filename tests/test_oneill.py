"""The sets from O'Neill's book: counts, groups, controls, the printed marks, what is held out, the shipped choice."""

from __future__ import annotations

import shutil
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from musicnet_eval import configs, repertoire
from musicnet_eval.contracts import Track
from musicnet_eval.datasets import assign_splits, check_splits, default_protocol
from musicnet_eval.embedded import build, read_manifest, write_manifest
from musicnet_eval.errors import DataError
from musicnet_eval.oneill import EXPRESSION, MARKS, RYAN, SECTIONS, TUNETYPE, expression, mark, tunetype
from musicnet_eval.pieces import PROGRAMMES, Embedded, Piece, pieces, shipped
from musicnet_eval.rendering import cut, read
from musicnet_eval.scores import TICKS, corpus
from musicnet_eval.tunes import Tune, read_book
from tests.test_tradition import content, grouped_accuracy

SETS = {"tunetype": TUNETYPE, "expression": EXPRESSION}
PLAN = {name: {label: pieces(embedded, label) for label in embedded.classes} for name, embedded in SETS.items()}
RYANS = {label: pieces(RYAN, label) for label in RYAN.classes}
EVERY = pytest.mark.parametrize("name", SETS)


def planned(name: str) -> list[Piece]:
    return [piece for plan in PLAN[name].values() for piece in plan]


def planned_tracks(name: str) -> list[Track]:
    return [Track(f"{p.label}/{p.name}", Path(), (p.label,), p.group) for p in planned(name)]


def tune_of(source: str) -> Tune:
    file, _, number = source.partition("#")
    return read_book(corpus() / file)[int(number)]


def runs_of_ten(source: str) -> set[tuple[int, ...]]:
    """Give every run of ten intervals of a tune, by a plain loop."""
    line = [n.pitch for n in read(source)]
    return {tuple(line[i + k + 1] - line[i + k] for k in range(10)) for i in range(len(line) - 10)}


# --- the plan -------------------------------------------------------------------------------------------------------------------


def test_the_sets_have_the_counts_that_the_pages_give() -> None:
    assert {label: len(plan) for label, plan in PLAN["tunetype"].items()} == dict.fromkeys(SECTIONS, 50)
    assert {label: len(plan) for label, plan in PLAN["expression"].items()} == dict.fromkeys(MARKS, 80)
    assert {label: len(plan) for label, plan in RYANS.items()} == {"double_jig": 50, "slip_jig": 6, "reel": 50, "hornpipe": 50}
    for plan in (planned("tunetype"), planned("expression"), [p for ps in RYANS.values() for p in ps]):
        assert len({p.name for p in plan}) == len({p.notes for p in plan}) == len(plan)


@EVERY
def test_each_class_is_dealt_the_same_in_each_fold(name: str) -> None:
    first, *others = PLAN[name].values()
    part = {piece: row["part"] for rows in shipped(name).values() for piece, row in rows.items()}
    for plan in others:
        dealt = [Counter((part[p.name], p.programme) for p in ps) for ps in (first, plan)]
        assert dealt[0] == dealt[1]
        for value in ("pitch", "level_db"):
            mine, theirs = (np.array([getattr(p, value) for p in ps]) for ps in (plan, first))
            assert abs(mine.mean() - theirs.mean()) < 0.1 * theirs.std()
    assert {p.programme for p in first} == set(PROGRAMMES)
    for fold in range(5):  # the parts that programmes are balanced for are those that the default protocol deals
        split = assign_splits(planned_tracks(name), "group_kfold", fold=fold)
        assert {t.id.partition("/")[2] for t in split if t.split == "test"} == {p for p, k in part.items() if k == fold}


def test_onset_rates_say_nothing_about_the_kind_of_tune_and_beats_nothing_about_the_mark() -> None:
    rates = [np.array([p.onset_rate for p in plan]) for plan in PLAN["tunetype"].values()]
    rows = shipped("expression")
    beats = [
        np.array([p.onset_rate / rows[label][p.name]["density"] for p in plan]) for label, plan in PLAN["expression"].items()
    ]
    for values, (low, high) in ((rates, TUNETYPE.rate), (beats, EXPRESSION.rate)):
        assert np.ptp([v.mean() for v in values]) < 0.1 * np.std(values)
        assert min(v.min() for v in values) >= low - 0.001
        assert max(v.max() for v in values) <= high + 0.001


@EVERY
def test_programme_says_nothing_about_the_class(name: str) -> None:
    tracks = planned_tracks(name)
    chance = 1 / len(PLAN[name])
    one_hot = np.array([[p.programme == q for q in PROGRAMMES] for p in planned(name)], float)
    assert abs(grouped_accuracy(one_hot, tracks, 1.0) - chance) < 1.96 * (chance * (1 - chance) / len(tracks)) ** 0.5


@EVERY
def test_pieces_of_different_groups_share_no_melody(name: str) -> None:
    owners: dict[tuple[int, ...], set[str]] = defaultdict(set)
    for piece in planned(name):
        for run in runs_of_ten(piece.source):
            owners[run].add(piece.group)
    assert not [groups for groups in owners.values() if len(groups) > 1]


def test_what_is_held_out_shares_no_title_and_no_melody_with_what_is_trained_on() -> None:
    held_out = [p for plan in RYANS.values() for p in plan]
    trained = planned("tunetype")
    assert not {p.group for p in held_out} & {p.group for p in trained}
    plain = [{" ".join(p.title.lower().split(" -- ")[0].split()) for p in some} for some in (held_out, trained)]
    assert not plain[0] & plain[1]
    assert not set().union(*(runs_of_ten(p.source) for p in held_out)) & set().union(*(runs_of_ten(p.source) for p in trained))


def test_kinds_are_the_sections_of_the_book_and_what_ryan_calls_them() -> None:
    for label, (first, last) in SECTIONS.items():
        assert all(first <= int(p.source.rpartition("#")[2]) <= last for p in PLAN["tunetype"][label])
    for label, plan in RYANS.items():
        assert {tune_of(p.source).field("R").strip().lower().replace("slip jig", "slipjig") for p in plan} == {
            {"double_jig": "jig", "slip_jig": "slipjig"}.get(label, label)
        }
    metres = {label: {tune_of(p.source).field("M").strip() for p in PLAN["tunetype"][label]} for label in SECTIONS}
    assert metres["double_jig"] == {"6/8"}
    assert metres["slip_jig"] == {"9/8"}


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        ('"Moderate" "collected by F. O\'Neill"', "moderate"),
        ('"Slow and tenderly"', "slow"),  # the first word decides
        ('"Very slow."', "slow"),
        ('"With spirit and feeling"', "lively"),
        ('"collected by J. O\'Neill" "Plaintively."', "tender"),
        ('"With feeling"', "tender"),
        ('"Gracefully"', None),
        ("Fixed line wrapping", None),
        ('"2nd Setting"', None),
    ],
)
def test_the_mark_is_what_is_printed(printed: str, expected: str | None) -> None:
    assert mark(Tune(1, (("T", "Slow Air"), ("N", printed)), ())) == expected


def test_every_piece_carries_its_mark() -> None:
    assert all(mark(tune_of(p.source)) == p.label for p in planned("expression"))


@pytest.mark.slow
def test_the_shipped_choice_is_what_the_corpus_gives() -> None:
    chosen = repertoire.repertoire()
    assert chosen == {name: shipped(name) for name in ("tradition", "tunetype", "tunetype_ryan", "expression")}


# --- the build ------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Give copies of a `tunetype` of two classes of three tunes, and one class of two in Ryan's collection."""
    source = tmp_path_factory.mktemp("built")
    chosen = [piece for label in ("reel", "slip_jig") for piece in PLAN["tunetype"][label][:3]]
    write_manifest(source, build(chosen, source, workers=2))
    (source / "ryan").mkdir()
    write_manifest(source / "ryan", build(RYANS["reel"][:2] + RYANS["slip_jig"][:1], source / "ryan", workers=1))

    def copy() -> Path:
        root = tmp_path_factory.mktemp("copy") / "tunetype"
        shutil.copytree(source, root)
        return root

    return copy


def test_one_builder_and_two_give_the_same_bytes(small: Callable[[], Path], tmp_path: Path) -> None:
    chosen = [piece for label in ("reel", "slip_jig") for piece in PLAN["tunetype"][label][:3]]
    build(chosen[::-1], tmp_path, workers=1)
    assert content(tmp_path) == {name: audio for name, audio in content(small()).items() if not name.startswith("ryan/")}


def test_clips_last_twelve_seconds_and_begin_inside(small: Callable[[], Path]) -> None:
    root = small()
    for row in read_manifest(root):
        facts = soundfile.info(root / row["path"])
        assert (facts.frames, facts.samplerate, facts.channels, facts.format) == (264_600, 22050, 1, "FLAC")
        notes = read(row["source"])
        length = round(12e6 / int(row["tempo_us"]) * TICKS)
        assert notes[0].onset < int(row["start_tick"])
        assert int(row["start_tick"]) + length <= max(n.onset + n.duration for n in notes)
        onsets = len({n.onset for n in cut(notes, int(row["start_tick"]), length)})
        assert 2 / 3 * TUNETYPE.rate[0] < onsets / 12 < 3 / 2 * TUNETYPE.rate[1]


def test_held_out_tracks_test_and_the_others_train(small: Callable[[], Path]) -> None:
    root = small()
    within = tunetype(root, ("reel", "slip_jig"))
    assert {t.split for t in within} == {None}
    assert default_protocol(within) == "group_kfold"
    both = tunetype(root, ("reel", "slip_jig"), held_out=True)
    assert Counter(t.split for t in both) == {"train": 6, "test": 3}
    assert all(t.path.is_file() and t.path == root / t.id for t in both)
    split = assign_splits(both, "official", folds=3)
    assert Counter(t.split for t in split) == {"train": 4, "val": 2, "test": 3}
    check_splits(split)


def test_the_protocol_decides_what_is_indexed() -> None:
    for protocol, held_out in (("null", False), ("group_kfold", False), ("official", True)):
        config = configs.resolved(configs.compose(["data=tunetype", f"data.protocol={protocol}"]))
        assert config["data"]["index"]["held_out"] is held_out


@pytest.mark.slow
def test_damaged_clip_is_named_and_rendered_anew(small: Callable[[], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    root = small()
    before = content(root)
    clip = sorted((root / "slip_jig").iterdir())[0]
    clip.write_bytes(clip.read_bytes()[:-7])
    with pytest.raises(DataError, match=rf"{clip.name} is damaged.*Remove the folder .*slip_jig and call again"):
        tunetype(root, ("slip_jig",))
    shutil.rmtree(root / "slip_jig")
    assert len(tunetype(root, ("slip_jig",))) == 50  # the whole class this time
    after = content(root)
    assert all(after[name] == audio for name, audio in before.items())


@pytest.mark.parametrize("index", [tunetype, expression])
def test_wrong_classes_are_refused(tmp_path: Path, index: Callable[..., list[Track]]) -> None:
    with pytest.raises(DataError, match=r"Unknown class 'happy' in data.classes; known are"):
        index(tmp_path, ("happy",))
    assert not list(tmp_path.iterdir())


# --- the whole sets -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("index", "embedded"), [(tunetype, TUNETYPE), (expression, EXPRESSION)])
def test_what_is_heard_of_the_nuisances_says_nothing(
    index: Callable[[Path], list[Track]], embedded: Embedded, tradition_root: Path
) -> None:
    """Pitch, level and place of the clip as they came out, and for `tunetype` the rate, leave a linear model near chance."""
    root = tradition_root.parent / embedded.name
    tracks = index(root)
    assert Counter(t.labels[0] for t in tracks) == dict.fromkeys(embedded.classes, embedded.pieces)
    rows = {row["path"]: row for row in read_manifest(root)}
    features = []
    for track in tracks:
        row = rows[track.id]
        notes = read(row["source"])
        length = round(12e6 / int(row["tempo_us"]) * TICKS)
        clip = cut(notes, int(row["start_tick"]), length)
        pitch = np.average([n.pitch for n in clip], weights=[n.duration for n in clip]) + int(row["transpose"])
        wave, _ = soundfile.read(track.path)
        level = 20 * np.log10(np.sqrt(np.mean(wave**2)))
        position = int(row["start_tick"]) / (max(n.onset + n.duration for n in notes) - length)
        rate = len({n.onset for n in clip}) / 12 if embedded is TUNETYPE else 0.0
        features.append((pitch, level, position, rate))
    chance = 1 / len(embedded.classes)
    found = grouped_accuracy(np.array(features), tracks, 1.0)
    print(f"{embedded.name}: nuisances {found:.3f}, chance {chance:.3f}")
    assert found < chance + 2 * 1.96 * (chance * (1 - chance) / len(tracks)) ** 0.5
