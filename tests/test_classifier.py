from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from musicnet_eval.classifier import MusicClassifier, finish
from musicnet_eval.contracts import DataFacts
from musicnet_eval.errors import ConfigError
from musicnet_eval.losses import BalancedTrustedLoss
from musicnet_eval.schedules import cosine

FACTS = DataFacts(classes=("a", "b", "c"), class_counts=(5, 3, 2), image_shape=(1, 16, 20), sample_rate=8000)


def test_finish_gives_what_the_signature_accepts() -> None:
    assert finish(partial(lambda num_classes: num_classes), num_classes=3, class_counts=(1, 2, 3)) == 3
    assert finish(partial(lambda **facts: sorted(facts)), num_classes=3, class_counts=()) == ["class_counts", "num_classes"]
    loss = nn.CrossEntropyLoss()
    assert finish(loss, num_classes=3) is loss


def test_finish_says_what_cannot_be_made() -> None:
    weight = [nn.Parameter(torch.zeros(1))]
    with pytest.raises(ConfigError, match=r"AdamW cannot be made with lr=-1\S* \(Invalid learning rate: -1"):
        finish(partial(torch.optim.AdamW, lr=-1.0), params=weight)
    with pytest.raises(ConfigError, match="unexpected keyword"):
        finish(partial(torch.optim.AdamW, speed=3), params=weight)


def test_a_loss_gets_the_facts() -> None:
    loss = partial(BalancedTrustedLoss, class_weight="inv_freq", trust_strength=0.0, trust_warmup=0.0)
    model = MusicClassifier(FACTS, num_songs=4, backbone="stats_linear", loss=loss)
    assert isinstance(model.loss, BalancedTrustedLoss)
    counts = torch.tensor(FACTS.class_counts, dtype=torch.float64)
    want = (1 / counts) / (1 / counts).mean()
    torch.testing.assert_close(model.loss.weight.double(), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("channels_last", [True, False])
def test_memory_layout_changes_no_scores(channels_last: bool) -> None:
    torch.manual_seed(0)
    model = MusicClassifier(FACTS, 4, "test_resnet", channels_last=channels_last).eval()
    torch.manual_seed(0)
    plain = MusicClassifier(FACTS, 4, "test_resnet", channels_last=False).eval()
    image = torch.randn(2, 1, 16, 20, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model(image), plain(image), rtol=1e-4, atol=1e-5)


def test_the_scheduler_gets_its_steps() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = finish(partial(cosine, warmup_fraction=0.0), optimizer=optimizer, total_steps=4)
    rates = []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([1.0, 0.853553, 0.5, 0.146447], abs=1e-5)
