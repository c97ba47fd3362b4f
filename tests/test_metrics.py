from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics
import torch

from musicnet_eval.metrics import SONG_METRICS, SongVotes, segment_metrics, song_metrics


def sample(songs: int = 40, classes: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (songs,), generator=draw)
    scores = torch.randn(songs, classes, generator=draw) + 1.5 * torch.nn.functional.one_hot(labels, classes)
    return scores.softmax(dim=1), labels


def by_hand_ece(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Compute the expected calibration error with a plain loop over 15 bins (0, 1/15], …"""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    total = 0.0
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return total


def truth(name: str, probabilities: np.ndarray, labels: np.ndarray) -> float:
    predicted = probabilities.argmax(axis=1)
    probabilities = probabilities / probabilities.sum(axis=1, keepdims=True)  # from float32's rounding, which sklearn minds
    with np.errstate(all="ignore"):
        return {
            "accuracy": lambda: sklearn.metrics.accuracy_score(labels, predicted),
            "balanced_accuracy": lambda: sklearn.metrics.recall_score(
                labels, predicted, labels=np.unique(labels), average="macro", zero_division=0
            ),
            "f1_macro": lambda: sklearn.metrics.f1_score(labels, predicted, average="macro", zero_division=0),
            "log_loss": lambda: sklearn.metrics.log_loss(labels, probabilities, labels=range(probabilities.shape[1])),
            "ece": lambda: by_hand_ece(probabilities, labels),
        }[name]()


@pytest.mark.parametrize("name", SONG_METRICS)
@pytest.mark.parametrize("case", ["random", "other seed", "missing class", "one song"])
def test_song_metrics_equal_scikit_learn(name: str, case: str) -> None:
    probabilities, labels = sample(seed=1 if case == "other seed" else 0)
    if case == "missing class":
        probabilities, labels = probabilities[labels != 2], labels[labels != 2]
    if case == "one song":
        probabilities, labels = probabilities[:1], labels[:1]
    got = SONG_METRICS[name](probabilities, labels).item()
    assert got == pytest.approx(truth(name, probabilities.double().numpy(), labels.numpy()), abs=1e-5)


def test_a_sure_mistake_has_a_finite_log_loss() -> None:
    assert SONG_METRICS["log_loss"](torch.tensor([[1.0, 0.0]]), torch.tensor([1])).isfinite()


def test_keys() -> None:
    assert set(song_metrics("val", *sample())) == {f"val/song/{name}" for name in SONG_METRICS}


@pytest.mark.parametrize("size", [1, 7, 64, 200])
def test_votes_equal_a_group_by_however_batches_fall(size: int) -> None:
    probabilities, _ = sample(200)
    song = torch.randint(30, (200,), generator=torch.Generator().manual_seed(2)) * 2  # even songs only
    votes = SongVotes(num_songs=64, num_classes=4)
    for i in range(0, 200, size):
        votes.update(probabilities[i : i + size], song[i : i + size], song[i : i + size] % 4)
    songs, means, labels = votes.gather()
    frame = pd.DataFrame(probabilities.numpy()).groupby(song.numpy()).mean()
    assert songs.tolist() == frame.index.tolist()
    np.testing.assert_allclose(means.numpy(), frame.to_numpy(), rtol=1e-6)
    assert labels.tolist() == [s % 4 for s in songs.tolist()]


def test_votes_of_one_song_keep_their_shape() -> None:
    votes = SongVotes(num_songs=5, num_classes=4)
    votes.update(torch.full((2, 4), 0.25), torch.tensor([3, 3]), torch.tensor([1, 1]))
    songs, means, labels = votes.gather()
    assert (songs.shape, means.shape, labels.shape) == ((1,), (1, 4), (1,))


def test_segment_metrics_equal_scikit_learn() -> None:
    probabilities, labels = sample(100)
    metrics = segment_metrics("test", 4)
    for i in range(0, 100, 9):
        metrics.update(probabilities[i : i + 9], labels[i : i + 9])
    predicted = probabilities.argmax(dim=1)
    assert {key: value.item() for key, value in metrics.compute().items()} == pytest.approx(
        {
            "test/segment/accuracy": sklearn.metrics.accuracy_score(labels, predicted),
            "test/segment/f1_macro": sklearn.metrics.f1_score(labels, predicted, average="macro"),
        }
    )
