"""The embedded data set: its counts, groups and controls; MIDI against mido, sound against physics; builds that must agree."""

from __future__ import annotations

import io
import itertools
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from musicnet_eval.contracts import Track
from musicnet_eval.datasets import assign_splits
from musicnet_eval.embedded import build, read_manifest
from musicnet_eval.embedded import write_manifest as write
from musicnet_eval.errors import DataError
from musicnet_eval.pieces import PROGRAMMES, Piece, pieces, shipped
from musicnet_eval.rendering import cut, excerpts, midi, read, render, synthesise, tempo
from musicnet_eval.scores import TICKS, Note
from musicnet_eval.tradition import ALL_CLASSES, CLASSES, NON_COMMERCIAL, TRADITION, choice, tradition

PLAN = {label: pieces(TRADITION, label) for label in ALL_CLASSES}
CHANCE = 1 / 6


def half_interval(songs: int) -> float:
    """Give half the 95 % interval of an accuracy at chance."""
    return 1.96 * (CHANCE * (1 - CHANCE) / songs) ** 0.5


def grouped_accuracy(features: np.ndarray, tracks: list[Track], strength: float) -> float:
    """Score logistic regression on the five folds that `group_kfold` deals by default."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    label = np.array([t.labels[0] for t in tracks])
    right = 0
    for fold in range(5):
        test = np.array([t.split == "test" for t in assign_splits(tracks, "group_kfold", fold=fold)])
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=3000)).fit(features[~test], label[~test])
        right += int((model.predict(features[test]) == label[test]).sum())
    return right / len(tracks)


# --- the plan -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", ALL_CLASSES)
def test_each_class_is_dealt_the_same(label: str) -> None:
    first, this = PLAN[CLASSES[0]], PLAN[label]
    assert len(this) == len({p.name for p in this}) == len({p.notes for p in this}) == 40
    assert Counter(p.programme for p in this) == Counter(p.programme for p in first)
    assert set(PROGRAMMES) == {p.programme for p in this}
    for name in ("pitch", "level_db", "onset_rate"):
        mine, theirs = (np.array([getattr(p, name) for p in plan]) for plan in (this, first))
        assert abs(mine.mean() - theirs.mean()) < 0.1 * theirs.std()


def test_programme_says_nothing_about_the_class() -> None:
    chosen = [p for label in CLASSES for p in PLAN[label]]
    tracks = [Track(f"{p.label}/{p.name}", Path(), (p.label,), p.group) for p in chosen]
    one_hot = np.array([[p.programme == q for q in PROGRAMMES] for p in chosen], float)
    assert abs(grouped_accuracy(one_hot, tracks, 1.0) - CHANCE) < half_interval(len(chosen))


def test_groups_do_not_cross_folds_and_are_many() -> None:
    tracks = [Track(f"{p.label}/{p.name}", Path(), (p.label,), p.group) for label in CLASSES for p in PLAN[label]]
    groups = {label: len({t.group for t in tracks if t.labels == (label,)}) for label in CLASSES}
    assert groups["string_quartet"] == 10  # works; each movement is a piece
    assert all(count >= 30 for label, count in groups.items() if label != "string_quartet")
    for fold in range(5):
        split = defaultdict(set)
        for track in assign_splits(tracks, "group_kfold", fold=fold):
            split[track.group].add(track.split)
        assert all(len(sides) == 1 for sides in split.values())


def test_a_set_free_of_non_commercial_scores_can_be_chosen() -> None:
    free = [label for label in ALL_CLASSES if label not in NON_COMMERCIAL]
    assert "scottish_air" in free
    assert len(free) == 6
    assert not any("essen" in p.source.lower() for label in free for p in PLAN[label])
    assert not any("palestrina" in p.source.lower() for label in ALL_CLASSES for p in PLAN[label])


@pytest.mark.slow
def test_the_shipped_choice_is_what_the_corpus_gives() -> None:
    assert choice() == shipped("tradition")


@pytest.mark.slow
def test_tunes_of_different_groups_share_no_melody() -> None:
    runs: dict[tuple[int, ...], set[str]] = defaultdict(set)
    for label in ("irish_dance", "chinese_song", "scottish_air", "german_song"):
        for piece in PLAN[label]:
            line = [n.pitch for n in read(piece.source)]
            for i in range(len(line) - 10):
                runs[tuple(line[i + k + 1] - line[i + k] for k in range(10))].add(piece.group)
    assert not [groups for groups in runs.values() if len(groups) > 1]


# --- excerpts -------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=list(ALL_CLASSES))
def piece(request: pytest.FixtureRequest) -> Piece:
    return PLAN[request.param][7]


def test_excerpts_lie_inside_the_piece_and_are_full_of_notes(piece: Piece) -> None:
    notes = read(piece.source)
    length = round(6e6 / tempo(notes, piece.onset_rate) * TICKS)
    clips = excerpts(notes, length, piece.name, 3)
    starts = [start for start, _ in clips]
    assert starts == sorted(set(starts))
    assert min(n.onset for n in notes) < starts[0]  # not the piece's beginning
    assert starts[-1] + length <= max(n.onset + n.duration for n in notes)
    for _, clip in clips:
        sounding = np.zeros(600, bool)
        for n in clip:
            sounding[600 * n.onset // length : -(-600 * (n.onset + n.duration) // length)] = True
        assert sounding.mean() > 0.85
        assert 2 / 3 * piece.onset_rate < len({n.onset for n in clip}) / 6 < 3 / 2 * piece.onset_rate
    assert len({tuple(clip) for _, clip in clips}) == 3


def test_tempo_gives_the_onset_rate() -> None:
    notes = [Note(k * TICKS, TICKS, 60, 0) for k in range(100)]  # quarters: 4 a second is a tempo of 250 ms
    assert tempo(notes, 4.0) == 250_000


def test_cut_keeps_what_sounds() -> None:
    notes = [Note(0, 40, 60, 0), Note(10, 10, 64, 1), Note(50, 10, 67, 0), Note(25, 30, 65, 1)]
    assert cut(notes, 20, 30) == [Note(0, 20, 60, 0), Note(5, 25, 65, 1)]


# --- MIDI and sound -------------------------------------------------------------------------------------------------------------


def test_midi_is_what_another_reader_reads() -> None:
    import mido

    notes = [Note(0, TICKS, 60, 0), Note(0, 3 * TICKS, 48, 9), Note(TICKS, TICKS // 3, 60, 0)]
    song = mido.MidiFile(file=io.BytesIO(midi(notes, 40, 2, 500_000, 4 * TICKS)))
    now, on, heard = 0.0, {}, []
    for message in song:  # times in seconds
        now += message.time
        if message.type == "note_on":
            on[message.channel, message.note] = now
        elif message.type == "note_off":
            heard.append((on.pop((message.channel, message.note)), now, message.note, message.channel))
    assert sorted(heard) == [(0, 0.5, 62, 0), (0, 1.5, 50, 10), (0.5, pytest.approx(0.5 + 1 / 6), 62, 0)]  # 9 is for drums
    assert {m.program for m in song if m.type == "program_change"} == {40}
    assert song.length == pytest.approx(2.125)
    assert not on


@pytest.mark.parametrize("programme", [19, 73])  # organ, flute
def test_sound_has_the_pitch_the_length_and_the_level(programme: int) -> None:
    wave = synthesise(midi([Note(0, 13 * TICKS, 69, 0)], programme, 0, 500_000, 12 * TICKS), -28.0, 6)
    assert wave.shape == (132_300,)
    assert 20 * np.log10(np.sqrt(np.mean(wave**2))) == pytest.approx(-28, abs=0.01)
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave))))
    frequency = np.fft.rfftfreq(len(wave), 1 / 22050)
    near = lambda f: spectrum[np.abs(frequency - f) < 8].max()  # noqa: E731
    assert near(440) > 20 * near(415.3)
    assert near(440) > 20 * near(466.2)


# --- the build ------------------------------------------------------------------------------------------------------------------


def content(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*.flac"))}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Give copies of a data set of two Irish dances and two chorales."""
    chosen = [*PLAN["irish_dance"][:2], *PLAN["bach_chorale"][:2]]
    source = tmp_path_factory.mktemp("built")
    write(source, build(chosen, source, workers=2))

    def copy() -> Path:
        import shutil

        root = tmp_path_factory.mktemp("copy") / "tradition"
        shutil.copytree(source, root)
        return root

    return copy


def test_one_builder_and_two_give_the_same_bytes(small: Callable[[], Path], tmp_path: Path) -> None:
    chosen = [*PLAN["irish_dance"][:2], *PLAN["bach_chorale"][:2]]
    done = []
    rows = build(chosen[::-1], tmp_path, workers=1, done=lambda: done.append(1))
    assert len(done) == 4
    assert content(tmp_path) == content(small())
    by_path = {row["path"]: {k: str(v) for k, v in row.items()} for row in rows}
    assert by_path == {row["path"]: row for row in read_manifest(small())}
    assert not list(tmp_path.rglob("*.part"))


def test_tracks_carry_ids_labels_and_groups(small: Callable[[], Path]) -> None:
    root = small()
    tracks = tradition(root, ("bach_chorale", "irish_dance"))
    assert [t.labels for t in tracks] == [("bach_chorale",)] * 6 + [("irish_dance",)] * 6
    assert all(t.path == root / t.id and t.split is None for t in tracks)
    assert {t.id for t in tracks} == set(content(root))
    assert len({t.group for t in tracks}) == 4
    assert tradition(str(root), ("irish_dance",)) == tracks[6:]


def test_damaged_clip_is_named_with_the_remedy(small: Callable[[], Path]) -> None:
    root = small()
    clip = next(iter(sorted((root / "irish_dance").iterdir())))
    audio = bytearray(clip.read_bytes())
    audio[-100] ^= 1  # one bit
    clip.write_bytes(audio)
    with pytest.raises(DataError, match=rf"{clip.name} is damaged.*Remove the folder .*irish_dance and call again"):
        tradition(root, ("irish_dance",))
    clip.unlink()
    with pytest.raises(DataError, match=rf"{clip.name} is missing.*Remove the folder"):
        tradition(root, ("irish_dance",))
    assert len(tradition(root, ("bach_chorale",))) == 6  # the other class is not touched


def test_audio_of_another_release_is_refused(small: Callable[[], Path]) -> None:
    root = small()
    write(root, [{**row, "recipe": "0"} for row in read_manifest(root)])
    with pytest.raises(DataError, match="another release"):
        tradition(root, ("irish_dance",))


def test_another_corpus_is_refused(tmp_path: Path) -> None:
    other = PLAN["irish_dance"][0]._replace(notes="0" * 16)
    with pytest.raises(DataError, match=r"has note fingerprint .* not 0000000000000000.*music21>=10.5,<11"):
        render(other, tmp_path)


def test_failure_of_a_worker_reaches_the_caller(tmp_path: Path) -> None:
    (tmp_path / "irish_dance").write_text("a file where a folder must be")
    with pytest.raises(DataError, match="irish_dance"):
        build(PLAN["irish_dance"][:1], tmp_path, workers=1)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (("bach_choral",), "data.classes; did you mean 'bach_chorale'"),
        (("trecento", "trecento"), "each once"),
        ((), "at least one class"),
    ],
)
def test_wrong_classes_are_refused(tmp_path: Path, classes: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        tradition(tmp_path, classes)
    assert not list(tmp_path.iterdir())


def test_import_is_light() -> None:
    heavy = "{'torch', 'soundfile', 'soxr', 'midirenderer', 'music21', 'pretty_midi', 'rich', 'scipy'}"
    code = f"import sys, musicnet_eval.tradition; sys.exit(', '.join({heavy} & set(sys.modules)) or 0)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_two_processes_at_once_build_once(tmp_path: Path) -> None:
    code = f"from musicnet_eval.tradition import tradition; print(len(tradition({str(tmp_path / 'data')!r}, ('irish_dance',))))"
    both = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in "ab"
    ]
    answers = [process.communicate(timeout=300) for process in both]
    assert [out for out, _ in answers] == ["120\n", "120\n"]
    lines = "".join(error for _, error in answers).splitlines()
    assert len(lines) == 2, lines  # one built and said so, at the start and at the end
    assert "40 pieces" in lines[0]
    assert len(content(tmp_path / "data")) == 120


# --- the whole set --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tracks(tradition_root: Path) -> list[Track]:
    return tradition(tradition_root)


@pytest.mark.slow
def test_six_classes_of_forty_pieces_of_three_clips_of_six_seconds(tracks: list[Track], tradition_root: Path) -> None:
    assert Counter(t.labels for t in tracks) == {(label,): 120 for label in CLASSES}
    assert len({(t.labels, t.id.rsplit("-", 1)[0]) for t in tracks}) == 240
    for track in tracks:
        facts = soundfile.info(track.path)
        assert (facts.frames, facts.samplerate, facts.channels, facts.format, facts.subtype) == (
            132_300,
            22050,
            1,
            "FLAC",
            "PCM_16",
        )
    rows = [row for row in read_manifest(tradition_root) if row["label"] in CLASSES]
    assert len({row["sha256"] for row in rows}) == 720
    assert [row["group"] for row in rows] == [t.group for t in tracks]


@pytest.mark.slow
def test_pitch_rate_level_and_position_are_alike(tracks: list[Track], tradition_root: Path) -> None:
    rows = {row["path"]: row for row in read_manifest(tradition_root)}
    facts: dict[str, list[tuple[float, ...]]] = defaultdict(list)
    scores: dict[str, list[Note]] = {}
    for track in tracks:
        row = rows[track.id]
        if row["source"] not in scores:
            scores[row["source"]] = read(row["source"])
        notes = scores[row["source"]]
        length = round(6e6 / int(row["tempo_us"]) * TICKS)
        clip = cut(notes, int(row["start_tick"]), length)
        pitch = np.average([n.pitch for n in clip], weights=[n.duration for n in clip]) + int(row["transpose"])
        wave, _ = soundfile.read(track.path)
        level = 20 * np.log10(np.sqrt(np.mean(wave**2)))
        position = int(row["start_tick"]) / max(n.onset for n in notes)
        facts[track.labels[0]].append((pitch, len({n.onset for n in clip}) / 6, level, position))
    means = np.array([np.mean(values, axis=0) for values in facts.values()])
    assert (np.ptp(means, axis=0) < [0.5, 0.3, 0.2, 0.1]).all(), means  # semitones, onsets a second, dB, share of the piece
    features = np.concatenate(list(facts.values()))
    assert list(facts) == list(CLASSES)  # so that the rows stand in the order of the tracks
    assert grouped_accuracy(features, tracks, 1.0) < CHANCE + 2 * half_interval(240)


@pytest.mark.slow
def test_the_sound_tells_the_class(tracks: list[Track]) -> None:
    import librosa

    features = []
    for track in tracks:
        wave, rate = soundfile.read(track.path, dtype="float32")
        mel = librosa.power_to_db(librosa.feature.melspectrogram(y=wave, sr=rate, n_fft=2048, hop_length=512, n_mels=128))
        features.append(np.r_[mel.mean(axis=1), mel.std(axis=1)])
    assert grouped_accuracy(np.array(features), tracks, 0.01) > CHANCE + 4 * half_interval(240)


@pytest.mark.slow
def test_verification_is_quick(tracks: list[Track], tradition_root: Path) -> None:
    import time

    began = time.process_time()
    assert tradition(tradition_root) == tracks
    assert time.process_time() - began < 1


def test_draws_do_not_depend_on_each_other() -> None:
    chosen = [p for label in CLASSES for p in PLAN[label]]
    values = np.array([(p.pitch, p.level_db, p.onset_rate) for p in chosen])
    table = np.corrcoef(values.T)
    assert all(abs(table[i, j]) < 3 / len(chosen) ** 0.5 for i, j in itertools.combinations(range(3), 2))
