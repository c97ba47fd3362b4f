from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics as sk
import torch
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

from musicnet_eval.errors import ConfigError
from musicnet_eval.metrics import (
    METRICS,
    ONE_LABEL,
    VOTES,
    Heard,
    SegmentScores,
    SongVotes,
    add_batch,
    compute,
    fit_temperature,
    mean_metric,
    names,
)
from musicnet_eval.segments import EvalOrder

Truth = Callable[[np.ndarray, np.ndarray], float]


def sample(songs: int = 40, classes: int = 5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (songs,), generator=draw)
    scores = torch.randn(songs, classes, generator=draw) + 1.5 * torch.nn.functional.one_hot(labels, classes)
    return scores.softmax(dim=1), labels


def several(songs: int = 40, classes: int = 5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    labels = (torch.rand(songs, classes, generator=draw) < 0.4).float()
    scores = torch.randn(songs, classes, generator=draw) + 2 * labels - 1
    return scores.sigmoid(), labels


def calibration_by_hand(claimed: np.ndarray, holds: np.ndarray) -> float:
    """Compute the expected calibration error with a plain loop over 15 bins (0, 1/15], …"""
    total = 0.0
    for b in range(15):
        inside = (claimed > b / 15) & (claimed <= (b + 1) / 15)
        if inside.any():
            total += inside.mean() * abs(holds[inside].mean() - claimed[inside].mean())
    return total


def adaptive_by_hand(claimed: np.ndarray, holds: np.ndarray) -> float:
    order = np.argsort(claimed, kind="stable")
    parts = np.array_split(order, min(15, len(order)))
    return sum(len(part) / len(order) * abs(holds[part].mean() - claimed[part].mean()) for part in parts)


def by_class(p: np.ndarray, truth: np.ndarray, metric: Truth) -> float:
    """Average a one-against-the-rest metric over the classes for which it exists."""
    found = [metric(truth[:, c], p[:, c]) for c in range(p.shape[1]) if 0 < truth[:, c].sum() < len(p)]
    return float(np.mean(found)) if found else float("nan")


def top3(p: np.ndarray, y: np.ndarray) -> float:
    return float(np.mean([y[i] in np.argsort(-p[i], kind="stable")[:3] for i in range(len(y))]))


ONE: dict[str, Truth] = {
    "accuracy": lambda p, y: sk.accuracy_score(y, p.argmax(1)),
    "balanced_accuracy": lambda p, y: sk.recall_score(y, p.argmax(1), labels=np.unique(y), average="macro", zero_division=0),
    "top3_accuracy": top3,
    "mcc": lambda p, y: sk.matthews_corrcoef(y, p.argmax(1)),
    "kappa": lambda p, y: sk.cohen_kappa_score(y, p.argmax(1)),
    "roc_auc_macro": lambda p, y: by_class(p, np.eye(5)[y], sk.roc_auc_score),
    "pr_auc_macro": lambda p, y: by_class(p, np.eye(5)[y], sk.average_precision_score),
    "log_loss": lambda p, y: sk.log_loss(y, p / p.sum(1, keepdims=True), labels=range(5)),
    "brier": lambda p, y: float(np.mean([sum((p[i] - np.eye(5)[y[i]]) ** 2) for i in range(len(y))])),
    "ece": lambda p, y: calibration_by_hand(p.max(1), p.argmax(1) == y),
    "ece_adaptive": lambda p, y: adaptive_by_hand(p.max(1), p.argmax(1) == y),
}
for kind in ("precision", "recall", "f1"):
    for average in ("macro", "weighted"):
        score = getattr(sk, f"{kind}_score")
        ONE[f"{kind}_{average}"] = lambda p, y, s=score, a=average: s(y, p.argmax(1), average=a, zero_division=0)

MANY: dict[str, Truth] = {
    "accuracy": lambda p, y: sk.accuracy_score(y, p >= 0.5),
    "roc_auc_macro": lambda p, y: by_class(p, y, sk.roc_auc_score),
    "pr_auc_macro": lambda p, y: by_class(p, y, sk.average_precision_score),
    "log_loss": lambda p, y: float(np.mean([sk.log_loss(y[:, c], p[:, c], labels=[0, 1]) for c in range(5)])),
    "brier": lambda p, y: float(np.mean((p - y) ** 2)),
    "ece": lambda p, y: calibration_by_hand(p.ravel(), y.ravel()),
    "ece_adaptive": lambda p, y: adaptive_by_hand(p.ravel(), y.ravel()),
}
for kind in ("precision", "recall", "f1"):
    for average in ("macro", "weighted"):
        score = getattr(sk, f"{kind}_score")
        # Macro: over the classes that are present or said, as scikit-learn does by itself for songs of one label.
        MANY[f"{kind}_{average}"] = lambda p, y, s=score, a=average: s(
            y, p >= 0.5, average=a, labels=np.flatnonzero(((p >= 0.5) | (y > 0)).any(0)), zero_division=0
        )


def test_every_metric_has_an_independent_truth() -> None:
    assert set(ONE) == set(METRICS) == set(names(multilabel=False))
    assert set(MANY) == set(METRICS) - set(ONE_LABEL) == set(names(multilabel=True))


@pytest.mark.parametrize("name", ONE)
@pytest.mark.parametrize("case", ["random", "other seed", "missing class", "one song", "all alike"])
@pytest.mark.filterwarnings("ignore:.*")  # scikit-learn's own about degenerate cases
def test_one_label_equals_scikit_learn(name: str, case: str) -> None:
    chances, labels = sample(seed=1 if case == "other seed" else 0)
    if case == "missing class":
        chances, labels = chances[labels != 2], labels[labels != 2]
    if case == "one song":
        chances, labels = chances[:1], labels[:1]
    if case == "all alike":
        chances = torch.full_like(chances, 0.2)
    got = compute("x", chances, labels)[f"x/{name}"].item()
    with np.errstate(all="ignore"):
        assert got == pytest.approx(ONE[name](chances.double().numpy(), labels.numpy()), abs=1e-5, nan_ok=True)


@pytest.mark.parametrize("name", MANY)
@pytest.mark.parametrize("case", ["random", "other seed", "missing class", "two songs"])
@pytest.mark.filterwarnings("ignore:.*")
def test_several_labels_equal_scikit_learn(name: str, case: str) -> None:
    chances, labels = several(seed=1 if case == "other seed" else 0)
    if case == "missing class":
        labels[:, 2] = 0
    if case == "two songs":
        chances, labels = chances[:2], labels[:2]
    got = compute("x", chances, labels)[f"x/{name}"].item()
    assert got == pytest.approx(MANY[name](chances.double().numpy(), labels.numpy()), abs=1e-5, nan_ok=True)


@pytest.mark.parametrize("many", [False, True], ids=["one label", "several"])
def test_calibration_equals_a_second_library(many: bool) -> None:
    chances, labels = several() if many else sample()
    if many:
        want = binary_calibration_error(chances.flatten(), labels.flatten().long(), n_bins=15)
    else:
        want = multiclass_calibration_error(chances, labels, 5, n_bins=15)
    assert compute("x", chances, labels)["x/ece"].item() == pytest.approx(want.item(), abs=1e-6)


def test_a_sure_mistake_has_a_finite_log_loss() -> None:
    assert compute("x", torch.tensor([[1.0, 0.0]]), torch.tensor([1]))["x/log_loss"].isfinite()


# --- votes ----------------------------------------------------------------------------------------------------------------------


def _normalised(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.div(frame.sum(axis=1), axis=0)


def voted(scores: torch.Tensor, song: torch.Tensor, vote: str, *, many: bool) -> pd.DataFrame:
    """Let segments vote with a group-by."""
    chances = pd.DataFrame((scores.sigmoid() if many else scores.softmax(1)).numpy()).groupby(song.numpy())
    if vote == "mean_probability":
        return chances.mean()
    if vote == "mean_logit":
        mean = torch.tensor(pd.DataFrame(scores.numpy()).groupby(song.numpy()).mean().to_numpy())
        return pd.DataFrame((mean.sigmoid() if many else mean.softmax(1)).numpy(), index=chances.mean().index)
    if vote == "max":
        return chances.max() if many else _normalised(chances.max())
    said = (scores >= 0).float() if many else torch.nn.functional.one_hot(scores.argmax(1), scores.shape[1])
    return pd.DataFrame(said.numpy()).groupby(song.numpy()).mean()


@pytest.mark.parametrize("vote", VOTES)
@pytest.mark.parametrize("many", [False, True], ids=["one label", "several"])
@pytest.mark.parametrize("size", [1, 7, 200])
def test_votes_equal_a_group_by_however_batches_fall(vote: str, many: bool, size: int) -> None:
    scores = torch.randn(200, 4, generator=torch.Generator().manual_seed(1))
    song = torch.randint(30, (200,), generator=torch.Generator().manual_seed(2)) * 2  # even songs only
    label = torch.stack([song % 2, song % 3 > 0, song % 5 > 2, song % 7 > 3], dim=1).float() if many else song % 4
    votes = SongVotes(num_songs=64, num_classes=4, vote=vote, multilabel=many)
    for i in range(0, 200, size):
        votes.update(scores[i : i + size], song[i : i + size], label[i : i + size])
    songs, chances, labels = votes.gather()
    frame = voted(scores, song, vote, many=many)
    assert songs.tolist() == frame.index.tolist()
    np.testing.assert_allclose(chances.numpy(), frame.to_numpy(), rtol=1e-5)
    first = [song.tolist().index(s) for s in songs.tolist()]
    assert labels.tolist() == label[first].long().tolist()


def test_a_tied_vote_goes_to_the_class_that_comes_first() -> None:
    votes = SongVotes(num_songs=1, num_classes=3, vote="majority")
    votes.update(torch.tensor([[0.0, 0.0, 9.0], [0.0, 9.0, 0.0]]), torch.tensor([0, 0]), torch.tensor([2, 2]))
    _, chances, labels = votes.gather()
    assert chances.tolist() == [[0.0, 0.5, 0.5]]
    assert compute("x", chances, labels)["x/accuracy"].item() == 0


def test_an_unknown_vote_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model.vote='mean' is not a way to vote.*mean_"):
        SongVotes(2, 2, "mean")


@pytest.mark.parametrize("many", [False, True])
def test_votes_of_one_song_keep_their_shape(many: bool) -> None:
    votes = SongVotes(num_songs=5, num_classes=4, multilabel=many)
    label = torch.ones(2, 4) if many else torch.tensor([1, 1])
    votes.update(torch.zeros(2, 4), torch.tensor([3, 3]), label)
    songs, means, labels = votes.gather()
    assert (songs.shape, means.shape, labels.shape) == ((1,), (1, 4), (1, 4) if many else (1,))


@pytest.mark.parametrize("batch", [1, 9, 100])
def test_segments_are_all_kept_once(batch: int) -> None:
    scores, labels = torch.randn(100, 4), torch.randint(4, (100,))
    kept = SegmentScores()
    for i in range(0, 100, batch):
        kept.update(scores[i : i + batch], labels[i : i + batch] + 7, labels[i : i + batch])
    heard = kept.gather()
    torch.testing.assert_close(heard.scores, scores)
    assert heard.labels.tolist() == labels.tolist()
    assert heard.songs.tolist() == (labels + 7).tolist()
    kept.update(scores[:1], labels[:1], labels[:1])  # a single segment keeps its shape, and the others are gone
    assert [part.shape for part in kept.gather()] == [(1, 4), (1,), (1,)]


# --- calibration ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vote", ["mean_probability", "mean_logit", "max"])
@pytest.mark.parametrize("many", [False, True], ids=["one label", "several"])
@pytest.mark.slow
def test_the_temperature_is_that_of_least_log_loss_over_songs(vote: str, many: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    songs = torch.arange(60).repeat_interleave(4)
    truth = torch.rand(60, 3, generator=draw) < 0.5 if many else torch.randint(3, (60,), generator=draw)
    held = truth[songs].float() if many else torch.nn.functional.one_hot(truth[songs], 3).float()
    scores = 8 * (held + 0.8 * torch.randn(240, 3, generator=draw) - (0.5 if many else 0))  # of another temperature than 1

    def loss(temperature: float) -> float:
        frame = voted(scores.double() / temperature, songs, vote, many=many).to_numpy()
        if many:
            return float(np.mean([sk.log_loss(truth[:, c], frame[:, c]) for c in range(3)]))
        return float(sk.log_loss(truth, frame))

    found = fit_temperature(Heard(scores, songs, truth[songs].float() if many else truth[songs]), vote, multilabel=many)
    grid = np.exp(np.linspace(-np.log(50), np.log(50), 150))
    assert found == pytest.approx(grid[np.argmin([loss(t) for t in grid])], rel=0.04)
    assert loss(found) < loss(1.0)


def test_temperature_and_majority_do_not_go_together() -> None:
    with pytest.raises(ConfigError, match=r"model.calibration=temperature changes nothing under model.vote=majority"):
        fit_temperature(Heard(torch.zeros(2, 2), torch.arange(2), torch.arange(2)), "majority")


# --- several processes ----------------------------------------------------------------------------------------------------------


def _rank(rank: int, world: int, folder: str) -> None:
    """Put one rank's share of 11 segments of 5 songs to both gatherers, over gloo."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    scores, songs, labels = five_songs()
    votes, kept = SongVotes(8, 3), SegmentScores()
    for request in EvalOrder(11, batch_size=2, rank=rank, world=world):
        rows = torch.from_numpy(request.rows)
        votes.update(scores[rows], songs[rows], labels[rows])
        kept.update(scores[rows], songs[rows], labels[rows])
    torch.save((tuple(votes.gather()), tuple(kept.gather())), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def five_songs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    songs = torch.tensor([0, 0, 1, 2, 2, 2, 4, 4, 4, 7, 7])
    return torch.randn(11, 3, generator=torch.Generator().manual_seed(3)), songs, songs % 3


def test_running_means_weigh_batches_by_their_size() -> None:
    mean = mean_metric()
    for value, size in ((1.0, 4), (2.0, 1)):
        add_batch(mean, torch.tensor(value), size)
    assert mean.compute() == pytest.approx(6 / 5)
    add_batch(mean, torch.tensor(math.nan), 3)
    assert mean.compute().isnan()  # a loss that is no number is not passed over


@pytest.mark.slow
def test_two_processes_count_every_song_once(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_rank, (2, str(tmp_path)), nprocs=2)
    scores, songs, labels = five_songs()
    alone = SongVotes(8, 3)
    alone.update(scores, songs, labels)
    for rank in range(2):
        votes, kept = torch.load(tmp_path / f"{rank}.pt")
        for got, want in zip(votes, alone.compute(), strict=True):
            torch.testing.assert_close(got, want)
        order = kept[0][:, 0].argsort()
        torch.testing.assert_close(kept[0][order], scores[scores[:, 0].argsort()])
        assert sorted(kept[1].tolist()) == songs.tolist()
