from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from musicnet_eval.errors import DataError
from musicnet_eval.segments import EvalOrder, Request, Segments, Song, TrainOrder, balanced_chances, check_lengths, grid


@pytest.fixture
def songs(tmp_path: Path) -> list[Song]:
    """Write songs whose samples count upwards from 1000 × index, of 50, 80, 20 and 120 samples."""
    made = []
    for index, length in enumerate((50, 80, 20, 120)):
        (1000 * index + np.arange(length)).astype(np.int16).tofile(tmp_path / f"{index}.pcm")
        made.append(Song(str(tmp_path / f"{index}.pcm"), length, label=index % 2, index=index))
    return made


@pytest.mark.parametrize("length", [1, 39, 40, 41, 79, 80, 81, 200])
@pytest.mark.parametrize("hop", [1, 7, 40, 60])
def test_grid_reaches_both_ends_without_gaps(length: int, hop: int) -> None:
    starts = grid(length, 40, hop)
    assert starts[0] == 0
    assert starts[-1] == max(0, length - 40)
    assert all(0 < b - a <= hop for a, b in itertools.pairwise(starts))


def test_grid_reading_equals_slicing(songs: list[Song]) -> None:
    data = Segments(songs, segment=40, hop=40)
    batch = data.__getitems__(Request(0, np.arange(len(data))))
    for audio, song, start in zip(batch["audio"].numpy(), batch["song"].tolist(), batch["start"].tolist(), strict=True):
        want = 1000 * song + np.arange(start, start + 40)
        want[want >= 1000 * song + songs[song].length] = 0  # silence after the end
        np.testing.assert_array_equal(audio, want)
    assert batch["label"].tolist() == [song % 2 for song in batch["song"].tolist()]
    assert sorted(set(batch["song"].tolist())) == [0, 1, 2, 3]


def test_random_positions_stay_inside_move_and_repeat(songs: list[Song]) -> None:
    data = Segments(songs, segment=40, hop=None, seed=5)
    rows = np.arange(len(data))
    drawn = np.stack([data.starts(Request(epoch, rows)) for epoch in range(400)])
    for column, song in zip(drawn.T, songs, strict=True):
        last = max(0, song.length - 40)
        assert column.min() == 0
        assert column.max() == last  # every position is reached, the last included
        if last:
            assert abs(column.mean() - last / 2) < 4 * last / np.sqrt(12 * 400)
    np.testing.assert_array_equal(Segments(songs, 40, None, seed=5).starts(Request(7, rows)), drawn[7])
    assert (Segments(songs, 40, None, seed=6).starts(Request(7, rows)) != drawn[7]).any()


@pytest.mark.parametrize(("rows", "size", "world"), [(10, 4, 1), (9, 4, 1), (10, 3, 2), (11, 4, 2)])
def test_train_order(rows: int, size: int, world: int) -> None:
    seen: list[int] = []
    counts = set()
    for rank in range(world):
        order = TrainOrder(rows, size, seed=0, epoch=lambda: 3, rank=rank, world=world)
        batches = list(order)
        counts.add(len(batches))
        assert len(batches) == len(order)
        assert all(request.epoch == 3 and 2 <= len(request.rows) <= size for request in batches)
        seen += [row for request in batches for row in request.rows.tolist()]
    assert len(counts) == 1  # ranks that differ in their number of batches would wait for each other for ever
    assert len(seen) == len(set(seen)) >= rows - 2 * world


def test_train_order_changes_by_epoch_and_repeats() -> None:
    def rows(epoch: int, seed: int = 0) -> list[int]:
        return [row for request in TrainOrder(50, 8, seed, lambda: epoch) for row in request.rows.tolist()]

    assert rows(0) == rows(0)
    assert rows(0) != rows(1)
    assert rows(0) != rows(0, seed=1)


def test_an_epoch_that_was_cut_goes_on_after_what_is_done() -> None:
    def rows(done: int) -> list[list[int]]:
        return [request.rows.tolist() for request in TrainOrder(50, 8, 0, lambda: 2, done=lambda: done)]

    assert rows(3) == rows(0)[3:]
    assert len(TrainOrder(50, 8, 0, lambda: 2, done=lambda: 3)) == 7  # of the whole epoch, by which its end is known


@pytest.mark.parametrize("world", [1, 2, 3])
def test_eval_order_counts_each_row_once(world: int) -> None:
    for rows in (9, 10, 24):
        orders = [EvalOrder(rows, 4, rank, world) for rank in range(world)]
        seen = [row for order in orders for request in order for row in request.rows.tolist()]
        assert sorted(seen) == list(range(rows))
        assert len({len(order) for order in orders}) == 1  # they wait for each other at every batch
        assert all(0 < len(request.rows) <= 4 for order in orders for request in order)


def test_short_songs_are_refused_or_padded(songs: list[Song]) -> None:
    names = ["a", "b", "c", "d"]
    with pytest.raises(DataError, match=r"longer than 1 of 4 tracks \(shortest: 2.0 s, 'c'\).*data.pad_short=true"):
        check_lengths(songs, names, segment=40, sample_rate=10, pad_short=False)
    check_lengths(songs, names, segment=40, sample_rate=10, pad_short=True)


def test_balanced_draws_make_classes_equal() -> None:
    labels = np.repeat([0, 1, 2], [70, 25, 5])
    order = TrainOrder(100, 10, seed=0, epoch=lambda: 3, chances=balanced_chances(labels, 3))
    epochs = [np.concatenate([r.rows for r in TrainOrder(100, 10, 0, lambda e=e: e, chances=order.chances)]) for e in range(300)]
    share = np.bincount(labels[np.concatenate(epochs)], minlength=3) / 30_000
    np.testing.assert_allclose(share, 1 / 3, atol=0.01)
    again = [request.rows.tolist() for request in order]
    assert again == [request.rows.tolist() for request in order]  # the same draws, asked for again


def test_balanced_chances_of_several_labels() -> None:
    labels = np.array([[1, 0], [1, 0], [1, 1], [0, 1]])
    want = np.array([1 / 3, 1 / 3, (1 / 3 + 1 / 2) / 2, 1 / 2])
    np.testing.assert_allclose(balanced_chances(labels, 2), want / want.sum())


def test_a_track_drawn_twice_gives_two_segments(songs: list[Song]) -> None:
    data = Segments(songs, 40, None, seed=5)
    long = int(np.argmax(data.slack))
    starts = data.starts(Request(0, np.full(3, long), np.arange(3) % len(data)))
    assert len(set(starts.tolist())) > 1
