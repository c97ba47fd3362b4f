"""Which parts of a network learn, when and how fast; truth from timm's own groups, plain lists, and what a step changes."""

from __future__ import annotations

from functools import partial

import pytest
import timm
import torch
import torchvision
from timm.optim import param_groups_layer_decay
from torch import nn

from musicnet_eval import backbones
from musicnet_eval.classifier import MusicClassifier
from musicnet_eval.contracts import DataFacts
from musicnet_eval.errors import ConfigError
from musicnet_eval.finetune import Finetune, body_stages, freeze, head_names, layer_of, scale_rates

FACTS = DataFacts(classes=("a", "b", "c"), class_counts=(5, 3, 2), image_shape=(1, 64, 64), sample_rate=8000)


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("test_resnet", {"fc.weight", "fc.bias"}),
        ("test_vit", {"head.weight", "head.bias"}),
        ("test_convnext", {"head.fc.weight", "head.fc.bias"}),
        ("test_efficientnet", {"classifier.weight", "classifier.bias"}),
        ("torchvision/squeezenet1_0", {"classifier.1.weight", "classifier.1.bias"}),
        ("torchvision/alexnet", {"classifier.6.weight", "classifier.6.bias"}),
        ("torchvision/shufflenet_v2_x0_5", {"fc.weight", "fc.bias"}),
        ("stats_linear", {"head.weight", "head.bias"}),
    ],
)
def test_the_head_is_the_classifier(name: str, head: set[str]) -> None:
    network = backbones.build(name, {}, 3, (1, 64, 64))
    assert head_names(network) == head
    shapes = {n: p.shape[0] for n, p in network.named_parameters()}
    assert all(shapes[name] == 3 for name in head)  # a score for each class


def test_a_removed_head_is_none() -> None:
    assert head_names(timm.create_model("test_resnet", num_classes=0)) == set()


def test_layers_of_a_foreign_network_are_its_children() -> None:
    stages = body_stages(torchvision.models.resnet18(num_classes=3), stages=6)
    first = [sorted({name.partition(".")[0] for name in stage}) for stage in stages]
    assert first[0] == ["bn1", "conv1"]
    # layer4 holds more than half of the parameters and is cut into its blocks
    assert [name for part in first for name in part if name.startswith("layer")] == [
        "layer1",
        "layer2",
        "layer3",
        "layer4",
        "layer4",
    ]
    flat = [name for stage in stages for name in stage]
    assert len(flat) == len(set(flat)) == len(list(torchvision.models.resnet18(num_classes=3).parameters())) - 2


@pytest.mark.parametrize(
    "name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet", "torchvision/alexnet", "resnet18"]
)
@pytest.mark.parametrize("stages", [1, 3, 4, 99])
def test_stages_cut_the_body_once_and_in_order(name: str, stages: int) -> None:
    network = backbones.build(name, {}, 3, (1, 64, 64))
    cut = body_stages(network, stages)
    assert 1 <= len(cut) <= stages
    assert all(cut)
    body = {n for n, _ in network.named_parameters()} - head_names(network)
    assert sorted(n for stage in cut for n in stage) == sorted(body)
    layers = layer_of(network, coarse=True)
    tops = [max(layers[n] for n in stage) for stage in cut]
    assert tops == sorted(tops)


def test_gradual_by_a_plain_list() -> None:
    network = timm.create_model("test_resnet", num_classes=3)
    names = [name for name, _ in network.named_parameters()]
    parts = [("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",)]  # as its source says
    plan = Finetune(trained_stages=0, epochs_per_stage=2, stages=5)
    for epoch in range(14):
        asleep = parts[: max(0, 5 - epoch // 2)]
        assert plan.frozen(network, epoch) == {n for n in names if n.partition(".")[0] in sum(asleep, ())}


def test_head_and_full() -> None:
    network = timm.create_model("test_vit", num_classes=3)
    everything = {name for name, _ in network.named_parameters()}
    for epoch in (0, 100):
        assert Finetune().frozen(network, epoch) == set()
        assert Finetune(trained_stages=0).frozen(network, epoch) == everything - {"head.weight", "head.bias"}
    assert Finetune(trained_stages=99).frozen(network, 0) == set()


def test_frozen_norms_keep_their_statistics_and_others_do_not() -> None:
    network = timm.create_model("test_resnet", num_classes=3, in_chans=1)
    learnable = [name for name, _ in network.named_parameters()]
    freeze(network, learnable, Finetune(trained_stages=1, stages=5).frozen(network, 0))
    before = {name: value.clone() for name, value in network.named_buffers() if name.endswith("running_mean")}
    network(torch.randn(4, 1, 64, 64))
    moved = {
        name.partition(".")[0] for name, value in network.named_buffers() if name in before and not value.equal(before[name])
    }
    assert moved == {"layer4"}
    assert {n.partition(".")[0] for n, p in network.named_parameters() if p.requires_grad} == {"layer4", "fc"}
    freeze(network, learnable, ())
    assert all(module.training for module in network.modules())


def test_what_a_network_fixes_itself_stays_fixed() -> None:
    network = timm.create_model("test_resnet", num_classes=3)
    next(network.parameters()).requires_grad = False
    learnable = [name for name, p in network.named_parameters() if p.requires_grad]
    fixed = {name for name, p in network.named_parameters() if not p.requires_grad}
    freeze(network, learnable, ())
    assert {name for name, p in network.named_parameters() if not p.requires_grad} == fixed


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet", "resnet18"])
def test_layer_decay_equals_timms(name: str) -> None:
    network = timm.create_model(name, num_classes=3)
    spared = network.no_weight_decay() if hasattr(network, "no_weight_decay") else ()
    theirs = param_groups_layer_decay(network, weight_decay=0.05, layer_decay=0.8, no_weight_decay_list=spared)
    ours = Finetune(layer_decay=0.8).parameter_groups(network, network, weight_decay_exclude_1d=True)

    def by_parameter(groups: list[dict[str, object]]) -> dict[int, tuple[float, float]]:
        return {id(p): (g["lr_scale"], g.get("weight_decay", 0.05)) for g in groups for p in g["params"]}  # type: ignore[attr-defined, misc]

    want, got = by_parameter(theirs), by_parameter(ours)
    assert got.keys() == want.keys()
    for key, (scale, decay) in want.items():
        assert got[key] == pytest.approx((scale, decay))


def test_rates_of_head_and_what_lies_beside_the_network() -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = timm.create_model("test_resnet", num_classes=3)
            self.centres = nn.Parameter(torch.zeros(3, 8))

    model = Whole()
    groups = Finetune(head_lr_scale=10.0).parameter_groups(model, model.backbone, weight_decay_exclude_1d=False)
    optimizer = torch.optim.SGD(groups, lr=0.01)
    scale_rates(optimizer.param_groups)
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    high = {n for n, p in model.named_parameters() if rate[id(p)] == pytest.approx(0.1)}
    assert high == {"centres", "backbone.fc.weight", "backbone.fc.bias"}
    assert {round(value, 6) for value in rate.values()} == {0.01, 0.1}


def test_norms_and_biases_do_not_decay() -> None:
    """Steps without gradient: what decays shrinks, by rate times decay, and nothing else moves."""
    network = timm.create_model("test_resnet", num_classes=3)
    groups = Finetune().parameter_groups(network, network, weight_decay_exclude_1d=True)
    optimizer = torch.optim.AdamW(groups, lr=0.1, weight_decay=0.5)
    scale_rates(optimizer.param_groups)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    for p in network.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in network.named_parameters():
        torch.testing.assert_close(p, before[name] * (1.0 if p.ndim <= 1 else 0.95))


def test_the_model_counts_what_learns() -> None:
    plan = Finetune(trained_stages=0, epochs_per_stage=1, stages=2)
    model = MusicClassifier(FACTS, 4, "test_resnet", finetune=plan)
    sizes = {name: p.numel() for name, p in model.backbone.named_parameters()}
    head = sizes["fc.weight"] + sizes["fc.bias"]
    lower, upper = ([sizes[n] for n in stage] for stage in body_stages(model.backbone, 2))
    assert model.trained_parameters(9) == {0: head, 1: head + sum(upper), 2: sum(sizes.values())}
    assert sum(lower) > 0
    assert model.trained_parameters(1) == {0: head}


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"trained_stages": -1}, "trained_stages=-1"),
        ({"epochs_per_stage": 0}, "epochs_per_stage=0"),
        ({"stages": 0}, "stages=0"),
        ({"stages": True}, "stages=True"),
        ({"layer_decay": 0.0}, "layer_decay=0.0"),
        ({"layer_decay": 1.1}, "layer_decay=1.1"),
        ({"head_lr_scale": 0}, "head_lr_scale=0"),
        ({"head_lr_scale": "x"}, "head_lr_scale='x'"),
    ],
)
def test_refusals(options: dict[str, float], named: str) -> None:
    with pytest.raises(ConfigError, match=rf"finetune\.{named}"):
        Finetune(**options)  # type: ignore[arg-type]


def test_compile_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    model = MusicClassifier(FACTS, 4, "stats_linear", compile=True, optimizer=partial(torch.optim.SGD, lr=0.1))
    import lightning

    trainer = lightning.Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu"
    )
    model.trainer = trainer
    with pytest.raises(ConfigError, match=r"model\.compile=true needs a C\+\+ compiler, and 'no-such-compiler'"):
        model.on_fit_start()
