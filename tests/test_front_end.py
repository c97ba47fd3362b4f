from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import Normalize
from PIL import Image
from scipy.stats import spearmanr
from sklearn.preprocessing import StandardScaler
from torchvision.transforms.v2.functional import normalize

from musicnet_eval import evaluate, load_run, records
from musicnet_eval.callbacks import draw
from musicnet_eval.datamodule import MusicDataModule
from musicnet_eval.datasets import assign_splits, folder
from musicnet_eval.errors import ConfigError
from musicnet_eval.normalization import statistics_of
from musicnet_eval.spectrograms import FrontEnd, LogMel, MultiResolution, Stack, Stft, make_images
from tests.conftest import TINY, Command, only_run

RATE = 8000


def log_mel() -> LogMel:
    return LogMel(RATE, 256, 128, 16)


def audio(batch: int = 2) -> torch.Tensor:
    loudness = torch.linspace(0.01, 1, RATE)  # so that images are no plain noise
    return loudness * 0.3 * torch.randn(batch, RATE, generator=torch.Generator().manual_seed(0))


def learnt(front: FrontEnd) -> FrontEnd:
    if front.must_learn:
        front.learn(statistics_of([front.spectrogram(audio(4))]))
    return front


# --- each step against another library ----------------------------------------------------------------------------------------


def test_none_changes_nothing() -> None:
    torch.testing.assert_close(FrontEnd(log_mel())(audio()), log_mel()(audio()), rtol=0, atol=0)


def test_per_example_equals_numpy() -> None:
    raw = MultiResolution([256, 512], sample_rate=RATE, hop_length=128, n_mels=16)
    image = raw(audio()).double().numpy()
    want = (image - image.mean(axis=(2, 3), keepdims=True)) / image.std(axis=(2, 3), keepdims=True)
    np.testing.assert_allclose(FrontEnd(raw, "per_example")(audio()), want, atol=1e-4)


def test_per_band_equals_scikit_learn() -> None:
    raw, wave = MultiResolution([256, 512], sample_rate=RATE, hop_length=128, n_mels=16), audio(5)
    front = FrontEnd(raw, "per_band")
    front.learn(statistics_of(raw(part) for part in wave.split(2)))  # streamed: the last batch is a small one
    image = raw(wave).double().numpy()  # [B, K, F, N]
    rows = image.transpose(0, 3, 1, 2).reshape(-1, 2 * 16)
    want = StandardScaler().fit(rows).transform(rows).reshape(5, -1, 2, 16).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(front(wave), want, atol=1e-4)


def test_a_band_that_never_changes_is_only_centred() -> None:
    image = torch.randn(3, 1, 4, 5, generator=torch.Generator().manual_seed(0))
    image[:, :, 1] = -1 + 1e-7 * image[:, :, 1]
    found = statistics_of([image])
    assert found["sd"][0][1] == 1
    assert found["mean"][0][1] == pytest.approx(-1)


def test_imagenet_equals_torchvision() -> None:
    raw = MultiResolution([256, 512, 1024], sample_rate=RATE, hop_length=128, n_mels=16)
    image = raw(audio())
    low, high = (f(image, dim=(2, 3), keepdim=True) for f in (torch.amin, torch.amax))
    want = normalize((image - low) / (high - low), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    torch.testing.assert_close(FrontEnd(raw, "imagenet")(audio()), want)


def test_imagenet_takes_one_channel_as_grey() -> None:
    image = FrontEnd(log_mel(), "imagenet")(audio())
    assert image.amin().item() == pytest.approx(-0.449 / 0.226, rel=1e-3)
    assert image.amax().item() == pytest.approx((1 - 0.449) / 0.226, rel=1e-3)


@pytest.mark.parametrize("size", [[8, 20], [40, 100], [16, 63], [1, 1]])
def test_size_equals_pillow(size: list[int]) -> None:
    image = log_mel()(audio(1))[0, 0].numpy()
    want = np.asarray(Image.fromarray(image, mode=None).resize((size[1], size[0]), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(FrontEnd(log_mel(), size=size)(audio(1))[0, 0], want, atol=1e-5)


@pytest.mark.parametrize("name", ["viridis", "magma", "gray_r"])
def test_colormap_equals_matplotlib(name: str) -> None:
    got = FrontEnd(log_mel(), colormap=name)(audio())
    for image, coloured in zip(log_mel()(audio()).numpy(), got.numpy(), strict=True):
        want = matplotlib.colormaps[name](Normalize()(image[0]))[..., :3]
        step = np.abs(np.diff(matplotlib.colormaps[name](np.arange(256))[:, :3], axis=0)).max()
        np.testing.assert_allclose(coloured.transpose(1, 2, 0), want, atol=1.01 * step)  # one entry of the table, by rounding


def test_a_coloured_picture_for_imagenet() -> None:
    """The route of a picture: resize, colour, then ImageNet's constants for red, green and blue."""
    plain = FrontEnd(log_mel(), size=[24, 24], colormap="viridis")(audio())
    got = FrontEnd(log_mel(), "imagenet", [24, 24], "viridis")(audio())
    torch.testing.assert_close(got, normalize(plain, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))


# --- what all of them keep ----------------------------------------------------------------------------------------------------

FINISHES: list[dict[str, Any]] = [
    {"normalize": "per_example"},
    {"normalize": "per_band"},
    {"normalize": "imagenet"},
    {"normalize": "per_band", "size": [20, 30]},
    {"normalize": "none", "size": [20, 30], "colormap": "magma"},
    {"normalize": "imagenet", "size": [20, 30], "colormap": "viridis"},
]
every = pytest.mark.parametrize("finish", FINISHES, ids=lambda finish: "-".join(map(str, finish.values())))


@every
def test_batch_equals_singles(finish: dict[str, Any]) -> None:
    front, wave = learnt(FrontEnd(log_mel(), **finish)), audio(4)
    torch.testing.assert_close(front(wave), torch.cat([front(row[None]) for row in wave]))


@pytest.mark.parametrize(("device", "parts"), [("cpu", [1] * 6), ("meta", [6])])
def test_a_batch_stays_whole_but_on_a_cpu(device: str, parts: list[int]) -> None:
    """Of a device that is no CPU, there is one everywhere: that which holds no numbers."""
    front: torch.nn.Module = torch.nn.Unflatten(1, (1, 20, RATE // 20))
    seen: list[int] = []
    front.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
    image = make_images(front, torch.zeros(3, 2, RATE, device=device))
    assert seen == parts
    assert image.shape[:2] == (3, 2)


@every
def test_full_precision_inside_autocast(finish: dict[str, Any]) -> None:
    front, wave = learnt(FrontEnd(Stft(256, 128), **finish)), audio(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = front(wave.half().float())
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, front(wave.half().float()), rtol=0, atol=0)


def test_autocast_does_not_reach_a_spectrogram_of_someone_elses() -> None:
    class Own(torch.nn.Module):
        def forward(self, wave: torch.Tensor) -> torch.Tensor:
            return (wave[:, :64].view(-1, 1, 8, 8) @ torch.ones(8, 8)) / 3

    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = FrontEnd(Own())(audio())
    torch.testing.assert_close(inside, Own()(audio()), rtol=0, atol=0)


@every
def test_export(finish: dict[str, Any]) -> None:
    front = learnt(FrontEnd(log_mel(), **finish))
    shapes = ({0: torch.export.Dim("B", min=2, max=64)},)
    exported = torch.export.export(front, (audio(2),), dynamic_shapes=shapes).module()
    torch.testing.assert_close(exported(audio(3)), front(audio(3)))


@every
@settings(deadline=None, max_examples=15)
@given(samples=st.sampled_from([1, 2, 128, 4000]), kind=st.sampled_from(["silence", "constant", "impulse", "square"]))
def test_finite_whatever_comes(finish: dict[str, Any], samples: int, kind: str) -> None:
    wave = {
        "silence": torch.zeros(samples),
        "constant": torch.full((samples,), 1e3),
        "impulse": torch.nn.functional.one_hot(torch.tensor(samples // 2), samples).float(),
        "square": (torch.arange(samples) % 2) * 2.0 - 1,
    }[kind]
    assert learnt(FrontEnd(log_mel(), **finish))(wave[None]).isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normalize": "per_song"}, "normalize='per_song' must be one of none, per_example, per_band, imagenet"),
        ({"size": 224}, "size=224 must be two whole numbers"),
        ({"size": [224]}, r"size=\[224\] must be two"),
        ({"size": [0, 224]}, r"size=\[0, 224\]"),
        ({"size": [224, 100_000]}, r"size=\[224, 100000\]"),
        ({"size": [1.5, 2]}, r"size=\[1.5, 2\]"),
        ({"colormap": "virdis"}, "colormap='virdis' is no colour table; did you mean 'viridis'"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FrontEnd(log_mel(), **options)


def test_colours_need_one_channel() -> None:
    front = FrontEnd(Stack({"a": log_mel(), "b": log_mel()}), colormap="viridis")
    with pytest.raises(ConfigError, match="colours one channel, and the spectrogram has 2"):
        front(audio())


def test_per_band_needs_fitting_statistics() -> None:
    front = FrontEnd(log_mel(), "per_band")
    with pytest.raises(ConfigError, match="has learnt nothing yet"):
        front(audio())
    front.learn({"mean": [[0.0] * 8], "sd": [[1.0] * 8]})
    with pytest.raises(ConfigError, match=r"knows \(1, 8\), and the image's channels and bands are \(1, 16\)"):
        front(audio())


# --- statistics of the training split -----------------------------------------------------------------------------------------


def make(root: Path, cache: Path, **options: Any) -> MusicDataModule:
    tracks = assign_splits(folder(root), "group_kfold", folds=3, fold=options.pop("fold", 0))
    defaults: dict[str, Any] = {"sample_rate": RATE, "segment_seconds": 0.4, "batch_size": 4, "cache_dir": cache}
    data = MusicDataModule(tracks, options.pop("front", FrontEnd(log_mel(), "per_band")), **{**defaults, **options})
    data.setup()
    return data


def test_statistics_are_those_of_the_training_audio(tones: Path, tmp_path: Path) -> None:
    data = make(tones, tmp_path)
    songs = [soundfile.read(track.path, dtype="int16")[0] for track in data.tracks if track.split == "train"]
    segments = np.concatenate([song.reshape(3, 3200) for song in songs])  # 1.2 s in three segments
    images = log_mel()(torch.from_numpy(segments).float() / 32768).double().numpy()[:, 0]
    assert data.band_statistics is not None
    np.testing.assert_allclose(data.band_statistics["mean"][0], images.mean(axis=(0, 2)), atol=1e-5)
    np.testing.assert_allclose(data.band_statistics["sd"][0], images.std(axis=(0, 2)), atol=1e-5)


def test_statistics_are_kept_for_the_same_audio_and_spectrogram_alone(tones: Path, tmp_path: Path) -> None:
    def files() -> set[str]:
        return {path.name for path in (tmp_path / "statistics").glob("*.json")}

    first = make(tones, tmp_path).band_statistics
    (kept,) = files()
    changed = {"mean": [[0.5] * 16], "sd": [[2.0] * 16]}
    records.write_json(tmp_path / "statistics" / kept, changed)
    assert make(tones, tmp_path, front=FrontEnd(log_mel(), "per_band", [8, 8])).band_statistics == changed  # read, not computed
    make(tones, tmp_path, fold=1)
    make(tones, tmp_path, front=FrontEnd(LogMel(RATE, 256, 128, 16, floor_db=-60.0), "per_band"))
    make(tones, tmp_path, segment_seconds=0.6)
    make(tones, tmp_path, front=FrontEnd(log_mel(), "per_example"))
    assert len(files()) == 4
    (tmp_path / "statistics" / kept).write_text("{")
    assert make(tones, tmp_path).band_statistics == first  # a damaged file counts as none


def test_a_frame_is_no_picture(tones: Path, tmp_path: Path) -> None:
    for front in (FrontEnd(LogMel(RATE, 4096, 4096, 16)), FrontEnd(LogMel(RATE, 4096, 4096, 16), size=[16, 16])):
        with pytest.raises(ConfigError, match=r"one frame of a segment of 3200 samples .* Lower spectrogram.hop_length"):
            make(tones, tmp_path, front=front)


@pytest.fixture
def run(tones: Path, train: Command, tmp_path: Path) -> Path:
    assert train("data=folder", f"data.root={tones}", "backbone=test_resnet", "spectrogram.normalize=per_band", *TINY) == 0
    return only_run(tmp_path)


def test_a_run_keeps_its_statistics(run: Path, tones: Path) -> None:
    """Prediction and evaluation see the images of the training, whatever data they are given."""
    facts = records.read_result(run)["facts"]["band_statistics"]
    assert np.shape(facts["mean"]) == np.shape(facts["sd"]) == (1, 32)
    for name in ("best", "last"):
        checkpoint = torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)
        assert checkpoint["MusicDataModule"]["band_statistics"] == facts
    loaded = load_run(run)
    assert loaded.spectrogram.learnt == facts
    rows = [row for row in records.read_predictions(run) if row.split == "test"]
    for row in rows:
        assert loaded.predict(tones / row.song) == pytest.approx(row.probabilities, abs=1e-5)
    again = evaluate.evaluate(run, [])
    assert records.read_predictions(again) == records.read_predictions(run)
    denser = records.read_predictions(evaluate.evaluate(run, ["data.hop_seconds=0.1"]))  # its grid would give other statistics
    loaded.hop = 800
    for row in denser:
        assert loaded.predict(tones / row.song) == pytest.approx(row.probabilities, abs=1e-5)
    cache = Path(records.read_result(run)["config"]["datamodule"]["cache_dir"])
    kept = [records.read_json(file) for file in (cache / "statistics").glob("*.json")]
    assert kept.count(facts) == 1


def test_a_resumed_run_takes_its_statistics_from_the_checkpoint(tones: Path, tmp_path: Path) -> None:
    data, fresh = make(tones, tmp_path), FrontEnd(log_mel(), "per_band")
    fresh.learn({"mean": [[0.5] * 16], "sd": [[2.0] * 16]})
    other = make(tones, tmp_path, front=fresh)
    other.load_state_dict(data.state_dict())
    torch.testing.assert_close(other.image(audio()), data.image(audio()), rtol=0, atol=0)
    assert make(tones, tmp_path, front=FrontEnd(log_mel())).state_dict() == {}


def test_a_coloured_run(tones: Path, train: Command, tmp_path: Path) -> None:
    picture = ["spectrogram.size=[48,40]", "spectrogram.colormap=viridis", "spectrogram.normalize=imagenet"]
    assert train("data=folder", f"data.root={tones}", "backbone=test_resnet", *picture, *TINY) == 0
    run = only_run(tmp_path)
    record = records.read_result(run)
    assert record["facts"]["image_shape"] == [3, 48, 40]
    assert record["facts"]["band_statistics"] is None
    (row, *_) = [row for row in records.read_predictions(run) if row.split == "test"]
    assert load_run(run).predict(tones / row.song) == pytest.approx(row.probabilities, abs=1e-5)


def test_pictures_show_colours_as_the_network_sees_them(tmp_path: Path) -> None:
    front = FrontEnd(log_mel(), size=[40, 30], colormap="viridis")
    image = front(audio(1))[0].numpy()
    draw(image, tmp_path / "coloured.png", height=40)
    shown = np.asarray(Image.open(tmp_path / "coloured.png")) / 255
    seen = image[:, ::-1].transpose(1, 2, 0)  # low bins at the bottom
    np.testing.assert_allclose(shown, (seen - seen.min()) / (seen.max() - seen.min()), atol=0.5 / 255 + 1e-6)
    draw(log_mel()(audio(1))[0].numpy(), tmp_path / "grey.png", height=16)
    bright = np.asarray(Image.open(tmp_path / "grey.png").convert("L")).astype(float)
    level = log_mel()(audio(1))[0, 0].numpy()[::-1]
    assert spearmanr(bright.ravel(), level.ravel()).statistic > 0.99  # brighter is louder
