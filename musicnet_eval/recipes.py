"""Memory format and precision by a probe: what `recipe=auto` asks for. Layer 4; imports no torch before it is used.

`auto` stands in the config in place of `model.channels_last` or `trainer.precision`; what is said of either stays. The probe
trains the network on noise, in the batches, on the device and with the threads of the run, and lets all candidates take turns. It
sees neither data nor loss nor seed, and leaves every random generator as it was: the numbers of the run are those of one that was
given the choice by hand.

Times differ from probe to probe, and a choice decides rounding. So it is made once for a network, an image shape, a batch size, a
device, its threads and the versions of torch and timm, and kept beside the decoded cache: all seeds, folds, losses and repeats of
a sweep get the same. A run keeps its own copy with its checkpoints, so that it goes on as it began.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from filelock import FileLock

from musicnet_eval import environment, records
from musicnet_eval.configs import AUTO
from musicnet_eval.contracts import DataFacts
from musicnet_eval.errors import ConfigError, RecordError

if TYPE_CHECKING:
    import torch
    from torch import nn

Times = dict["Candidate", float]
Context = Callable[[], contextlib.AbstractContextManager[Any]]

CHOSEN = "recipe.json"  # beside the checkpoints, and gone with them
FORMATS = (True, False)  # of model.channels_last; the default first, as the simpler of two that are as fast
PRECISIONS = ("32-true", "bf16-mixed")  # 16-mixed would scale losses and leave out steps: more than rounding
TIE = 1.03  # up to which a simpler candidate that takes so many times as long is as good
SLOW = 3.0  # times the fastest, from which a candidate gets no further turn
BUDGET = 6.0  # seconds that the turns may take
ROUNDS = 2, 10  # at least, at most
FEW = 4  # images that a step on a CPU takes at least: of fewer, the work on weights hides that on images


class Candidate(NamedTuple):
    """A memory format and a precision."""

    channels_last: bool
    precision: str

    def __str__(self) -> str:
        return f"model.channels_last={str(self.channels_last).lower()} trainer.precision={self.precision}"


def candidates(config: Mapping[str, Any]) -> list[Candidate]:
    """List what a config leaves open, the simplest first; nothing where it leaves nothing open."""
    asked = config["model"]["channels_last"], config["trainer"].get("precision")
    if AUTO not in asked:
        return []
    formats = FORMATS if asked[0] == AUTO else (asked[0],)
    precisions = PRECISIONS if asked[1] == AUTO else (str(asked[1] or PRECISIONS[0]),)
    return [Candidate(channels_last, precision) for precision, channels_last in itertools.product(precisions, formats)]


def settle(config: dict[str, Any], facts: DataFacts, cache: Path, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Put the choice in place of every `auto`, and give with the config what to record of it: nothing where none was asked for.

    Args:
        config: The resolved config.
        facts: What images and classes are like.
        cache: Folder of the decoded cache, beside which the choice is kept for other runs.
        folder: The run's folder, which keeps it for this one.

    Raises:
        ConfigError: No candidate can train the network.
    """
    options = candidates(config)
    if not options:
        return config, {}
    place = folder / "checkpoints" / CHOSEN
    found = _read(place, options)
    if found is None:
        from lightning.pytorch.utilities.seed import isolate_rng

        with isolate_rng():
            found = _kept(config, facts, options, cache / "recipes")
        records.write_json(place, found)
    print(f"recipe: {_candidate(found)}{_gain(found, options[0])}", flush=True)
    return filled(config, found), found


def filled(config: dict[str, Any], found: Mapping[str, Any] | None) -> dict[str, Any]:
    """Put a recorded choice in place of every `auto` of a config.

    Raises:
        ConfigError: There is an `auto`, and no choice.
    """
    filling = dict(config)
    for key in ("model.channels_last", "trainer.precision"):
        node, name = key.split(".")
        if filling[node].get(name) == AUTO:
            if not found:
                raise ConfigError(f"{key}=auto is chosen when a run is trained, and this one had none. Say {key}=VALUE.")
            filling[node] = {**filling[node], name: found[key]}
    return filling


def _gain(found: Mapping[str, Any], simplest: Candidate) -> str:
    """Say what a choice gains over the simplest candidate."""
    chosen, before = (found["ratios"].get(str(option)) for option in (_candidate(found), simplest))
    if not chosen or not before or _candidate(found) == simplest:
        return ""
    return f", a step in {chosen / before:.2f} of the time of {simplest}"


# --- keeping ------------------------------------------------------------------------------------------------------------------


def _candidate(found: Mapping[str, Any]) -> Candidate:
    return Candidate(found["model.channels_last"], found["trainer.precision"])


def _read(place: Path, options: Sequence[Candidate]) -> dict[str, Any] | None:
    """Read a kept choice; a file that is damaged, or chooses what is no candidate, counts as none."""
    with contextlib.suppress(RecordError, KeyError):
        found = records.read_json(place)
        if _candidate(found) in options and isinstance(found["ratios"], dict):
            return found
    return None


def _kept(config: dict[str, Any], facts: DataFacts, options: Sequence[Candidate], shelf: Path) -> dict[str, Any]:
    """Take the choice that an earlier run has kept, or probe; another process that asks for the same waits for this one."""
    from musicnet_eval.trainers import make_trainer

    # Made here, as the run's own will be: it knows the device, and sets deterministic algorithms for the whole process.
    plain = make_trainer({**config["trainer"], "precision": PRECISIONS[0]})
    about = _about(config, facts, options, plain.strategy.root_device)
    key = hashlib.sha256(records.canonical(about).encode()).hexdigest()[:16]
    place, lock = shelf / f"{key}.json", FileLock(shelf / f"{key}.lock")
    try:
        shelf.mkdir(parents=True, exist_ok=True)
        held = lock.acquire()
    except OSError as error:
        raise ConfigError(
            f"recipe=auto cannot keep its choice in '{shelf}' ({error.strerror or error}), and other runs would choose anew. "
            "Make it writable, name another folder by data.cache_dir, or use recipe=default."
        ) from None
    with held:
        found = _read(place, options)
        if found is None:
            found = {**_probed(config, facts, options, plain.strategy.root_device), "for": about}
            records.write_json(place, found)
    return found


def _about(config: Mapping[str, Any], facts: DataFacts, options: Iterable[Candidate], device: torch.device) -> dict[str, Any]:
    """Say what a choice holds for."""
    import torch

    hardware, versions, on_cpu = environment.hardware(str(device)), environment.versions(), device.type == "cpu"
    return {
        "backbone": config["backbone"],
        "backbone_options": _without_weights(config),
        "classes": len(facts.classes),
        "image_shape": list(facts.image_shape),
        "batch_size": config["data"]["batch_size"],
        "candidates": [str(option) for option in options],
        "deterministic": str(config["trainer"].get("deterministic")),
        "device": device.type,
        "name": hardware["name"],
        **({"threads": hardware["threads"], "instructions": torch.backends.cpu.get_cpu_capability()} if on_cpu else {}),
        "versions": {name: versions[name] for name in ("torch", "timm")},
    }


def _without_weights(config: Mapping[str, Any]) -> dict[str, Any]:
    """Give the network's options but those that say where its weights come from, which may have to be fetched."""
    return {**config["backbone_options"], "pretrained": False, "checkpoint_path": None}


# --- probing ------------------------------------------------------------------------------------------------------------------


def _probed(config: dict[str, Any], facts: DataFacts, options: Sequence[Candidate], device: torch.device) -> dict[str, Any]:
    """Probe, and give what is kept: the choice, every ratio to the fastest, and what was left out, with the reason."""
    from musicnet_eval.backbones import build

    began = time.perf_counter()
    network = build(config["backbone"], _without_weights(config), len(facts.classes), facts.image_shape)
    contexts, unfit = _contexts(config["trainer"], [option.precision for option in options], device)
    left_out = {option: unfit[option.precision] for option in options if option.precision in unfit}
    steps = Steps(network, contexts, [option for option in options if option not in left_out], facts.image_shape, device)
    times = measure(steps, config["data"]["batch_size"])
    left_out |= steps.left_out
    choice, best = choose(times, options), min(times.values())
    return {
        "model.channels_last": choice.channels_last,
        "trainer.precision": choice.precision,
        "ratios": {str(option): round(seconds / best, 3) for option, seconds in times.items()},
        "left_out": {str(option): reason for option, reason in left_out.items()},
        "images": steps.images,
        "seconds": round(time.perf_counter() - began, 2),
    }


def _contexts(
    node: Mapping[str, Any], precisions: Iterable[str], device: torch.device
) -> tuple[dict[str, Context], dict[str, str]]:
    """Give for each precision Lightning's own context, as the training will have it, or the reason why it is no candidate."""
    from musicnet_eval.trainers import make_trainer

    contexts: dict[str, Context] = {}
    unfit: dict[str, str] = {}
    first, *others = dict.fromkeys(precisions)
    for precision in (first, *others):
        try:
            contexts[precision] = make_trainer({**node, "precision": precision}).precision_plugin.forward_context
        except ConfigError as error:
            if precision == first:
                raise
            unfit[precision] = str(error)
            continue
        # A processor may have it in name only, and a whole step would then take many seconds.
        if device.type == "cpu" and precision != first and (ratio := convolution_ratio(contexts[precision])) > SLOW:
            del contexts[precision]
            unfit[precision] = f"a convolution takes {ratio:.0f} times as long as in {first} on this processor"
    return contexts, unfit


def choose(times: Times, options: Iterable[Candidate]) -> Candidate:
    """Take the simplest candidate among those that are as fast as the fastest, but for a tie.

    Args:
        times: Seconds of each that was measured.
        options: All, the simplest first.
    """
    best = min(times.values())
    return next(option for option in options if times.get(option, float("inf")) <= TIE * best)


class Steps:
    """Training steps of one network, by candidate, on noise: forward, backward, and a step of SGD, which keeps nothing.

    Args:
        network: It is trained, and is not to be used afterwards.
        contexts: Of each precision, under which the network runs forward.
        options: The candidates.
        image_shape: `(K, F, N)`.
        device: Where the network is trained.
    """

    def __init__(
        self,
        network: nn.Module,
        contexts: Mapping[str, Context],
        options: Sequence[Candidate],
        image_shape: tuple[int, int, int],
        device: torch.device,
    ) -> None:
        import copy

        import torch

        self.contexts, self.options, self.image_shape, self.device = contexts, list(options), image_shape, device
        # One network a format: a tensor laid out channels last and back again is not quite as it was.
        formats = {True: torch.channels_last, False: torch.contiguous_format}
        self.networks = {
            channels_last: copy.deepcopy(network).to(device).to(memory_format=formats[channels_last]).train()
            for channels_last in {option.channels_last for option in options}
        }
        self.optimizers = {key: torch.optim.SGD(one.parameters(), lr=1e-4) for key, one in self.networks.items()}
        self.left_out: dict[Candidate, str] = {}
        self.images = 0
        # Other programs take no CPU time of ours; with several threads, it says nothing of how long they wait for each other.
        alone = device.type == "cpu" and torch.get_num_threads() == 1
        self.clock = time.process_time if alone else time.perf_counter

    def noise(self, images: int) -> None:
        """Set how many images a step takes."""
        import torch

        self.images, self.batch = images, torch.randn(images, *self.image_shape, device=self.device)

    def step(self, option: Candidate, *, check: bool = False) -> float:
        """Take a step, and give the seconds that it took; with `check`, only if the scores are numbers.

        Raises:
            ConfigError: The network's scores are no numbers.
        """
        network, optimizer = self.networks[option.channels_last], self.optimizers[option.channels_last]
        self._wait()
        began = self.clock()
        optimizer.zero_grad()
        with self.contexts[option.precision]():
            scores = network(self.batch)
        if check and not scores.isfinite().all():  # before they spoil the weights
            raise ConfigError(f"The network's scores are no numbers with {option}. Use recipe=default.")
        scores.float().logsumexp(1).mean().backward()
        optimizer.step()
        self._wait()
        return self.clock() - began

    def _wait(self) -> None:
        import torch

        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    def round(self, *, check: bool = False) -> Times:
        """Let every candidate take a step; what fails is left out from now on, unless nothing else is left."""
        times: Times = {}
        for option in list(self.options):
            try:
                times[option] = self.step(option, check=check)
            except Exception as error:  # whatever a network raises that has no kernel for a precision, or no memory
                if len(self.options) == 1:
                    raise
                self._leave_out(option, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
        return times

    def drop_slow(self, times: Times) -> None:
        """Leave out what takes many times as long as the fastest."""
        for option, seconds in times.items():
            if (ratio := seconds / min(times.values())) > SLOW:
                self._leave_out(option, f"a step takes {ratio:.0f} times as long as the fastest")

    def _leave_out(self, option: Candidate, reason: str) -> None:
        self.options.remove(option)
        self.left_out[option] = reason


def measure(steps: Steps, batch_size: int, budget: float = BUDGET) -> Times:
    """Time a step of every candidate, in turns: the shortest of several rounds, since noise only adds.

    An accelerator takes whole batches. A CPU, where the time goes by images, takes as many as the budget has room for.

    Args:
        steps: Of the candidates.
        batch_size: Images of a batch of the training.
        budget: Seconds that the turns may take, but for the least number of rounds.
    """
    least, most = ROUNDS
    cpu = steps.device.type == "cpu"
    steps.noise(2 if cpu else batch_size)
    steps.round(check=True)  # warms up, and sorts out what does not go
    rounds = [steps.round()]
    steps.drop_slow(rounds[0])
    if cpu:
        an_image = sum(rounds[0][option] for option in steps.options) / steps.images
        steps.noise(min(batch_size, max(FEW, int(budget / (least * an_image)))))
        rounds = []
    began = time.perf_counter()
    while len(rounds) < least or (len(rounds) < most and time.perf_counter() - began < budget):
        rounds.append(steps.round())
    return {option: min(times[option] for times in rounds) for option in steps.options}


def convolution_ratio(context: Context) -> float:
    """Give how many times as long a convolution takes on a CPU under a precision's context as in float32."""
    import torch

    layer, image = torch.nn.Conv2d(32, 32, 3, padding=1), torch.zeros(2, 32, 32, 32)
    seconds: dict[Context, list[float]] = {contextlib.nullcontext: [], context: []}
    with torch.no_grad():
        for around, spent in itertools.islice(itertools.cycle(seconds.items()), 10):
            began = time.perf_counter()
            with around():
                layer(image)
            spent.append(time.perf_counter() - began)
    return min(seconds[context]) / min(seconds[contextlib.nullcontext])
