"""What a run shows in Weights & Biases once it is tested: plain rows out of its folder, then tables, charts, sounds. Layer 3.

The rows come from `predictions.csv`, `suspect_labels.csv` and `pictures/`, so that whatever W&B does, no number of the run
depends on it. No torch; wandb is imported inside. A run's uploads are bounded: 10,000 rows a table, 100 suspects, 20 example
pictures, and for all sounds and pictures together the logger's `media_megabytes`.
"""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from musicnet_eval import records, wandb_run
from musicnet_eval.contracts import RunRecord
from musicnet_eval.records import Prediction

ROWS, MOST_SUSPECTS, MOST_EXAMPLES = 10_000, 100, 20
BINS = 15  # of the calibration error
Sound = Callable[[str], tuple[Any, int]]  # a song's name → samples, rate in Hz


class Table(NamedTuple):
    """Column names and rows."""

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]


# --- rows ---------------------------------------------------------------------------------------------------------------------


def labels(text: str, multilabel: bool) -> list[str]:
    """Take labels apart; a class of data with one label a song may hold the mark between them."""
    return text.split("|") if multilabel else [text]


def probability_of_label(row: Prediction, multilabel: bool) -> float:
    """Give the probability of a song's label; of several labels, the mean."""
    held = labels(row.label, multilabel)
    return sum(row.probabilities.get(name, 0.0) for name in held) / len(held)


def hardest_first(rows: Iterable[Prediction], multilabel: bool) -> list[Prediction]:
    """Sort songs by the probability of their label, the least first."""
    return sorted(rows, key=lambda row: probability_of_label(row, multilabel))


def confusion(rows: Iterable[Prediction], classes: Sequence[str]) -> Table:
    """Count songs by label and by what is said of them, every pair of classes, zeros too (one label a song)."""
    counts = Counter((row.label, row.predicted) for row in rows)
    pairs = [(true, said, counts[true, said]) for true in classes for said in classes]
    return Table(("Actual", "Predicted", "nPredictions"), pairs)  # the names that W&B's chart asks for


def by_class(rows: Sequence[Prediction], classes: Sequence[str], multilabel: bool) -> Table:
    """Give precision, recall, F1 and the number of songs of each class; 0 where there is nothing to divide by."""
    held = [set(labels(row.label, multilabel)) for row in rows]
    said = [set(labels(row.predicted, multilabel)) for row in rows]
    table = []
    for name in classes:
        right = sum(name in true and name in named for true, named in zip(held, said, strict=True))
        support, named = sum(name in true for true in held), sum(name in names for names in said)
        f1 = 2 * right / max(1, support + named)
        table.append((name, right / max(1, named), right / max(1, support), f1, support))
    return Table(("class", "precision", "recall", "f1", "support"), table)


def predictions(rows: Iterable[Prediction], multilabel: bool) -> Table:
    """Give what is said of each song, those that get the least probability of their label first."""
    columns = ("song", "group", "label", "predicted", "probability", "probability_of_label", "right")
    table = []
    for row in hardest_first(rows, multilabel)[:ROWS]:
        right = set(labels(row.label, multilabel)) == set(labels(row.predicted, multilabel))
        highest, held = max(row.probabilities.values()), probability_of_label(row, multilabel)
        table.append((row.song, row.group, row.label, row.predicted, highest, held, right))
    return Table(columns, table)


def reliability(rows: Iterable[Prediction], multilabel: bool) -> Table:
    """Give for each of 15 bins of the claimed probability what is claimed and what holds, on average; empty bins left out.

    The mean over claims of their difference, bin by bin, is the expected calibration error (Guo et al., ICML 2017).
    """
    claims: list[list[tuple[float, bool]]] = [[] for _ in range(BINS)]
    for row in rows:
        held = set(labels(row.label, multilabel))
        said = row.probabilities.items() if multilabel else [(row.predicted, row.probabilities[row.predicted])]
        for name, claimed in said:
            claims[min(max(math.ceil(claimed * BINS), 1), BINS) - 1].append((claimed, name in held))
    table = []
    for place, found in enumerate(claims):
        if found:
            claimed, holds = (sum(column) / len(found) for column in zip(*found, strict=True))
            table.append((place / BINS, (place + 1) / BINS, len(found), claimed, holds))
    return Table(("above", "up_to", "claims", "claimed", "holds"), table)


# --- tables, charts, sounds, pictures ---------------------------------------------------------------------------------------


class Media:
    """Make W&B's pictures and sounds as long as they stay within a budget; None beyond it.

    Args:
        megabytes: The budget, 0 or more.
    """

    def __init__(self, megabytes: float) -> None:
        self.left = megabytes * 1e6

    def picture(self, file: Path, caption: str | None = None) -> Any:
        """Give the picture in a file; None where there is none, or one that cannot be read."""
        import wandb

        shown = None
        with wandb_run.guarded(f"show the picture '{file.name}'"):
            if file.is_file() and self._afford(file.stat().st_size):
                shown = wandb.Image(str(file), caption=caption)
        return shown

    def sound(self, samples: Any, rate: int) -> Any:
        """Give 16-bit audio, `[T]` or `[T, channels]`."""
        import wandb

        return wandb.Audio(samples, sample_rate=rate) if self._afford(2 * samples.size) else None

    def _afford(self, size: float) -> bool:
        self.left -= size
        return self.left >= 0


def log_all(run: Any, folder: Path, record: RunRecord, sound: Sound, *, hardest: int, megabytes: float) -> None:
    """Log everything that is known once a run is tested, in one step.

    Args:
        run: wandb's run.
        folder: The run's folder.
        record: Its record.
        sound: Gives the sound of a song.
        hardest: How many test songs, those that get the least probability of their label, are logged with sound and picture.
        megabytes: Budget of all sounds and pictures.
    """
    classes, multilabel = list(record["facts"]["classes"]), bool(record["facts"].get("multilabel"))
    rows = [row for row in records.read_predictions(folder) if row.split == "test"]
    media, ece = Media(megabytes), record["metrics"]["test/song/ece"]
    hard = [(row, probability_of_label(row, multilabel)) for row in hardest_first(rows, multilabel)[:hardest]]
    shown: dict[str, Any] = {
        wandb_run.CLASSES: _table(by_class(rows, classes, multilabel)),
        wandb_run.PREDICTIONS: _table(predictions(rows, multilabel)),
        wandb_run.HARDEST: _table(_hardest(hard, folder, sound, media)),
        wandb_run.RELIABILITY: _reliability_chart(reliability(rows, multilabel), ece),
    }
    if not multilabel and len(classes) ** 2 <= ROWS:
        shown[wandb_run.CONFUSION] = _confusion_chart(confusion(rows, classes))
    if (suspects := _suspects(folder, media)) is not None:
        shown[wandb_run.SUSPECTS] = _table(suspects)
    if examples := _examples(folder, media):
        shown[wandb_run.EXAMPLES] = examples
    run.log(shown)


def summary(record: RunRecord, monitor: str) -> dict[str, float]:
    """Give what the summary says beside the last epoch: the tested epoch's numbers, size and time, each under its own name."""
    metrics = record["metrics"]
    told: dict[str, Any] = {name: value for name, value in metrics.items() if name.startswith("test/")}
    told |= {f"{wandb_run.BEST}{name}": value for name, value in metrics.items() if name.startswith(("val/", "gap/"))}
    told |= {wandb_run.OBJECTIVE: metrics.get(monitor), wandb_run.BEST_EPOCH: record["facts"].get("best_epoch")}
    told |= {f"seconds/{name}": value for name, value in record["seconds"].items()}
    return told | {"parameters": record["parameters"]}


def _table(table: Table) -> Any:
    import wandb

    return wandb.Table(columns=list(table.columns), data=[list(row) for row in table.rows])


def _confusion_chart(table: Table) -> Any:
    import wandb

    fields = {name: name for name in table.columns}
    return wandb.plot_table(
        "wandb/confusion_matrix/v1", _table(table), fields, {"title": "Test songs: label and what is said"}, split_table=False
    )


def _reliability_chart(table: Table, ece: float) -> Any:
    import wandb

    place, holds = [row[3] for row in table.rows], [row[4] for row in table.rows]
    return wandb.plot.line_series(
        xs=[[0.0, 1.0], place],
        ys=[[0.0, 1.0], holds],
        keys=["calibrated", "test songs"],
        title=f"Reliability of the test songs (ECE {ece:.3f})",
        xname="claimed probability",
    )


def _hardest(rows: Iterable[tuple[Prediction, float]], folder: Path, sound: Sound, media: Media) -> Table:
    files = {entry["song"]: entry["file"] for entry in _listed(folder / "pictures" / "hardest.json")}
    table = []
    for row, held in rows:
        picture, heard = media.picture(folder / "pictures" / files[row.song]) if row.song in files else None, None
        with wandb_run.guarded(f"let '{row.song}' be heard"):  # its decoded file may be gone
            heard = media.sound(*sound(row.song))
        table.append((row.song, row.label, row.predicted, held, heard, picture))
    return Table(("song", "label", "predicted", "probability_of_label", "audio", "spectrogram"), table)


def _suspects(folder: Path, media: Media) -> Table | None:
    """Give the least trusted training labels, as `suspect_labels.csv` lists them, with their pictures."""
    file = folder / records.SUSPECTS
    if not file.is_file():
        return None
    with file.open(newline="", encoding="utf8") as opened:
        listed = list(csv.DictReader(opened))[:MOST_SUSPECTS]
    table: list[tuple[Any, ...]] = [
        (
            *(int(row["rank"]), row["song"], row["group"], row["label"], float(row["trust"]), row["instead"]),
            *(float(row["probability"]), int(row["times"])),
            media.picture(folder / "pictures" / row["picture"]) if row["picture"] else None,
        )
        for row in listed
    ]
    return Table(("rank", "song", "group", "label", "trust", "instead", "probability", "times", "spectrogram"), table)


def _examples(folder: Path, media: Media) -> list[Any]:
    listed = _listed(folder / "pictures" / "spectrograms.json")[:MOST_EXAMPLES]
    made = (media.picture(folder / "pictures" / one["file"], f"{one['class']}: {one['song']}") for one in listed)
    return [picture for picture in made if picture is not None]


def _listed(file: Path) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(file.read_text(encoding="utf8")) if file.is_file() else []
    return found
