"""Every preset of `conf/loss`: what it says, that it trains, waits for no device, and does as well in half precision."""

import inspect
from functools import partial
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from musicnet_eval.backbones import CosineHead
from musicnet_eval.losses.pairing import cosine_scale, requirement

PRESETS = sorted((Path(__file__).parents[1] / "conf/loss").glob("*.yaml"))
COUNTS = (100, 40, 10)
LOGITS = torch.randn(32, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
INDEX = torch.randint(3, (32,), generator=torch.Generator().manual_seed(1))
SOFT = torch.softmax(torch.randn(32, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2)), dim=1)
MANY = (torch.rand(32, 3, generator=torch.Generator().manual_seed(3)) < 0.4).double()
NEEDS = {  # needs_cosines, needs_class_counts, needs_progress, takes_soft_targets, multilabel
    "amcm_softmax": (True, False, False, False, False),
    "arcface": (True, False, False, False, False),
    "asymmetric": (False, False, False, True, True),
    "asymmetric_single_label": (False, False, False, True, False),
    "balanced_trusted": (False, False, False, True, False),
    "balanced_trusted_balanced": (False, True, True, True, False),
    "balanced_trusted_noisy": (False, True, True, True, False),
    "balanced_trusted_robust": (False, False, True, True, False),
    "bce": (False, False, False, True, True),
    "class_balanced": (False, True, False, True, False),
    "confidence_penalty": (False, False, False, True, False),
    "cosface": (True, False, False, False, False),
    "cross_entropy": (False, False, False, True, False),
    "focal": (False, False, False, True, False),
    "generalized_cross_entropy": (False, False, False, True, False),
    "label_smoothing": (False, False, False, True, False),
    "logit_adjusted": (False, True, False, True, False),
    "poly1": (False, False, False, True, False),
    "symmetric_cross_entropy": (False, False, False, True, False),
    "weighted_cross_entropy": (False, True, False, True, False),
}
every_preset = pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)


def close(got, expected, atol=1e-7):
    torch.testing.assert_close(got, torch.as_tensor(expected, dtype=got.dtype), atol=atol, rtol=0)


def build(preset, num_classes=3, class_counts=COUNTS):
    """Build `conf/loss/<preset>.yaml` as the classifier does: a partial gets those facts that its signature accepts."""
    loss = instantiate(OmegaConf.load(preset))
    if isinstance(loss, partial):
        facts = {"num_classes": num_classes, "class_counts": class_counts}
        loss = loss(**{name: value for name, value in facts.items() if name in inspect.signature(loss).parameters})
    return loss


def proper_input(loss, logits=LOGITS):
    """Give what the loss takes as its first argument."""
    return torch.tanh(logits) if requirement(loss, "needs_cosines") else logits


def proper_targets(loss):
    """Give every kind of target that the loss says it takes."""
    if requirement(loss, "multilabel"):
        return [MANY, SOFT]
    return [INDEX, SOFT] if requirement(loss, "takes_soft_targets") else [INDEX]


@every_preset
def test_preset_opens_with_what_it_is_and_says_what_it_needs(preset):
    assert preset.read_text().startswith("# ")
    loss = build(preset)
    names = ("needs_cosines", "needs_class_counts", "needs_progress", "takes_soft_targets", "multilabel")
    assert tuple(requirement(loss, name) for name in names) == NEEDS[preset.stem]


@every_preset
def test_preset_trains_a_separable_problem(preset):
    draw = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    loss = build(preset)
    if requirement(loss, "multilabel"):
        target = (torch.rand(60, 3, generator=draw) < 0.4).float()
        inputs = 4.0 * target - 2.0 + 0.3 * torch.randn(60, 3, generator=draw)
    else:
        target = torch.arange(3).repeat(20)
        inputs = F.one_hot(target, 3) * 2.0 + 0.3 * torch.randn(60, 3, generator=draw)
    scale = cosine_scale(loss)
    if scale is None:
        model = nn.Linear(3, 3)
        nn.init.zeros_(model.weight)
        nn.init.zeros_(model.bias)
    else:
        model = CosineHead(3, 3, scale)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)

    def value():
        return loss(model(inputs) / (scale or 1.0), target)

    before = value().item()
    for step in range(30):
        if hasattr(loss, "set_progress"):
            loss.set_progress(step / 30)
        optimizer.zero_grad()
        value().backward()
        optimizer.step()
    assert value().item() < 0.8 * before
    if target.ndim == 2:
        assert ((model(inputs) > 0) == target.bool()).float().mean() > 0.9
    else:
        assert (model(inputs).argmax(dim=1) == target).float().mean() > 0.9


@every_preset
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_preset_computes_half_precision_as_well_as_float32(preset, dtype):
    """Under autocast, as mixed precision trains; the rounding of the input is all that may be lost."""
    loss = build(preset)
    for target in proper_targets(loss):
        rounded = proper_input(loss).to(dtype)
        with torch.autocast("cpu", dtype=dtype):
            got = loss(rounded, target if target.ndim == 1 else target.float())
        expected = loss(rounded.float(), target if target.ndim == 1 else target.float())
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


# --- no waiting for a device --------------------------------------------------------------------------------------------------
class NoWaiting(TorchDispatchMode):
    """Raise where a number or a shape must come from the device before the program can go on."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique", "is_nonzero", "_unique2")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in self.WAITING:
            raise RuntimeError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


@every_preset
def test_a_step_without_checks_waits_for_no_device(preset):
    loss = build(preset)
    checks = getattr(loss, "validate_args", False)
    if checks:
        loss.validate_args = False
    for target in proper_targets(loss):
        leaf = proper_input(loss).float().requires_grad_()
        with NoWaiting():
            if hasattr(loss, "set_progress"):
                loss.set_progress(0.5)
            loss(leaf, target if target.ndim == 1 else target.float()).backward()
    if checks:  # the means of this test can tell
        loss.validate_args = True
        with NoWaiting(), pytest.raises(RuntimeError, match="waits for the device"):
            loss(proper_input(loss), proper_targets(loss)[0])


@every_preset
def test_a_step_without_checks_needs_no_values(preset):
    """Tensors on `meta` have none: also a copy to the CPU, which `NoWaiting` cannot see there, would raise."""
    loss = build(preset).to("meta")
    if hasattr(loss, "validate_args"):
        loss.validate_args = False
    if hasattr(loss, "set_progress"):
        loss.set_progress(0.5)
    for target in proper_targets(loss):
        values = target.to("meta") if target.ndim == 1 else target.float().to("meta")
        loss(torch.empty(32, 3, device="meta", requires_grad=True), values).backward()


# --- what the presets are -----------------------------------------------------------------------------------------------------
def test_presets_are_what_their_formulas_say():
    preset = {path.stem: build(path) for path in PRESETS}
    smoothed = partial(F.cross_entropy, LOGITS, INDEX)
    shares = torch.tensor(COUNTS, dtype=torch.float64) / sum(COUNTS)
    close(preset["cross_entropy"](LOGITS, INDEX), smoothed())
    close(preset["balanced_trusted"](LOGITS, INDEX), smoothed(label_smoothing=1e-3))
    close(preset["label_smoothing"](LOGITS, INDEX), smoothed(label_smoothing=0.1))
    close(preset["weighted_cross_entropy"](LOGITS, INDEX), smoothed(weight=1 / shares), 1e-6)
    effective = (1 - 0.999) / (1 - 0.999 ** torch.tensor(COUNTS, dtype=torch.float64))
    close(preset["class_balanced"](LOGITS, INDEX), smoothed(weight=effective), 1e-6)
    close(preset["logit_adjusted"](LOGITS, INDEX), F.cross_entropy(LOGITS + shares.log(), INDEX), 1e-6)
    close(preset["bce"](LOGITS, MANY), F.binary_cross_entropy_with_logits(LOGITS, MANY))


def test_class_weights_may_be_a_list_of_a_config():
    config = OmegaConf.create(
        {"_target_": "musicnet_eval.losses.BalancedTrustedLoss", "num_classes": 3, "class_weight": [1, 2, 3]}
    )
    close(instantiate(config).weight, [1.0, 2.0, 3.0])


@pytest.mark.parametrize("preset", [p for p in PRESETS if p.stem.startswith("balanced_trusted")], ids=lambda path: path.stem)
def test_only_the_reconstruction_claims_the_paper(preset):
    opening = preset.read_text().split("_target_")[0]
    assert ("reconstruction" in opening) == (preset.stem == "balanced_trusted")
    assert "Ours, " in opening
