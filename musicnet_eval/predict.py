"""Say what a finished run hears in audio files: `musicnet-predict RUN_DIR AUDIO…`; in Python, `load_run(RUN_DIR)`.

A file of any length, rate and channel count is decoded, cut by the same grid of windows, turned into the same images and voted on
just as in the run's own evaluation, so the numbers equal those in `predictions.csv`.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from musicnet_eval import configs, records, runs
from musicnet_eval.errors import AudioError, MusicnetError, RecordError
from musicnet_eval.pipes import ends_with_reader

if TYPE_CHECKING:
    from torch import Tensor


class LoadedRun:
    """A trained network with its front end.

    Args:
        folder: Where it was loaded from.
        record: The run's `result.json`.
        network: Images `[B, K, F, N]` → scores `[B, C]`, in evaluation mode.
        spectrogram: Audio `[B, T]` → images.
    """

    def __init__(self, folder: Path, record: Any, network: Any, spectrogram: Any) -> None:
        data = record["config"]["data"]
        self.folder, self.record, self.network, self.spectrogram = folder, record, network, spectrogram
        self.classes: tuple[str, ...] = tuple(record["facts"]["classes"])
        self.multilabel = bool(record["facts"].get("multilabel"))
        self.temperature: float = record["facts"].get("temperature") or 1.0
        self.vote: str = record["config"]["model"].get("vote", "mean_probability")
        self.sample_rate: int = data["sample_rate"]
        self.segment = round(data["segment_seconds"] * self.sample_rate)
        self.hop = self.segment if data["hop_seconds"] is None else max(1, round(data["hop_seconds"] * self.sample_rate))
        self.max_seconds: float | None = data["max_seconds"]
        self.channels: int = data.get("channels", 1)  # runs from before there was a choice are mono
        self.batch_size: int = 2 * data["batch_size"]

    def __call__(self, audio: Tensor) -> Tensor:
        """Give class probabilities `[B, C]` for float audio `[B, T]` in [-1, 1] at `sample_rate`."""
        from musicnet_eval.metrics import probabilities

        return probabilities(self.scores(audio), multilabel=self.multilabel)

    def scores(self, audio: Tensor) -> Tensor:
        """Give the network's scores `[B, C]` for float audio `[B, T]`."""
        import torch

        from musicnet_eval.spectrograms import make_images

        with torch.inference_mode():
            found: Tensor = self.network(make_images(self.spectrogram, audio)) / self.temperature
            return found

    def predict(self, path: Path | str) -> dict[str, float]:
        """Give the probability of each class for one audio file of any length: its windows vote as in the run's evaluation.

        Raises:
            AudioError: The file cannot be decoded.
        """
        import numpy as np
        import torch

        from musicnet_eval.audio import PCM_SCALE, decode
        from musicnet_eval.metrics import SongVotes
        from musicnet_eval.segments import grid

        pcm = decode(Path(path), self.sample_rate, self.max_seconds, self.channels)
        short = max(0, self.segment - len(pcm))
        padded = np.pad(pcm, [(0, short), (0, 0)][: pcm.ndim]).T  # `[T]`, or `[2, T]`
        starts = grid(len(pcm), self.segment, self.hop)
        votes = SongVotes(1, len(self.classes), self.vote, multilabel=self.multilabel)
        for first in range(0, len(starts), self.batch_size):
            windows = np.stack([padded[..., s : s + self.segment] for s in starts[first : first + self.batch_size]])
            scores = self.scores(torch.from_numpy(windows).float() / PCM_SCALE)
            song = torch.zeros(len(scores), dtype=torch.long)
            votes.update(scores, song, torch.zeros(len(scores), *votes.label.shape[1:], dtype=torch.long))
        return dict(zip(self.classes, votes.gather().probabilities[0].tolist(), strict=True))

    def named(self, chances: dict[str, float]) -> str:
        """Name the class of the highest probability or, where several may hold, those of 0.5 and more, joined by `|`."""
        if self.multilabel:
            return "|".join(name for name, chance in chances.items() if chance >= 0.5)
        return max(chances, key=chances.__getitem__)


def load_run(folder: Path | str, plugins: Sequence[str] = ()) -> LoadedRun:
    """Load a finished run: the ready model with its front end.

    Args:
        folder: A run folder with `result.json` and `checkpoints/best.ckpt`.
        plugins: Modules that define the run's own network or front end. They are imported; those that the run names are not.

    Raises:
        RecordError: The folder holds no whole run, or one that would build what neither we nor the plugins define.
    """
    run = Path(folder)
    record = records.read_result(run)
    configs.import_plugins(plugins)
    config = record["config"]
    front = config["datamodule"]["spectrogram"]
    configs.check_stored({"spectrogram": front}, plugins)
    from musicnet_eval.backbones import build, fit_head
    from musicnet_eval.evaluate import load_weights

    options = {**config["backbone_options"], "pretrained": False, "checkpoint_path": None}
    classes, shape = record["facts"]["classes"], record["facts"]["image_shape"]
    try:
        network = build(config["backbone"], options, len(classes), tuple(shape))
    except MusicnetError as error:
        stored = config.get("plugins") or []
        hint = f" The run was trained with plugins={stored}: name them, if you trust them." if set(stored) - set(plugins) else ""
        raise RecordError(f"{error}{hint}") from None
    head = partial(fit_head, network, config["backbone"], tuple(shape))
    load_weights(network, runs.best_checkpoint(run), prefix="backbone.", fit=head)
    spectrogram = configs.build(front, "spectrogram")
    if record["facts"].get("band_statistics"):
        spectrogram.learn(record["facts"]["band_statistics"])
    return LoadedRun(run, record, network.eval(), spectrogram)


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    from musicnet_eval.datasets import AUDIO_SUFFIXES

    for path in paths:
        if path.is_dir():
            yield from sorted(file for file in path.rglob("*") if file.suffix.lower() in AUDIO_SUFFIXES)
        else:
            yield path


def _write(rows: list[dict[str, Any]], classes: Sequence[str], form: str) -> None:
    if form == "json":
        print(json.dumps(rows, indent=1))
    elif form == "csv":
        writer = csv.writer(sys.stdout)
        writer.writerow(["path", "predicted", *(f"prob_{name}" for name in classes)])
        for row in rows:
            writer.writerow([row["path"], row["predicted"], *(f"{row['probabilities'][name]:.6g}" for name in classes)])
    else:
        _table(rows)


def _table(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    table = Table(Column("file", overflow="fold"), "predicted", "probability", "next")
    for row in rows:
        best, *others = sorted(row["probabilities"].items(), key=lambda item: -item[1])
        table.add_row(row["path"], row["predicted"], f"{best[1]:.3f}", " ".join(f"{name} {p:.3f}" for name, p in others[:2]))
    Console().print(table)


def predict(run: Path, audio: Sequence[Path], form: str, plugins: Sequence[str]) -> int:
    """Predict every file, print the rows, and give the exit code: 2 when a file could not be used."""
    from musicnet_eval.datasets.files import readable

    loaded = load_run(run, plugins)
    rows, bad = [], 0
    for path in _files(audio):
        try:
            chances = loaded.predict(path)
        except AudioError as error:
            print(f"error: {error}", file=sys.stderr)
            bad += 1
            continue
        rows.append({"path": readable(path), "predicted": loaded.named(chances), "probabilities": chances})
    if rows:
        _write(rows, loaded.classes, form)
    elif not bad:
        raise RecordError(f"No audio files in {', '.join(map(str, audio))}. Give files, or folders that hold some.")
    return 2 if bad else 0


@ends_with_reader
def main(argv: list[str] | None = None) -> int:
    """Run the command `musicnet-predict`."""
    parser = argparse.ArgumentParser(
        prog="musicnet-predict",
        description="Say what a finished run hears in audio files of any length, rate and channel count.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=(
            "Long files are cut into the run's own windows and their probabilities averaged, as in the run's evaluation.\n\n"
            "examples:\n"
            "  musicnet-predict RUN_DIR song.mp3 album/ --format csv > predictions.csv\n"
            "  musicnet-predict RUN_DIR song.wav --plugins mylab.nets      a run whose network is your own\n\n"
            "exit codes: 0 done; 2 bad usage, or a file that could not be used (the others are predicted all the same)"
        ),
    )
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="folder of a finished run")
    parser.add_argument("audio", type=Path, nargs="+", metavar="AUDIO", help="audio files, or folders of them")
    parser.add_argument("--format", choices=("table", "csv", "json"), default="table", help="default: table")
    parser.add_argument("--plugins", nargs="+", default=[], metavar="MODULE", help="modules of your own that the run needs")
    given = parser.parse_args(argv)
    try:
        return predict(given.run, given.audio, given.format, given.plugins)
    except MusicnetError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
