"""Margin losses against a plain loop, pytorch-metric-learning and limits; the cosine head from training to prediction."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from musicnet_eval import evaluate, load_run, records
from musicnet_eval.backbones import CosineHead, build, give_cosine_head
from musicnet_eval.classifier import MusicClassifier
from musicnet_eval.contracts import DataFacts
from musicnet_eval.errors import ConfigError
from musicnet_eval.losses import CosineMarginLoss
from tests.conftest import TINY, Command, only_run

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its own imports
    from pytorch_metric_learning.losses import ArcFaceLoss, CosFaceLoss

DRAW = torch.Generator().manual_seed(0)
COSINES = torch.rand(40, 5, dtype=torch.float64, generator=DRAW) * 1.96 - 0.98
INDEX = torch.randint(5, (40,), generator=DRAW)
MARGINS = [(0.0, 0.0), (0.5, 0.0), (0.0, 0.35), (0.2, 0.1), (1.2, 0.3)]


def plain_loop(cosines, target, scale, angular, additive):
    """The mean from the formula, one angle at a time."""
    losses = []
    for row, y in zip(cosines.tolist(), target.tolist(), strict=True):
        theta = math.acos(row[y])
        own = math.cos(theta + angular) if theta + angular < math.pi else row[y] - angular * math.sin(angular)
        scores = [scale * (own - additive if c == y else value) for c, value in enumerate(row)]
        losses.append(math.log(sum(math.exp(s - scores[y]) for s in scores)))
    return np.array(losses)


@pytest.mark.parametrize(("angular", "additive"), MARGINS)
@pytest.mark.parametrize("scale", [1.0, 16.0])
def test_margins_equal_a_plain_loop(angular, additive, scale):
    expected = torch.tensor(plain_loop(COSINES, INDEX, scale, angular, additive))
    for reduction, wanted in (("none", expected), ("mean", expected.mean()), ("sum", expected.sum())):
        got = CosineMarginLoss(scale, angular, additive, reduction)(COSINES, INDEX)
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("angular", "additive"), MARGINS)
def test_gradient_is_the_numerical_one(angular, additive):
    loss = CosineMarginLoss(16.0, angular, additive)
    assert torch.autograd.gradcheck(lambda c: loss(c, INDEX), COSINES.clone().requires_grad_())


def test_without_margins_it_is_cross_entropy_on_scaled_cosines():
    torch.testing.assert_close(CosineMarginLoss(16.0)(COSINES, INDEX), F.cross_entropy(16 * COSINES, INDEX))


@pytest.mark.parametrize("kind", ["arcface", "cosface"])
def test_head_and_loss_equal_pytorch_metric_learning(kind):
    """The same features and class weights: value, and gradients of both."""
    features = torch.randn(40, 7, dtype=torch.float64, generator=DRAW)
    weight = torch.randn(5, 7, dtype=torch.float64, generator=DRAW)
    if kind == "arcface":
        theirs, ours = ArcFaceLoss(5, 7, margin=math.degrees(0.4), scale=20), CosineMarginLoss(20.0, angular_margin=0.4)
    else:
        theirs, ours = CosFaceLoss(5, 7, margin=0.3, scale=20), CosineMarginLoss(20.0, cosine_margin=0.3)
    theirs.W.data = weight.T.clone()
    head = CosineHead(7, 5, 20.0).double()
    head.weight.data = weight.clone()
    left, right = features.clone().requires_grad_(), features.clone().requires_grad_()
    expected, got = theirs(left, INDEX), ours(head(right) / 20.0, INDEX)
    expected.backward()
    got.backward()
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(right.grad, left.grad, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(head.weight.grad, theirs.W.grad.T, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(head(features), theirs.get_logits(features))  # what evaluation scores by


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [16.0, 64.0])
def test_ends_of_the_cosine_have_finite_gradients(dtype, scale):
    cosines = torch.tensor([[1.0, -1, 0], [-1, 1, 0], [-1, -1, -1], [1, 1, 1]], dtype=dtype, requires_grad=True)
    loss = CosineMarginLoss(scale, 0.5, 0.1)(cosines, torch.tensor([0, 0, 1, 2]))
    loss.backward()
    assert loss.isfinite()
    assert cosines.grad.isfinite().all()


def test_the_score_falls_with_the_angle_all_the_way():
    """Beyond pi - m1 too, where cos(theta + m1) itself would rise."""
    cosine = torch.linspace(1, -1, 2001, dtype=torch.float64)
    two = torch.stack([cosine, torch.zeros_like(cosine)], dim=1)
    loss = CosineMarginLoss(4.0, 0.5, reduction="none")(two, torch.zeros(2001, dtype=torch.long))
    assert (loss.diff() > 0).all()


@pytest.mark.parametrize(
    ("kwargs", "key"),
    [
        ({"scale": 0.0}, "scale"),
        ({"scale": math.inf}, "scale"),
        ({"angular_margin": -0.1}, "angular_margin"),
        ({"angular_margin": 1.6}, "angular_margin"),
        ({"cosine_margin": 1.0}, "cosine_margin"),
        ({"reduction": "median"}, "reduction"),
    ],
)
def test_wrong_arguments_name_their_key(kwargs, key):
    with pytest.raises(ConfigError, match=rf"loss\.{key}"):
        CosineMarginLoss(**kwargs)


@pytest.mark.parametrize(
    ("cosines", "target", "message"),
    [
        (torch.zeros(4, 3, dtype=torch.long), torch.zeros(4, dtype=torch.long), "must be floating"),
        (torch.zeros(3), torch.zeros(3, dtype=torch.long), "must be floating"),
        (torch.zeros(4, 3), torch.zeros(4, 3), "a mixture of labels has no margin"),
        (torch.zeros(4, 3), torch.zeros(5, dtype=torch.long), r"must be \[4\] int"),
        (torch.zeros(2, 3), torch.tensor([0, 3]), "must lie in 0..2"),
        (torch.zeros(2, 3), torch.tensor([0, -100]), "must lie in 0..2"),
        (torch.full((2, 3), 16.0), torch.tensor([0, 1]), "divided by its scale"),
    ],
)
def test_wrong_inputs_are_told(cosines, target, message):
    with pytest.raises(ValueError, match=message):
        CosineMarginLoss()(cosines, target)


# --- the cosine head ----------------------------------------------------------------------------------------------------------
def test_the_head_scores_by_angle_alone():
    head, features = CosineHead(6, 3, 16.0), torch.randn(8, 6)
    scores = head(features)
    torch.testing.assert_close(scores, 16 * F.cosine_similarity(features[:, None], head.weight[None], dim=2))
    torch.testing.assert_close(head(7.5 * features), scores)
    assert (head(torch.zeros(2, 6)) == 0).all()
    dead = torch.zeros(2, 6, requires_grad=True)
    head(dead).sum().backward()
    assert dead.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_head_keeps_float32_in_mixed_precision(dtype):
    head, features = CosineHead(6, 3, 16.0), torch.randn(8, 6)
    with torch.autocast("cpu", dtype=dtype):
        scores = head(features.to(dtype))
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, head(features.to(dtype).float()))


NETWORKS = ["test_resnet", "test_vit", "test_efficientnet", "stats_linear", "torchvision/mobilenet_v3_small"]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_kind_of_network_gets_the_head(name):
    shape = (1, 64, 64)
    network = build(name, {}, 3, shape).eval()
    give_cosine_head(network, name, shape, 16.0)
    (head,) = (module for module in network.modules() if isinstance(module, CosineHead))
    images = torch.randn(2, *shape)
    scores = network(images)
    assert scores.shape == (2, 3)
    assert (scores.abs() <= 16.0001).all()
    scores.sum().backward()
    assert head.weight.grad.abs().sum() > 0


class Chances(nn.Module):
    """A network that ends in a softmax: its linear layer is not its last word."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64 * 64, 3)

    def forward(self, image):
        return self.head(image.flatten(1)).softmax(dim=1)


def test_a_network_without_a_last_linear_layer_is_refused():
    for network, name in ((build("torchvision/squeezenet1_0", {}, 3, (1, 64, 64)), "squeezenet"), (Chances(), "mine")):
        with pytest.raises(ConfigError, match=f"backbone={name} does not end in one linear layer"):
            give_cosine_head(network, name, (1, 64, 64), 16.0)


def test_the_classifier_gives_the_loss_cosines_and_the_rest_logits():
    facts = DataFacts(classes=("a", "b", "c"), class_counts=(5, 3, 2), image_shape=(1, 32, 40), sample_rate=8000)
    loss = CosineMarginLoss(20.0, 0.3)
    model = MusicClassifier(facts, num_songs=4, backbone="test_resnet", loss=loss)
    batch = {"image": torch.randn(8, 1, 32, 40), "label": torch.tensor([0, 1, 2, 0, 1, 2, 0, 1]), "song": torch.arange(8) % 4}
    step = model.training_step(batch, 0)
    assert step["scores"].abs().max() > 1
    torch.testing.assert_close(step["loss"], loss(step["scores"] / 20.0, batch["label"]))
    torch.testing.assert_close(
        step["loss"].item(), plain_loop(step["scores"].double() / 20, batch["label"], 20, 0.3, 0).mean(), rtol=1e-4, atol=0
    )


@pytest.mark.slow
def test_prediction_and_evaluation_equal_the_training(tones: Path, train: Command, tmp_path: Path) -> None:
    assert train("data=folder", f"data.root={tones}", "backbone=test_resnet", "loss=amcm_softmax", *TINY) == 0
    run = only_run(tmp_path)
    loaded = load_run(run)
    assert any(isinstance(module, CosineHead) for module in loaded.network.modules())
    rows = [row for row in records.read_predictions(run) if row.split == "test"]
    assert rows
    for row in rows:
        assert loaded.predict(tones / row.song) == pytest.approx(row.probabilities, abs=1e-5)
    again = json.loads((evaluate.evaluate(run, []) / "evaluation.json").read_text())["metrics"]
    trained = records.read_result(run)["metrics"]
    assert again == pytest.approx({key: trained[key] for key in again}, rel=1e-5, abs=1e-6, nan_ok=True)
