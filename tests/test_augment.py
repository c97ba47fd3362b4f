"""What all steps promise: drawn by (seed, rank, batch, name) alone, a share `p` of the rows, finite; how configs name them."""

from __future__ import annotations

import inspect
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from musicnet_eval import configs, records
from musicnet_eval.augment import Augment, Gain, Mixup, OnImage, Polarity, SpecAugment
from musicnet_eval.datamodule import MusicDataModule
from musicnet_eval.datasets import assign_splits, folder
from musicnet_eval.errors import ConfigError
from musicnet_eval.segments import generator
from musicnet_eval.spectrograms import LogMel
from tests.conftest import TINY, Command, only_run

CHOICES = sorted(path.stem for path in (configs.CONF / "augment").glob("*.yaml"))
SINGLE = [name for name in CHOICES if name not in ("none", "music_strong")]


def draw(name: str, batch: int = 0) -> np.random.Generator:
    return generator(0, batch, name)


def steps(*overrides: str) -> Any:
    """Build the steps that a command line names."""
    node = configs.resolved(configs.compose([*overrides]))["augment"]
    return {name: configs.build(step, f"augment.{name}") for name, step in node.items()}


def batch(rows: int = 6, samples: int = 11025) -> tuple[Tensor, Tensor, Tensor]:
    source = torch.Generator().manual_seed(3)
    audio = 0.1 * torch.randn(rows, samples, generator=source)
    image = torch.randn(rows, 2, 32, 40, generator=source)
    return audio, image, torch.arange(rows) % 3


def augmented(augment: Augment, number: int = 0, rows: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    audio, image, label = batch(rows)
    audio, label = augment("audio", audio, label, lambda name: draw(name, number))
    image, label = augment("image", image, label, lambda name: draw(name, number))
    return audio, image, label


def bits(x: Tensor) -> Tensor:
    return x.view(torch.int32)


# --- every choice -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_keeps_shapes_and_mixes_labels_only_where_it_says_so(choice: str) -> None:
    augment = Augment(steps(f"augment={choice}"), 3)
    audio, image, label = augmented(augment)
    assert (audio.shape, image.shape) == ((6, 11025), (6, 2, 32, 40))
    assert augment.mixes_labels == (choice in ("mixup", "cutmix", "mix_audio", "music_strong"))
    if augment.mixes_labels:
        assert label.shape == (6, 3)
        torch.testing.assert_close(label.sum(dim=1), torch.ones(6))
    else:
        assert torch.equal(label, batch()[2])


@pytest.mark.parametrize("choice", SINGLE)
@pytest.mark.slow
def test_p_is_the_share_of_rows_that_are_changed(choice: str) -> None:
    def changed(p: float, rows: int) -> Tensor:
        results = augmented(Augment(steps(f"augment={choice}", f"augment.{choice}.p={p}"), 3), rows=rows)
        differ = [(bits(a) != bits(b)).flatten(1).any(dim=1) for a, b in zip(results[:2], batch(rows)[:2], strict=True)]
        return differ[0] | differ[1]

    assert not changed(0, 6).any()  # bit for bit
    assert changed(1, 6).sum() >= 5  # a mask may happen to be 0 wide
    rows = 40 if choice in ("pitch_shift", "time_stretch") else 200
    assert abs(float(changed(0.3, rows).float().mean()) - 0.3) < 4 * (0.3 * 0.7 / rows) ** 0.5


@pytest.mark.parametrize("choice", SINGLE)
@pytest.mark.parametrize("samples", [50, 601, 4000])
def test_silence_clipping_and_short_audio_stay_finite(choice: str, samples: int) -> None:
    (step,) = steps(f"augment={choice}", f"augment.{choice}.p=1").values()
    time = torch.arange(samples)
    rows = torch.stack(
        [
            torch.zeros(samples),
            torch.ones(samples),  # a constant
            1.0 - 2.0 * (time // 7 % 2),  # clipped
            (time == samples // 2).float(),  # a click
            torch.full((samples,), 1e-30),
            torch.sin(time.float()),
        ]
    )
    x = rows if step.on == "audio" else rows.view(6, 1, 5, -1) if samples % 5 == 0 else rows.view(6, 1, 1, -1)
    takes = inspect.signature(step.forward).parameters
    for seed in range(3):
        given = {"label": torch.eye(6)} if "label" in takes else {}
        result = step(x, **given, generator=draw("x", seed))
        result = result[0] if given else result
        assert result.isfinite().all()
        assert result.abs().max() < 10
        if step.on == "audio" and not given:
            assert not result[0].any(), "silence stays silent"


@pytest.mark.parametrize("choice", [name for name in SINGLE if steps(f"augment={name}")[name].on == "audio"])
def test_stereo_is_treated_alike_on_both_sides(choice: str) -> None:
    audio, _, label = batch()
    augment = Augment(steps(f"augment={choice}", f"augment.{choice}.p=1"), 3)
    result, mixed = augment("audio", torch.stack([audio, audio], dim=1), label, draw)
    assert result.shape == (6, 2, 11025)
    if choice != "noise":  # each side has noise of its own
        mono, same = augment("audio", audio, label, draw)
        torch.testing.assert_close(result, torch.stack([mono, mono], dim=1), atol=1e-6, rtol=1e-5)
        assert torch.equal(mixed, same)


# --- what is drawn ------------------------------------------------------------------------------------------------------------


def test_the_same_place_draws_the_same_and_every_other_place_something_else(tones: Path, tmp_path: Path) -> None:
    def masks(seed: int = 0, rank: int = 0, number: int = 0, name: str = "specaugment") -> Tensor:
        options: dict[str, Any] = {"sample_rate": 8000, "segment_seconds": 0.5, "cache_dir": tmp_path, "seed": seed}
        tracks = assign_splits(folder(tones), "group_kfold", folds=3)
        data = MusicDataModule(tracks, LogMel(8000, 256, 128, 16), {name: SpecAugment(value=9)}, **options)
        loop = SimpleNamespace(total_batch_idx=number - 1)
        data.trainer = SimpleNamespace(training=True, global_rank=rank, fit_loop=loop)  # type: ignore[assignment]
        sounds = {"audio": torch.zeros(8, 4000, dtype=torch.int16), "label": torch.zeros(8, dtype=torch.int64)}
        return data.on_after_batch_transfer(sounds, 0)["image"] == 9  # type: ignore[no-any-return]

    places = [{}, {"seed": 1}, {"rank": 1}, {"number": 1}, {"name": "more_masks"}]
    drawn = [masks(**place) for place in places]  # type: ignore[arg-type]
    assert all(torch.equal(masks(**place), found) for place, found in zip(places, drawn, strict=True))  # type: ignore[arg-type]
    assert not any(torch.equal(a, b) for i, a in enumerate(drawn) for b in drawn[:i])


def test_neither_order_nor_company_changes_what_a_step_draws() -> None:
    given = steps("augment=music_strong")
    turned = dict(reversed(given.items()))
    for a, b in zip(augmented(Augment(given, 3)), augmented(Augment(turned, 3)), strict=True):
        assert torch.equal(a, b)
    alone = augmented(Augment({"gain": Gain(p=0.5)}, 3))[0]
    together = augmented(Augment({"polarity": Polarity(p=1), "gain": Gain(p=0.5)}, 3))[0]
    assert torch.equal(-alone, together)


class Probe(nn.Module):
    """Write down what is drawn, and where the label is mixed."""

    on = "image"

    def __init__(self, file: str) -> None:
        super().__init__()
        self.file = file

    def forward(self, image: Tensor, label: Tensor, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        with Path(self.file).open("a") as file:
            file.write(f"{generator.random()} {label.ndim}\n")
        return image, label


def test_each_training_batch_draws_once_also_while_gradients_are_accumulated(tones: Path, train: Command, tmp_path: Path) -> None:
    code = train(
        *("data=folder", f"data.root={tones}", "backbone=stats_linear", *TINY, "trainer.accumulate_grad_batches=2"),
        *("+augment.probe._target_=tests.test_augment.Probe", f"+augment.probe.file={tmp_path / 'drawn'}"),
    )
    assert code == 0
    lines = (tmp_path / "drawn").read_text().split("\n")[:-1]
    assert len(lines) == 2 * 2  # 6 training tracks in batches of 4, two epochs; no validation, no test
    assert len(set(lines)) == len(lines)


# --- strangers' modules -------------------------------------------------------------------------------------------------------


class Stranger(nn.Module):
    """A module that knows nothing of us and draws from all global generators."""

    def forward(self, audio: Tensor) -> Tensor:
        return audio + torch.rand(1) + float(np.random.rand()) + random.random()


def test_a_plain_module_is_a_step_and_draws_by_its_place_too() -> None:
    augment = Augment(Stranger(), 3)
    torch.manual_seed(1)
    first = augmented(augment)[0]
    after = torch.rand(1), np.random.rand(), random.random()
    torch.manual_seed(2)
    random.seed(2)
    np.random.seed(2)
    assert torch.equal(augmented(augment)[0], first)
    assert not torch.equal(augmented(augment, 1)[0], first)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), after[0]), "the global generator goes on as if nothing had been drawn"


def test_a_librarys_module_works_on_images() -> None:
    from torchvision.transforms import v2

    augment = Augment({"erase": OnImage(v2.RandomErasing(p=1.0, value=9))}, 3)
    image = augmented(augment)[1]
    assert (image == 9).any()
    assert torch.equal(augmented(augment)[1], image)


class Shorter(nn.Module):
    def forward(self, audio: Tensor) -> Tensor:
        return audio[:, 1:]


class Nowhere(nn.Module):
    on = "score"


def test_what_is_no_step_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"augment.augment turns a batch of shape \(6, 11025\) into \(6, 11024\); a step must"):
        augmented(Augment(Shorter(), 3))
    with pytest.raises(ConfigError, match=r"augment.odd is on 'score'; a step's `on` must be one of audio, image"):
        Augment({"odd": Nowhere()}, 3)
    with pytest.raises(ConfigError, match=r"augment.odd=3 is no module. Give it a _target_"):
        Augment({"odd": 3}, 3)  # type: ignore[dict-item]


# --- configs ------------------------------------------------------------------------------------------------------------------


def test_choices_compose_as_lists() -> None:
    augment = Augment(steps("augment=[mixup,specaugment,noise]", "augment.mixup.alpha=0.8"), 3)
    assert [[*stage] for stage in augment.stages.values()] == [["noise"], ["specaugment", "mixup"]]  # type: ignore[misc]
    assert augment.stages["image"]["mixup"].alpha == 0.8  # type: ignore[index]
    fewer = Augment(steps("augment=[music_strong,cutmix]", "augment.mixup=null", "augment.gain=null"), 3)
    assert [*fewer.stages["image"]] == ["filter_bank_jitter", "specaugment", "cutmix"]  # type: ignore[misc]
    assert not Augment(steps("augment=[]"), 3).mixes_labels


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ((), "none"),
        (("augment=mixup",), "mixup"),
        (("augment=[noise,mixup]",), "mixup+noise"),
        (("augment=[gain,none]",), "gain"),
    ],
)
@pytest.mark.slow
def test_a_run_says_which_augmentation_it_had(
    tones: Path, train: Command, tmp_path: Path, overrides: tuple[str, ...], named: str
) -> None:
    assert train("data=folder", f"data.root={tones}", "backbone=stats_linear", *TINY, *overrides) == 0
    assert records.read_result(only_run(tmp_path))["choices"]["augment"] == named


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("gain.p=1.5", "augment.gain.p=1.5 must be a number from 0 to 1."),
        ("gain.p=-0.1", "augment.gain.p=-0.1 must be a number from 0 to 1."),
        ("gain.p=often", "augment.gain.p='often' must be a number"),
        ("gain.db=[6,-6]", "augment.gain.db=[6, -6] must be [least, most], from -60 to 60 dB. Turn it round: [-6, 6]."),
        ("gain.db=6", "augment.gain.db=6 must be [least, most]"),
        ("gain.db=[1,2,3]", "augment.gain.db=[1, 2, 3] must be [least, most]"),
        ("polarity.p=2", "augment.polarity.p=2"),
        ("noise.snr_db=[40,10]", "Turn it round: [10, 40]."),
        ("noise.snr_db=[10,inf]", "augment.noise.snr_db=[10, inf] must be"),
        ("noise.slope_db=[-40,0]", "from -12 to 12 dB an octave"),
        ("shift.share=[0,1.1]", "augment.shift.share=[0, 1.1] must be [least, most], from -1 to 1."),
        ("band_filter.f_low=[0,100]", "augment.band_filter.f_low=[0, 100] must be [least, most], from 1 to 192000 Hz, or null."),
        ("band_filter.order=1.5", "augment.band_filter.order=1.5 must be a whole number from 1 to 16."),
        ("pitch_shift.semitones=[-24,24]", "from -12 to 12 semitones"),
        ("pitch_shift.n_fft=8", "augment.pitch_shift.n_fft=8 must be a whole number from 64"),
        ("time_stretch.rate=[0,1]", "augment.time_stretch.rate=[0, 1] must be [least, most], from 0.5 to 2."),
        ("mix_audio.within_class=2", "augment.mix_audio.within_class=2 must be true or false."),
        ("mix_audio.alpha=0", "augment.mix_audio.alpha=0 must be above 0"),
        ("specaugment.freq_share=1.2", "augment.specaugment.freq_share=1.2 must be a number from 0 to 1."),
        ("specaugment.time_masks=-1", "augment.specaugment.time_masks=-1 must be a whole number from 0 to 16."),
        ("specaugment.time_warp=0.6", "augment.specaugment.time_warp=0.6 must be a number from 0 to 0.5."),
        ("specaugment.value=median", "augment.specaugment.value='median' must be a number, or mean."),
        ("filter_bank_jitter.knots=1", "augment.filter_bank_jitter.knots=1 must be a whole number from 2"),
        ("random_resized_crop.scale=[0,1]", "augment.random_resized_crop.scale=[0, 1] must be [least, most], from 0.01 to 1."),
        ("mixup.alpha=0", "augment.mixup.alpha=0 must be above 0 (0.2 to 1 is usual), 1000 at most. To switch it off,"),
        ("mixup.alpha=-0.2", "augment.mixup.alpha=-0.2 must be above 0"),
        ("cutmix.alpha=zero", "augment.cutmix.alpha='zero' must be above 0"),
    ],
)
def test_wrong_values_are_named_with_what_is_right(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as told:
        steps(f"augment={override.partition('.')[0]}", f"augment.{override}")
    assert message in str(told.value)


def test_a_wrong_value_ends_a_command_with_one_sentence(tones: Path, train: Command, capsys: pytest.CaptureFixture[str]) -> None:
    given = ("data=folder", f"data.root={tones}", "backbone=stats_linear", *TINY)
    assert train(*given, "augment=mixup", "augment.mixup.alpha=0") == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: augment.mixup.alpha=0 must be above 0")
    command = [sys.executable, "-m", "musicnet_eval.train", *given, "augment=[noise,mixup]", "augment.nose.p=1"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 1  # Hydra's own error


def test_pictures_and_evaluation_see_nothing_of_it(tones: Path, tmp_path: Path) -> None:
    def made(augment: nn.Module | None) -> MusicDataModule:
        options: dict[str, Any] = {"sample_rate": 8000, "segment_seconds": 0.5, "cache_dir": tmp_path, "batch_size": 4}
        data = MusicDataModule(
            assign_splits(folder(tones), "group_kfold", folds=3), LogMel(8000, 256, 128, 16), augment, **options
        )
        data.setup()
        data.trainer = SimpleNamespace(training=False, global_rank=0, world_size=1)  # type: ignore[assignment]
        return data

    plain, changed = made(None), made(Mixup())
    loaders: tuple[Callable[[MusicDataModule], Any], ...] = (
        MusicDataModule.val_dataloader,
        MusicDataModule.test_dataloader,
    )
    for loader in loaders:
        for a, b in zip(loader(plain), loader(changed), strict=True):
            seen = [data.on_after_batch_transfer(x, 0) for data, x in ((plain, a), (changed, b))]
            assert all(torch.equal(seen[0][key], seen[1][key]) for key in seen[0])
    device = torch.device("cpu")
    for one, other in zip(plain.examples(device), changed.examples(device), strict=True):
        assert torch.equal(one[2], other[2])


def test_songs_of_several_labels_train_on_mixtures(tones: Path, train: Command, tmp_path: Path) -> None:
    rows = [
        f"{file.relative_to(tones)},{file.parent.name}|{'odd' if int(file.stem) % 2 else 'even'}" for file in tones.rglob("*.wav")
    ]
    (tmp_path / "songs.csv").write_text("\n".join(["path,label", *sorted(rows)]))
    given = ("data=csv", "data.manifest=songs.csv", f"data.root={tones}", "backbone=stats_linear", "loss=bce", *TINY)
    assert train(*given, "augment=[mixup,cutmix,mix_audio]") == 0
    record = records.read_result(only_run(tmp_path))
    assert record["facts"]["multilabel"] is True
    assert record["metrics"]["train/segment/log_loss"] < 2
