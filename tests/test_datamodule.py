from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import nn

from musicnet_eval.contracts import Track
from musicnet_eval.datamodule import MusicDataModule
from musicnet_eval.datasets import assign_splits, folder
from musicnet_eval.errors import ConfigError
from musicnet_eval.spectrograms import LogMel


def make(root: Path, cache: Path, **options: Any) -> MusicDataModule:
    defaults: dict[str, Any] = {"sample_rate": 8000, "segment_seconds": 0.5, "batch_size": 4, "cache_dir": cache}
    tracks = assign_splits(folder(root), "group_kfold", folds=3)
    data = MusicDataModule(tracks, LogMel(8000, 256, 128, 16), **{**defaults, **options})
    data.setup()
    return data


def test_facts(tones: Path, tmp_path: Path) -> None:
    facts = make(tones, tmp_path).facts
    assert facts.classes == ("high", "low", "middle")
    assert facts.class_counts == (2, 2, 2)
    assert facts.image_shape == (1, 16, 1 + 4000 // 128)
    assert (facts.sample_rate, facts.multilabel) == (8000, False)


def test_batches_hold_the_audio_of_their_songs(tones: Path, tmp_path: Path) -> None:
    data = make(tones, tmp_path)
    seen: Counter[int] = Counter()
    for loader in (data.val_dataloader(), data.test_dataloader()):
        for batch in loader:
            assert batch["audio"].dtype == torch.int16
            for audio, label, song, start in zip(*(batch[key] for key in ("audio", "label", "song", "start")), strict=True):
                track = data.tracks[int(song)]
                assert data.classes[int(label)] == track.labels[0]
                source = soundfile.read(track.path, dtype="int16")[0][int(start) : int(start) + 4000]
                np.testing.assert_array_equal(audio.numpy(), source)
                seen[int(song)] += 1
    assert set(seen.values()) == {3}  # 1.2 s in windows of 0.5 s: two and one that reaches the end
    assert len(seen) == 12


def test_transfer_makes_float_audio_and_images(tones: Path, tmp_path: Path) -> None:
    data = make(tones, tmp_path)
    raw = next(iter(data.val_dataloader()))
    batch = data.on_after_batch_transfer(raw, 0)
    assert batch["audio"].dtype == batch["image"].dtype == torch.float32
    torch.testing.assert_close(batch["audio"], raw["audio"].float() / 32768)
    torch.testing.assert_close(batch["image"], data.spectrogram(batch["audio"]))


class _Silence(nn.Module):
    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(audio)


class _Trainer:
    """What the data module reads of a trainer."""

    global_rank, world_size, accumulate_grad_batches, global_step, limit_train_batches = 0, 1, 1, 0, 1.0
    fit_loop = SimpleNamespace(total_batch_idx=-1, batch_idx=-1, restarting=False)

    def __init__(self, *, training: bool) -> None:
        self.training = training


@pytest.mark.parametrize("training", [True, False])
def test_augmentation_touches_training_only(tones: Path, tmp_path: Path, training: bool) -> None:
    data = make(tones, tmp_path, augment=_Silence())
    data.trainer = _Trainer(training=training)  # type: ignore[assignment]
    batch = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)
    assert bool((batch["audio"] == 0).all()) is training


def test_epochs_follow_the_steps_taken(tones: Path, tmp_path: Path) -> None:
    data = make(tones, tmp_path)
    trainer = data.trainer = _Trainer(training=True)  # type: ignore[assignment]

    def songs() -> list[int]:
        return [song for batch in data.train_dataloader() for song in batch["song"].tolist()]

    first = songs()
    assert sorted(first) == sorted(i for i, track in enumerate(data.tracks) if track.split == "train")
    trainer.global_step = 2  # 6 tracks in batches of 4: two steps an epoch
    second = songs()
    assert second != first
    trainer.global_step = 0
    assert songs() == first
    trainer.accumulate_grad_batches, trainer.global_step = 2, 1  # one optimizer step an epoch
    assert songs() == second


@pytest.mark.parametrize(("workers", "start"), [(1, "fork"), (2, "fork"), (2, "spawn")])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.slow
def test_workers_read_the_same(tones: Path, tmp_path: Path, workers: int, start: str, channels: int) -> None:
    """Also in the second epoch, as of a run that goes on."""
    alone, helped = (make(tones, tmp_path, num_workers=n, channels=channels) for n in (0, workers))
    alone.trainer = helped.trainer = _Trainer(training=True)  # type: ignore[assignment]
    loaders = alone.train_dataloader(), helped.train_dataloader()
    loaders[1].multiprocessing_context = start
    for step in (0, 2):
        alone.trainer.global_step = step  # type: ignore[misc]
        for a, b in zip(*loaders, strict=True):
            assert all(torch.equal(a[key], b[key]) for key in a)


def stereo(folder: Path, tones: Path) -> Path:
    """Write each tone on the left and its negative at half level on the right."""
    for file in tones.rglob("*.wav"):
        sound, rate = soundfile.read(file)
        target = folder / file.relative_to(tones)
        target.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(target, np.stack([sound, -0.5 * sound], axis=1), rate)
    return folder


def test_stereo_keeps_both_sides_to_the_image(tones: Path, tmp_path: Path) -> None:
    data = make(stereo(tmp_path / "stereo", tones), tmp_path, channels=2)
    raw = next(iter(data.val_dataloader()))
    assert raw["audio"].shape == (8, 2, 4000)
    for sound, song, start in zip(raw["audio"], raw["song"].tolist(), raw["start"].tolist(), strict=True):
        source = soundfile.read(data.tracks[song].path, dtype="int16")[0][start : start + 4000]
        np.testing.assert_array_equal(sound.T.numpy(), source)
    batch = data.on_after_batch_transfer(raw, 0)
    assert batch["image"].shape[1:] == data.facts.image_shape == (2, 16, 1 + 4000 // 128)
    for side in (0, 1):
        torch.testing.assert_close(batch["image"][:, side : side + 1], data.spectrogram(batch["audio"][:, side]))
    assert data.middles([0, 1], torch.device("cpu")).shape == (2, 2, 16, 1 + 4000 // 128)


def test_mono_files_have_two_equal_sides(tones: Path, tmp_path: Path) -> None:
    one, two = (next(iter(make(tones, tmp_path, channels=channels).val_dataloader()))["audio"] for channels in (1, 2))
    torch.testing.assert_close(two, one[:, None].expand(-1, 2, -1))


def test_stereo_refuses_augmentation_of_audio(tones: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.channels=2 does not go with augmentation of audio"):
        make(tones, tmp_path, channels=2, augment=_Silence())


def test_examples_are_one_a_class(tones: Path, tmp_path: Path) -> None:
    examples = make(tones, tmp_path).examples(torch.device("cpu"))
    assert [name for name, _, _ in examples] == ["high", "low", "middle"]
    peaks = {name: int(image[0].mean(dim=1).argmax()) for name, _, image in examples}
    assert peaks["low"] < peaks["middle"] < peaks["high"]


def test_bad_files_are_left_out_and_recorded(tones: Path, tmp_path: Path) -> None:
    tracks = assign_splits(folder(tones), "group_kfold", folds=3)
    (tmp_path / "bad.wav").write_text("no")
    tracks.append(Track("bad.wav", tmp_path / "bad.wav", ("low",), "bad", "train"))
    options: dict[str, Any] = {"sample_rate": 8000, "segment_seconds": 0.5, "cache_dir": tmp_path / "c"}
    data = MusicDataModule(tracks, LogMel(8000, 256, 128, 16), on_bad_file="skip", **options)
    data.setup()
    assert data.bad_tracks == {"bad.wav": "cannot be decoded (Format not recognised), nor does FFmpeg find audio in it"}
    assert data.count_tracks() == {"train": 6, "val": 6, "test": 6}
    assert data.facts.class_counts == (2, 2, 2)


def test_several_labels_become_rows_of_ones(tones: Path, tmp_path: Path) -> None:
    tracks = assign_splits(folder(tones), "group_kfold", folds=3)
    first = next(i for i, track in enumerate(tracks) if track.split == "train" and track.labels == ("high",))
    tracks[first] = dataclasses.replace(tracks[first], labels=("middle", "high"))
    data = MusicDataModule(tracks, LogMel(8000, 256, 128, 16), sample_rate=8000, segment_seconds=0.5, cache_dir=tmp_path)
    data.setup()
    assert data.facts.multilabel
    assert data.facts.class_counts == (2, 2, 3)
    for batch in data.train_dataloader():
        for label, song in zip(batch["label"], batch["song"].tolist(), strict=True):
            assert label.dtype == torch.float32
            assert {data.classes[i] for i in label.nonzero().flatten().tolist()} == set(tracks[song].labels)


@pytest.mark.parametrize(
    ("key", "value"), [("sample_rate", 10), ("segment_seconds", -1), ("batch_size", 1), ("num_workers", -1), ("hop_seconds", 0.0)]
)
def test_refusals(tones: Path, tmp_path: Path, key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"data.{key}={value}"):
        make(tones, tmp_path, **{key: value})


def test_a_front_end_of_another_shape_is_refused(tones: Path, tmp_path: Path) -> None:
    data = MusicDataModule(
        assign_splits(folder(tones), "group_kfold", folds=3),
        nn.Identity(),
        sample_rate=8000,
        segment_seconds=0.5,
        cache_dir=tmp_path,
    )
    with pytest.raises(ConfigError, match=r"it must give \[B, K, F, N\]"):
        data.setup()
