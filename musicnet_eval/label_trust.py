"""Which training labels may be wrong: the trust in each one, averaged over the training. Layer 5; a callback that only looks.

The trust is that of the balanced trusted loss, `(p_label / max p)`, whatever loss is trained with, read from the scores that the
training step has computed anyway, before the network has learnt from that batch. A network learns what many songs share before it
learns single songs by heart, so a wrong label is distrusted for longer. Sums are kept on the device and over processes once an
epoch; they are part of the checkpoint. Place in the flow: training → `suspect_labels.csv`, `pictures/suspect-*.png` → report.

Reference:
    Northcutt et al., "Confident Learning", Journal of Artificial Intelligence Research 70, 2021; Pleiss et al., "Identifying
    Mislabeled Data using the Area Under the Margin Ranking", NeurIPS 2020 (the margin of logits averaged over the training).
"""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from musicnet_eval import records
from musicnet_eval.callbacks import draw
from musicnet_eval.contracts import Track
from musicnet_eval.errors import ConfigError
from musicnet_eval.losses import sample_trust


class Suspect(NamedTuple):
    """One row of `suspect_labels.csv`: rank 1 is the least trusted label."""

    rank: int
    song: str
    group: str
    label: str
    trust: float  # mean over the training, in [0, 1]
    instead: str  # the class that the network gave most to, of those that the label does not name
    probability: float  # what it gave to that class, mean over the training
    times: int  # how often the song was trained on and counted
    picture: str  # file below pictures/, or empty


class LabelTrust(Callback):
    """Average the trust in each training song's label over the training and write `suspect_labels.csv`, least trusted first.

    Of each epoch it logs `train/song/trust_mean` and `train/song/trust_low`, the share of songs with a trust below one half.

    Args:
        pictures: How many of the least trusted songs are drawn, as the network sees them, 0 or more.
        height: Least height of a picture in pixels.
    """

    def __init__(self, pictures: int = 12, height: int = 160) -> None:
        if isinstance(pictures, bool) or not isinstance(pictures, int) or pictures < 0:
            raise ConfigError(f"callbacks.label_trust.pictures={pictures!r} must be a whole number, 0 or more.")
        self.pictures = pictures
        self.height = height
        self.total: Tensor | None = None  # [S, C + 2]: probabilities, trust, times; summed over epochs and processes
        self.epoch: Tensor | None = None  # the same, of this process and epoch; None between epochs

    def state_dict(self) -> dict[str, Any]:
        sums = {"total": self.total, "epoch": self.epoch}
        return {name: value.cpu() for name, value in sums.items() if value is not None}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.total, self.epoch = state_dict.get("total"), state_dict.get("epoch")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if self.epoch is None:  # else it was cut in its middle, and goes on
            self.epoch = torch.zeros(len(data.tracks), len(data.classes) + 2)
        self.epoch = self.epoch.to(pl_module.device)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        del trainer, batch_idx
        assert self.epoch is not None
        facts: Any = pl_module.facts
        self.epoch.index_add_(0, batch["song"], _row(outputs["scores"], batch["label"], multilabel=facts.multilabel))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self.epoch is not None
        summed: Tensor = trainer.strategy.reduce(self.epoch, reduce_op="sum")
        heard = summed[summed[:, -1] > 0]
        trust = heard[:, -2] / heard[:, -1]
        pl_module.log("train/song/trust_mean", trust.mean(), sync_dist=True)  # the same in all processes
        pl_module.log("train/song/trust_low", (trust < 0.5).float().mean(), sync_dist=True)
        self.total = summed.clone() if self.total is None else self.total.to(summed.device) + summed
        self.epoch = None

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.total is None or not trainer.is_global_zero:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        folder = Path(trainer.default_root_dir)
        found = suspects(self.total.cpu(), data.tracks, data.classes, self.pictures)
        write_suspects(folder, found)
        drawn = [one for one in found if one.picture]
        if drawn:
            index = {track.id: i for i, track in enumerate(data.tracks)}
            images = data.middles([index[one.song] for one in drawn], pl_module.device)
            for one, image in zip(drawn, images, strict=True):
                draw(image.cpu().numpy(), folder / "pictures" / one.picture, self.height)


@torch.no_grad()
def _row(scores: Tensor, label: Tensor, *, multilabel: bool) -> Tensor:
    """Give what a batch adds for each of its songs: probabilities, trust, and one.

    Shape:
        scores: `[B, C]`. label: `[B]` int, or `[B, C]` float. output: `[B, C + 2]`.
    """
    scores = scores.float()
    if multilabel:  # no class competes with another: how probable the labels are that were given
        chances = scores.sigmoid()
        trust = (chances * label).sum(dim=1) / label.sum(dim=1).clamp(min=1)
    else:
        chances = scores.softmax(dim=1)
        trust = sample_trust(scores, label, 1.0)
    return torch.cat([chances, trust.unsqueeze(1), torch.ones_like(trust).unsqueeze(1)], dim=1)


def suspects(total: Tensor, tracks: list[Track], classes: tuple[str, ...], pictures: int = 0) -> list[Suspect]:
    """Rank the songs that were trained on by the mean trust in their label, least first, equal ones by name.

    Args:
        total: Sums over the training.
        tracks: The data set's list.
        classes: Class names in index order.
        pictures: How many get the name of a picture.

    Shape:
        total: `[S, C + 2]`: probabilities, trust, times.
    """
    times = total[:, -1].tolist()
    means = (total / total[:, -1:].clamp(min=1)).tolist()
    rows = []
    for i, track in enumerate(tracks):
        if times[i]:
            others = [(means[i][c], name) for c, name in enumerate(classes) if name not in track.labels] or [(0.0, "")]
            chance, instead = max(others, key=lambda other: (other[0], other[1]))
            rows.append((means[i][-2], track, instead, chance, int(times[i])))
    rows.sort(key=lambda row: (math.isnan(row[0]), row[0], row[1].id))
    return [
        Suspect(
            rank, track.id, track.group, "|".join(track.labels), trust, instead, chance, count,
            f"suspect-{rank}.png" if rank <= pictures else "",
        )
        for rank, (trust, track, instead, chance, count) in enumerate(rows, start=1)
    ]  # fmt: skip


def write_suspects(folder: Path, rows: list[Suspect]) -> None:
    """Write `suspect_labels.csv` into a run's folder, atomically."""
    with records.replacing(folder / records.SUSPECTS) as temporary, temporary.open("w", newline="", encoding="utf8") as file:
        writer = csv.writer(file)
        writer.writerow(Suspect._fields)
        writer.writerows(row._replace(trust=f"{row.trust:.6g}", probability=f"{row.probability:.6g}") for row in rows)  # type: ignore[arg-type]
