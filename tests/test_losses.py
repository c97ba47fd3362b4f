"""The balanced trusted loss against stored numbers, torch, plain loops, calculus and limits."""

import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from musicnet_eval.errors import ConfigError
from musicnet_eval.losses import BalancedTrustedLoss

ROOT = Path(__file__).parents[1]
REFERENCE = json.loads((ROOT / "tests/data/loss_reference.json").read_text())
CASES = {case["name"]: case for case in REFERENCE["cases"]}
TOLERANCE = REFERENCE["tolerance"]
COUNTS = (100, 40, 10)
PLAIN = {"trust_strength": 0.0, "trust_warmup": 0.0}  # every part off
LOGITS = torch.randn(32, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
INDEX = torch.randint(3, (32,), generator=torch.Generator().manual_seed(1))
SOFT = torch.softmax(torch.randn(32, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2)), dim=1)


def close(got, expected, atol=1e-7):
    torch.testing.assert_close(got, torch.as_tensor(expected, dtype=got.dtype), atol=atol, rtol=0)


def gradient(loss, logits, target):
    leaf = logits.clone().requires_grad_()
    loss(leaf, target).backward()
    return leaf.grad


# --- the balanced trusted loss against stored numbers -------------------------------------------------------------------------
def from_case(case, reduction="mean"):
    kwargs = {REFERENCE["argument_names"].get(name, name): value for name, value in case["kwargs"].items()}
    progress = case["kwargs"].get("progress", 1.0)
    kwargs.pop("set_progress(progress)", None)
    loss = BalancedTrustedLoss(case["num_classes"], **{**PLAIN, **kwargs}, reduction=reduction)
    loss.set_progress(progress)
    logits, target = torch.tensor(case["logits"], dtype=torch.float64), torch.tensor(case["target"])
    return loss, logits, target.double() if target.ndim == 2 else target


def test_the_reference_has_all_cases():
    assert len(CASES) == 11


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_loss_equals_the_reference(name, reduction):
    loss, logits, target = from_case(CASES[name], reduction)
    close(loss(logits, target), CASES[name]["expect"][f"loss_{reduction}"], TOLERANCE)


@pytest.mark.parametrize("name", CASES)
def test_trust_and_gradient_equal_the_reference(name):
    loss, logits, target = from_case(CASES[name])
    close(loss.trust(logits, target), CASES[name]["expect"]["trust"], TOLERANCE)
    close(gradient(loss, logits, target), CASES[name]["expect"]["grad_of_mean_wrt_logits"], TOLERANCE)


@pytest.mark.parametrize(
    ("method", "beta", "key"),
    [
        ("inv_freq", 0.999, "inv_freq"),
        ("effective_num", 0.99, "effective_num_beta_0_99"),
        ("effective_num", 0.999, "effective_num_beta_0_999"),
    ],
)
def test_class_weights_equal_the_reference(method, beta, key):
    assert REFERENCE["class_weight"]["counts"] == list(COUNTS)
    loss = BalancedTrustedLoss(3, COUNTS, class_weight=method, beta=beta)
    close(loss.weight, REFERENCE["class_weight"][key], 1e-6)


def test_power_and_cap_shape_the_class_weights():
    raw = np.array([(150 / n) ** 0.5 for n in (100, 40, 10)])
    loss = BalancedTrustedLoss(3, COUNTS, class_weight="inv_freq", power=0.5, max_weight=1.2)
    close(loss.weight, np.minimum(raw / raw.mean(), 1.2), 1e-6)
    flat = BalancedTrustedLoss(3, COUNTS, class_weight="inv_freq", power=0.0)
    close(flat.weight, np.ones(3))


def test_a_class_without_items_counts_as_one():
    with pytest.warns(UserWarning, match="nothing to learn"):
        empty = BalancedTrustedLoss(3, (100, 40, 0), class_weight="effective_num")
    close(empty.weight, BalancedTrustedLoss(3, (100, 40, 1), class_weight="effective_num").weight)


# --- the balanced trusted loss against torch ----------------------------------------------------------------------------------
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(
    ("ours", "torch_s", "target"),
    [
        ({}, {}, INDEX),
        ({}, {}, SOFT),
        ({"trust_factor": 0.1}, {"label_smoothing": 0.1}, INDEX),
        ({"trust_factor": 0.1}, {"label_smoothing": 0.1}, SOFT),
        ({"class_weight": [0.5, 1.0, 2.0]}, {"weight": torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)}, INDEX),
        ({"balance_base": 10, "balance_factor": 3}, {"label_smoothing": 1e-3}, INDEX),
    ],
)
def test_without_trust_it_is_cross_entropy(ours, torch_s, target, reduction):
    loss = BalancedTrustedLoss(3, **PLAIN, **ours, reduction=reduction)
    expected = partial(F.cross_entropy, **torch_s, reduction=reduction)
    close(loss(LOGITS, target), expected(LOGITS, target))
    summed = lambda f: lambda z, y: f(z, y).sum()  # noqa: E731
    close(gradient(summed(loss), LOGITS, target), gradient(summed(expected), LOGITS, target))


def test_logit_adjustment_is_cross_entropy_on_shifted_logits():
    loss = BalancedTrustedLoss(3, COUNTS, **PLAIN, logit_adjust_tau=1.5)
    shares = torch.tensor(COUNTS, dtype=torch.float64) / sum(COUNTS)
    close(loss(LOGITS, INDEX), F.cross_entropy(LOGITS + 1.5 * shares.log(), INDEX), 1e-6)


def plain_loop(logits, target, weight, epsilon, strength):
    """The mean from the formula, one number at a time."""
    total = size = 0.0
    for z, y in zip(logits.tolist(), target.tolist(), strict=True):
        norm = math.log(sum(math.exp(v) for v in z))
        trust = (sum(yc * math.exp(v) for yc, v in zip(y, z, strict=True)) / math.exp(max(z))) ** strength
        counted = sum(yc * w for yc, w in zip(y, weight, strict=True))
        fit = sum(yc * w * (norm - v) for yc, w, v in zip(y, weight, z, strict=True))
        total += trust * ((1 - epsilon) * fit + epsilon * counted * sum(norm - v for v in z) / len(z))
        size += counted
    return total / size


@pytest.mark.parametrize("target", [F.one_hot(INDEX, 3).double(), SOFT], ids=["one_hot", "soft"])
def test_all_parts_equal_a_plain_loop(target):
    weight = [0.5, 1.0, 2.0]
    loss = BalancedTrustedLoss(3, class_weight=weight, trust_factor=0.05, trust_strength=0.7, trust_warmup=0.0)
    close(loss(LOGITS, target), plain_loop(LOGITS, target, weight, 0.05, 0.7))


@pytest.mark.parametrize("target", [INDEX, SOFT], ids=["index", "soft"])
def test_gradient_is_the_numerical_one_without_trust(target):
    loss = BalancedTrustedLoss(3, class_weight=[0.5, 1.0, 2.0], trust_factor=0.1, **PLAIN)
    assert torch.autograd.gradcheck(lambda z: loss(z, target[:6]), LOGITS[:6].clone().requires_grad_())


@pytest.mark.parametrize("soft", [False, True])
def test_gradient_is_the_analytic_one_with_trust(soft):
    weight, epsilon = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64), 0.1
    loss = BalancedTrustedLoss(3, class_weight=weight.tolist(), trust_factor=epsilon, trust_warmup=0.0)
    y = SOFT if soft else F.one_hot(INDEX, 3).double()
    size = (y * weight).sum(dim=1, keepdim=True)
    pull = size * LOGITS.softmax(dim=1) - (1 - epsilon) * y * weight - epsilon * size / 3
    expected = loss.trust(LOGITS, y).unsqueeze(1) * pull / size.sum()
    close(gradient(loss, LOGITS, SOFT if soft else INDEX), expected)


def test_one_hot_rows_equal_indices():
    kwargs = {"class_weight": "inv_freq", "trust_factor": 0.1, "trust_warmup": 0.0, "trust_prior_tau": 1.0}
    loss = BalancedTrustedLoss(3, COUNTS, **kwargs)
    one_hot = F.one_hot(INDEX, 3).double()
    close(loss(LOGITS, one_hot), loss(LOGITS, INDEX))
    close(loss.trust(LOGITS, one_hot), loss.trust(LOGITS, INDEX))
    close(gradient(loss, LOGITS, one_hot), gradient(loss, LOGITS, INDEX))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_every_integer_type_is_an_index(dtype):
    close(BalancedTrustedLoss(3)(LOGITS, INDEX.to(dtype)), BalancedTrustedLoss(3)(LOGITS, INDEX))


# --- what the trust says ------------------------------------------------------------------------------------------------------
def test_trust_lies_in_0_1_and_is_1_on_agreement_and_ties():
    loss = BalancedTrustedLoss(3, trust_warmup=0.0)
    for target in (INDEX, SOFT):
        trust = loss.trust(LOGITS, target)
        assert ((trust > 0) & (trust <= 1)).all()
    assert (loss.trust(LOGITS, LOGITS.argmax(dim=1)) == 1).all()
    assert (loss.trust(torch.zeros(4, 3), torch.tensor([0, 1, 2, 2])) == 1).all()
    over = torch.full((1, 3), 1.005 / 3)
    assert loss.trust(torch.zeros(1, 3), over).item() <= 1  # a row that rounding made a little more than 1


def test_trust_is_the_ratio_of_probabilities():
    p = LOGITS.softmax(dim=1).numpy()
    expected = (p[range(32), INDEX] / p.max(axis=1)) ** 1.7
    loss = BalancedTrustedLoss(3, trust_strength=1.7, trust_warmup=0.1)
    loss.set_progress(1.0)
    close(loss.trust(LOGITS, INDEX), expected, 1e-6)


def test_mixed_prediction_that_is_right_is_trusted_more_than_either_label_alone():
    loss = BalancedTrustedLoss(3, trust_warmup=0.0)
    logits = torch.tensor([[0.6, 0.4, 1e-6]]).log()
    mixed = loss.trust(logits, torch.tensor([[0.6, 0.4, 0.0]]))
    assert mixed > loss.trust(logits, torch.tensor([1]))


@pytest.mark.parametrize(("share", "trust"), [(0.5, 1.0), (0.6, 0.86667), (0.70711, 0.82843), (0.9, 0.91111), (1.0, 1.0)])
def test_right_prediction_of_a_mixture_is_trusted_by_four_fifths_or_more(share, trust):
    """At strength 1 and two classes: (a^2 + (1-a)^2) / a, least at a = 1 / sqrt(2)."""
    mixture = torch.tensor([[share, 1.0 - share]], dtype=torch.float64)
    close(BalancedTrustedLoss(2, trust_warmup=0.0).trust(mixture.log(), mixture), [trust], 1e-4)


def test_the_pull_of_a_mistake_falls_with_how_sure_the_network_is():
    """Two classes, strength 1: e^-d sigmoid(d) for the logit gap d (numbers by hand; cross-entropy: .50 .73 .88 .98 1.0)."""
    gap = torch.tensor([0.0, 1.0, 2.0, 4.0, 8.0], dtype=torch.float64)
    loss = BalancedTrustedLoss(2, trust_warmup=0.0, reduction="none")
    pull = gradient(lambda z, y: loss(z, y).sum(), torch.stack([gap, -0.0 * gap], dim=1), torch.ones(5, dtype=torch.long))
    close(pull[:, 0], [0.5, 0.26894, 0.1192, 0.01799, 0.000335], 1e-5)
    trust = loss.trust(torch.stack([gap, 0 * gap], dim=1), torch.ones(5, dtype=torch.long))
    assert (pull.abs() <= trust.unsqueeze(1)).all()


@pytest.mark.parametrize(("strength", "tau"), [(0.0, 0.0), (0.3, 0.0), (0.5, 0.0), (0.5, 1.0)])
def test_optimum_over_wrong_labels_is_sharpened_and_keeps_its_order(strength, tau):
    """Where labels are drawn from h, the mean gradient is 0 at p ~ (h / prior^(tau q))^(1 / (1 - q))."""
    drawn, counts = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), torch.tensor([5.0, 3.0, 4.0], dtype=torch.float64)
    prior = counts / counts.sum()
    best = (drawn / prior ** (tau * strength)) ** (1 / (1 - strength))
    loss = BalancedTrustedLoss(
        3, counts.tolist(), trust_strength=strength, trust_warmup=0.0, trust_prior_tau=tau, reduction="none"
    )
    logits = best.log().repeat(3, 1)
    pull = gradient(lambda z, y: torch.dot(loss(z, y), drawn), logits, torch.arange(3)).sum(dim=0)
    close(pull, torch.zeros(3), 1e-7)


def test_warmup_grows_the_strength_linearly():
    logits, target = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([1])
    loss = BalancedTrustedLoss(3, trust_strength=1.0, trust_warmup=0.2)
    for progress, strength in [(0.0, 0.0), (0.05, 0.25), (0.1, 0.5), (0.2, 1.0), (1.0, 1.0)]:
        loss.set_progress(progress)
        close(loss.trust(logits, target), [math.exp(-2 * strength)], 1e-6)
    at_once = BalancedTrustedLoss(3, trust_strength=1.0, trust_warmup=0.0)
    close(at_once.trust(logits, target), [math.exp(-2)], 1e-6)


def test_progress_survives_the_state():
    loss = BalancedTrustedLoss(3, COUNTS, class_weight="inv_freq")
    loss.set_progress(0.125)
    other = BalancedTrustedLoss(3, (1, 1, 1), class_weight="inv_freq")
    other.load_state_dict(loss.state_dict())
    assert other.progress.item() == 0.125
    close(other(LOGITS, INDEX), loss(LOGITS, INDEX))


# --- rows, types and devices --------------------------------------------------------------------------------------------------
def test_ignored_rows_count_nothing():
    loss = BalancedTrustedLoss(3, trust_factor=0.1, class_weight=[0.5, 1.0, 2.0], trust_warmup=0.0)
    target = INDEX.clone()
    target[::4] = -100
    kept = target != -100
    close(loss(LOGITS, target), loss(LOGITS[kept], INDEX[kept]))
    grad = gradient(loss, LOGITS, target)
    assert (grad[~kept] == 0).all()
    assert (grad[kept] != 0).any()
    assert (loss.trust(LOGITS, target)[~kept] == 1).all()


@pytest.mark.parametrize("factor", [0.0, 0.1])
def test_batch_of_ignored_rows_alone_is_zero_with_a_graph(factor):
    loss = BalancedTrustedLoss(3, trust_factor=factor)
    target = torch.full((32,), -100)
    assert loss(LOGITS, target).item() == 0
    assert (gradient(loss, LOGITS, target) == 0).all()


@pytest.mark.parametrize("target", [INDEX, SOFT], ids=["index", "soft"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_computed_in_float32(dtype, target):
    loss = BalancedTrustedLoss(3, COUNTS, logit_adjust_tau=1.0, trust_factor=0.1, trust_warmup=0.0)
    got = loss(LOGITS.to(dtype), target)
    assert got.dtype == torch.float32
    assert got == loss(LOGITS.to(dtype).float(), target)


def test_autocast_does_not_change_the_loss():
    loss = BalancedTrustedLoss(3, class_weight=[0.5, 1.0, 2.0], trust_warmup=0.0)
    logits = LOGITS.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = loss(logits, INDEX)
    assert got == loss(logits, INDEX)


def test_a_loss_cast_to_half_precision_still_counts_in_float32():
    kwargs = {"class_weight": "inv_freq", "trust_factor": 0.1, "trust_prior_tau": 1.0, "trust_warmup": 0.0}
    full, half = BalancedTrustedLoss(3, COUNTS, **kwargs), BalancedTrustedLoss(3, COUNTS, **kwargs).bfloat16()
    for target in (INDEX, SOFT):
        got = half(LOGITS.float(), target)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, full(LOGITS.float(), target), rtol=0.02, atol=0)


def test_an_empty_batch_is_zero():
    assert BalancedTrustedLoss(3)(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)).item() == 0


def test_float64_stays_float64_and_nan_passes_through():
    loss = BalancedTrustedLoss(3)
    assert loss(LOGITS, INDEX).dtype == torch.float64
    assert loss(LOGITS.float(), INDEX).dtype == torch.float32
    assert loss(LOGITS * math.nan, INDEX).isnan()


@pytest.mark.parametrize("target", [INDEX, SOFT], ids=["index", "soft"])
def test_constants_and_batch_order_do_not_matter(target):
    loss = BalancedTrustedLoss(3, COUNTS, class_weight="effective_num", trust_factor=0.1, trust_warmup=0.0, trust_prior_tau=1.0)
    order = torch.randperm(32, generator=torch.Generator().manual_seed(3))
    close(loss(LOGITS + 7.0, target), loss(LOGITS, target))
    close(loss(LOGITS[order], target[order]), loss(LOGITS, target))


# --- errors -------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("kwargs", "key"),
    [
        ({"num_classes": 1}, "num_classes"),
        ({"class_counts": [1, 2]}, "class_counts"),
        ({"class_counts": [1, 2, -3]}, "class_counts"),
        ({"class_counts": [1, 2, math.inf]}, "class_counts"),
        ({"class_counts": [0, 0, 0]}, "class_counts"),
        ({"class_weight": "inverse"}, "class_weight"),
        ({"class_weight": "inv_freq", "class_counts": None}, "class_counts"),
        ({"class_weight": [1.0, 2.0]}, "class_weight"),
        ({"class_weight": [1.0, 2.0, -1.0]}, "class_weight"),
        ({"class_weight": [1.0, 2.0, math.nan]}, "class_weight"),
        ({"class_weight": [0.0, 0.0, 0.0]}, "class_weight"),
        ({"beta": 0.0}, "beta"),
        ({"beta": 1.0}, "beta"),
        ({"power": -1.0}, "power"),
        ({"max_weight": 0.0}, "max_weight"),
        ({"logit_adjust_tau": math.inf}, "logit_adjust_tau"),
        ({"logit_adjust_tau": 1.0, "class_counts": None}, "logit_adjust_tau"),
        ({"trust_prior_tau": math.nan}, "trust_prior_tau"),
        ({"trust_prior_tau": 1.0, "class_counts": None}, "trust_prior_tau"),
        ({"trust_factor": 1.0}, "trust_factor"),
        ({"trust_factor": -0.1}, "trust_factor"),
        ({"trust_factor": "much"}, "trust_factor"),
        ({"trust_factor": 0.1, "balance_factor": 1}, "balance_factor"),
        ({"balance_base": 1.0, "balance_factor": 1}, "balance_base"),
        ({"balance_factor": 0.0}, "balance_factor"),
        ({"trust_strength": -1.0}, "trust_strength"),
        ({"trust_strength": math.inf}, "trust_strength"),
        ({"trust_warmup": 1.0}, "trust_warmup"),
        ({"trust_warmup": -0.1}, "trust_warmup"),
        ({"reduction": "median"}, "reduction"),
    ],
)
def test_wrong_arguments_name_their_key(kwargs, key):
    with pytest.raises(ConfigError, match=rf"loss\.{key}") as error:
        BalancedTrustedLoss(**{"num_classes": 3, "class_counts": COUNTS, **kwargs})
    assert isinstance(error.value, ValueError)


@pytest.mark.parametrize(
    ("logits", "target", "message"),
    [
        (torch.zeros(4, 2), torch.zeros(4, dtype=torch.long), "must be floating"),
        (torch.zeros(4, 3, dtype=torch.long), torch.zeros(4, dtype=torch.long), "must be floating"),
        (torch.zeros(3), torch.zeros(3, dtype=torch.long), "must be floating"),
        (torch.zeros(4, 3), torch.zeros(5, dtype=torch.long), r"must be \[4\] int"),
        (torch.zeros(4, 3), torch.zeros(4, dtype=torch.bool), r"must be \[4\] int"),
        (torch.zeros(4, 3), torch.zeros(4, 3, dtype=torch.long), r"must be \[4\] int"),
        (torch.zeros(4, 3), torch.zeros(4), "soft target is"),
        (torch.zeros(4, 3), torch.tensor([0, 1, 2, 3]), "class index 3"),
        (torch.zeros(4, 3), torch.tensor([0, 1, -1, -100]), "class index -1"),
        (torch.zeros(1, 3), torch.tensor([[0.5, 0.5, math.nan]]), "sum to 1"),
        (torch.zeros(1, 3), torch.tensor([[1.5, -0.5, 0.0]]), "0 or more"),
        (torch.zeros(1, 3), torch.tensor([[1.0, 1.0, 0.0]]), "BCEWithLogitsLoss"),
    ],
)
def test_wrong_inputs_are_told(logits, target, message):
    with pytest.raises(ValueError, match=message):
        BalancedTrustedLoss(3)(logits, target)
    with pytest.raises(ValueError, match=message):
        BalancedTrustedLoss(3).trust(logits, target)


@pytest.mark.parametrize("progress", [-0.1, 1.1, math.nan])
def test_progress_outside_the_training_is_told(progress):
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        BalancedTrustedLoss(3).set_progress(progress)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"class_weight": "inv_freq", "logit_adjust_tau": 1.0}, "twice"),
        ({"trust_strength": 2.0, "trust_warmup": 0.0}, "trust_warmup=0.2"),
        ({"class_counts": (5, 0, 5)}, r"class \[1\]"),
    ],
)
def test_doubtful_arguments_warn_at_the_caller(kwargs, message):
    with pytest.warns(UserWarning, match=message) as caught:
        BalancedTrustedLoss(**{"num_classes": 3, "class_counts": COUNTS, **kwargs})
    assert caught[0].filename == __file__
