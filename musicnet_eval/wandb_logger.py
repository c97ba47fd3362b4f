"""Lightning's W&B logger, made to never harm a run, and histograms of gradients and weights. Layer 6.

`wandb_run` says what is logged under which name; the logger opens the run there, passes on what Lightning logs by epoch, and once
the run is tested logs what `wandb_tables` makes of its folder. Works on rank 0 alone; imported only where `logger=wandb` asks for
it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from musicnet_eval import environment, runs, wandb_run, wandb_tables
from musicnet_eval.contracts import RunRecord
from musicnet_eval.errors import ConfigError

if TYPE_CHECKING:
    from musicnet_eval.plans import Plan

CHECKPOINTS = {"none": (), "best": ("best",), "all": ("best", "last")}


class RunLogger(WandbLogger):
    """Log one run to Weights & Biases as `wandb_run` lays down; whatever fails there is said once and goes no further.

    Args:
        run: The run that is logged.
        save_dir: Where wandb makes its folder `wandb`.
        project: W&B's project.
        entity: W&B's team or user; the account's own where null.
        offline: Whether to write files only; null: as WANDB_MODE says, offline without it.
        group: Null: the name of the folder that holds the run's folder.
        tags: Tags beside the run's choices.
        hardest: How many test songs are logged with sound and picture, 0 or more.
        audio_seconds: How much of each is heard, from its middle, seconds, 0.1 or more.
        media_megabytes: Budget of all sounds and pictures of the run.
        checkpoints: Which checkpoints become artifacts: none, best or all.
        init_seconds: How long the server may take to answer at the beginning, seconds.
        finish_seconds: How long the end may wait for uploads, seconds.
        settings: Further `wandb.Settings`, by name.

    Raises:
        ConfigError: A value that cannot be used.
    """

    def __init__(
        self,
        run: Plan,
        save_dir: str | None,
        project: str = wandb_run.PROJECT,
        entity: str | None = None,
        offline: bool | None = None,
        group: str | None = None,
        tags: Iterable[str] = (),
        hardest: int = 6,
        audio_seconds: float = 5.0,
        media_megabytes: float = 20.0,
        checkpoints: str = "none",
        init_seconds: float = 15.0,
        finish_seconds: float = 30.0,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        if checkpoints not in CHECKPOINTS:
            raise ConfigError(f"logger.wandb.checkpoints={checkpoints!r} must be one of {', '.join(CHECKPOINTS)}.")
        _check_number("audio_seconds", audio_seconds, 0.1)
        for name, value in (("hardest", hardest), ("media_megabytes", media_megabytes)):
            _check_number(name, value, 0)
        for name, value in (("init_seconds", init_seconds), ("finish_seconds", finish_seconds)):
            _check_number(name, value, 1)
        if not isinstance(hardest, int):
            raise ConfigError(f"logger.wandb.hardest={hardest!r} must be a whole number, 0 or more.")
        if not isinstance(save_dir, str):
            raise ConfigError(f"logger.wandb.save_dir={save_dir!r} must be a folder.")
        self.run, self.hardest, self.audio_seconds, self.media_megabytes = run, hardest, audio_seconds, media_megabytes
        self.checkpoints, self.fitted = CHECKPOINTS[checkpoints], False
        sweep = run.folder.resolve().parent.name
        self.identity, experiment = wandb_run.identity(run.signature, str(run.choices["data"]), sweep), None
        if getattr(rank_zero_only, "rank", 0) == 0:
            experiment = wandb_run.start(
                Path(save_dir),
                anew=not runs.last_checkpoint(run.folder).is_file(),  # nothing to go on from
                offline=offline,
                init_seconds=init_seconds,
                finish_seconds=finish_seconds,
                settings=settings,
                project=project,
                entity=entity,
                group=sweep[:128] if group is None else group,
                tags=_tags(run.choices, tags),
                id=self.identity,
                name=run.title[:128],
                job_type=wandb_run.TRAIN,
                config=_identity(run),
            )
        super().__init__(save_dir=save_dir, project=project, id=self.identity, name=run.title, experiment=experiment)

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """Log the config."""
        with wandb_run.guarded("log the config"):
            super().log_hyperparams(params)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log numbers by epoch; once the training is over, what the tested epoch comes to goes to the summary alone."""
        if not self.fitted:
            wandb_run.send("log metrics", partial(super().log_metrics, metrics, step))

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Note that the training is over."""
        self.fitted = self.fitted or status == "success"

    @rank_zero_only
    def conclude(self, record: RunRecord, data: Any) -> None:
        """Log what is known once the run is tested.

        Args:
            record: The run's record.
            data: The data module, for the sounds of the hardest songs.
        """
        place = {track.id: index for index, track in enumerate(data.tracks)}
        folder = self.run.folder
        summary = wandb_tables.summary(record, self.run.config["monitor"])
        wandb_run.send("write the results", partial(self.experiment.summary.update, summary))
        show = partial(
            wandb_tables.log_all,
            self.experiment,
            folder,
            record,
            lambda song: (data.clip(place[song], self.audio_seconds), data.sample_rate),
            hardest=self.hardest,
            megabytes=self.media_megabytes,
        )
        wandb_run.bounded("log tables and pictures", show)  # tables are artifacts, of which wandb asks the server
        for name in self.checkpoints:
            keep = partial(self._keep, folder / "checkpoints" / f"{name}.ckpt", name, record)
            wandb_run.bounded(f"keep the checkpoint '{name}'", keep)

    def _keep(self, file: Path, name: str, record: RunRecord) -> None:
        """Log a checkpoint as a version of the artifact `model-<id>`, if the run keeps it."""
        import wandb

        if file.is_file():
            about = {"choices": record["choices"], "metrics": record["metrics"]}
            artifact = wandb.Artifact(f"model-{self.identity}", type="model", metadata=about)
            artifact.add_file(str(file), name=file.name)
            self.experiment.log_artifact(artifact, aliases=[name])


def _identity(run: Plan) -> dict[str, Any]:
    """Give what W&B's config says beside the run's own config."""
    return {
        "signature": run.signature,
        "configuration": run.configuration,
        "folder": str(run.folder),
        "choices": run.choices,
        "git": environment.git(),
    }


def _tags(choices: Mapping[str, Any], more: Iterable[str]) -> list[str]:
    """List the words that name a run, each once; W&B takes 64 characters."""
    if isinstance(more, str) or not all(map(str, more)):
        raise ConfigError(f"logger.wandb.tags={more!r} must be a list of words: logger.wandb.tags=[mine].")
    chosen = (str(choices[name]) for name in ("data", "backbone", "loss", "spectrogram", "augment") if choices.get(name))
    return list(dict.fromkeys(tag[:64] for tag in (*chosen, *map(str, more)) if tag != "none"))


def _check_number(name: str, value: Any, least: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value < 1e9:
        raise ConfigError(f"logger.wandb.{name}={value!r} must be a number, {least:g} or more.")


class Histograms(Callback):
    """Log histograms to W&B once an epoch, of its last optimizer step: `gradients/<layer>` and `weights/<layer>`.

    Args:
        layers: How many weight tensors at most, spread evenly from the first layer to the last.
        bins: Bins of each histogram.

    Raises:
        ConfigError: There is no `logger=wandb`.
    """

    def __init__(self, layers: int = 20, bins: int = 32) -> None:
        for name, value in (("layers", layers), ("bins", bins)):
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 512:
                raise ConfigError(f"callbacks.histograms.{name}={value!r} must be a whole number from 1 to 512.")
        self.layers, self.bins = layers, bins
        self.gradients: dict[str, Any] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        del pl_module
        if trainer.is_global_zero and not any(isinstance(logger, RunLogger) for logger in trainer.loggers):
            raise ConfigError("callbacks=[…,histograms] draws in W&B. Add logger=wandb, or leave histograms out.")

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        del optimizer
        if trainer.is_global_zero and trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            with wandb_run.guarded("make histograms"):
                chosen = self._chosen(pl_module)
                self.gradients = {name: self._histogram(p.grad) for name, p in chosen.items() if p.grad is not None}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        with wandb_run.guarded("log histograms"):
            shown = {f"gradients/{name}": value for name, value in self.gradients.items()}
            shown |= {f"weights/{name}": self._histogram(p) for name, p in self._chosen(pl_module).items()}
            told = {wandb_run.EPOCH: trainer.current_epoch, wandb_run.STEP: trainer.global_step - 1}
            for logger in trainer.loggers:
                if isinstance(logger, RunLogger):
                    wandb_run.send("log histograms", partial(logger.experiment.log, {**shown, **told}))
        self.gradients = {}

    def _chosen(self, module: LightningModule) -> dict[str, torch.nn.Parameter]:
        """Choose weight tensors, biases and norms left out."""
        every = [(name, p) for name, p in module.named_parameters() if p.ndim > 1 and p.requires_grad]
        count = min(self.layers, len(every))
        places = {round(i * (len(every) - 1) / max(1, count - 1)) for i in range(count)}
        return {name.removeprefix("backbone."): p for i, (name, p) in enumerate(every) if i in places}

    def _histogram(self, values: torch.Tensor) -> Any:
        import wandb

        found = values.detach().float().cpu()  # histc has no deterministic implementation elsewhere
        found = found[found.isfinite()]
        low, high = (float(found.min()), float(found.max())) if len(found) else (0.0, 0.0)
        high = high if high > low else low + 1
        counts, edges = torch.histc(found, self.bins, low, high), torch.linspace(low, high, self.bins + 1)
        return wandb.Histogram(np_histogram=cast(Any, (counts.long().numpy(), edges.numpy())))
