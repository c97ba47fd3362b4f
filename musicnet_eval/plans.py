"""What is settled before anything heavy is imported: config, split tracks, signature, place. Layer 5; imports no torch."""

from __future__ import annotations

import contextlib
import copy
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository, ConfigRepository
from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from musicnet_eval import configs, records, runs
from musicnet_eval.contracts import Track
from musicnet_eval.datasets import assign_splits, fingerprint, planted, split_settings
from musicnet_eval.errors import DataError
from musicnet_eval.weights import weight_hashes

UNINDEXED = "unindexed"  # stands for the index fingerprint of a run whose data could not be listed
LISTED_SECONDS = 60.0  # for how long the jobs of a sweep may share one listing of their tracks

_listings: dict[str, tuple[float, list[Track]]] = {}


@dataclass(frozen=True)
class Plan:
    """What is settled before anything heavy is imported: the config, the split tracks, and the run's name and place."""

    config: dict[str, Any]
    written: dict[str, Any]  # the same, fit to be written down: no secrets
    tracks: list[Track]
    signature: str
    configuration: str
    folder: Path
    choices: dict[str, Any]
    overrides: list[str]
    faults: Sequence[planted.Fault] = ()

    @property
    def title(self) -> str:
        c = self.choices
        return f"{c['data']} fold {c['fold']} · {c['backbone']} · {c['loss']} · seed {c['seed']}"

    @property
    def about(self) -> dict[str, Any]:
        """What `failed.json` says of the run beside its error."""
        names = ("signature", "configuration", "choices", "overrides")
        return {name: getattr(self, name) for name in names} | {"config": self.written}


class Writable(Callback):
    """Refuse a single run in a folder that cannot be written, before Hydra makes it and shows its own stack."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        del kwargs
        folder = Path(config.hydra.run.dir)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            refusal = runs.unwritable(folder, error)
            print(f"error: {refusal}", file=sys.stderr)
            raise SystemExit(refusal.exit_code) from None


def plan(config: DictConfig) -> Plan:
    """Settle a run's tracks, splits, signature and folder.

    Raises:
        MusicnetError: The config or the data cannot be used.
    """
    plain = configs.resolved(config)
    configs.check(plain)
    configs.import_plugins(plain["plugins"])
    tracks = _listed(plain["data"]["index"])
    settings = split_settings(plain["data"], tracks)
    plain["data"]["protocol"] = settings["protocol"]
    split, faults = planted.plant(assign_splits(tracks, **settings), **plain["data"]["plant"])
    return replace(_named(config, plain, split, fingerprint(split), fingerprint(tracks)), faults=faults)


def _listed(node: dict[str, Any]) -> list[Track]:
    """List the tracks; the jobs of a sweep that come one right after the other have them listed once."""
    key, now = f"{Path.cwd()} {records.canonical(node)}", time.monotonic()
    if sweeping() and key in _listings and now - _listings[key][0] < LISTED_SECONDS:
        return _listings[key][1]
    tracks = configs.build(node, "data.index")
    if not isinstance(tracks, list) or not all(isinstance(track, Track) for track in tracks):
        raise DataError(f"data.index={node.get('_target_')} must return a list of Track.")
    if sweeping():
        _listings[key] = (now, tracks)
    return tracks


def forget_listings() -> None:
    """Have tracks listed anew, as at the start of a sweep."""
    _listings.clear()


class _ReadOnce(CachingConfigRepository):
    """Hydra's config files, each read once for many jobs; Hydra reads all of them anew for every job.

    Composing moves nodes out of what was read, so each job gets a copy, at a fifth of the time.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> _ReadOnce:
        return self  # Hydra copies its repository for every job, and this one is to be shared

    def load_config(self, config_path: str) -> ConfigResult | None:
        return copy.deepcopy(super().load_config(config_path))


def read_once(loader: ConfigLoader) -> ConfigLoader:
    """Give a loader that reads each config file once, to compose many jobs of one sweep with.

    Args:
        loader: Hydra's, which is left as it is.
    """
    quick = copy.copy(cast(ConfigLoaderImpl, loader))
    quick.repository = cast(ConfigRepository, _ReadOnce(quick.repository))
    return quick


def job_config(loader: ConfigLoader, sweep: DictConfig, number: int, overrides: Sequence[str]) -> DictConfig:
    """Compose the config of one job of a sweep, Hydra's node included.

    Args:
        loader: Hydra's, or `read_once` of it.
        sweep: The sweep's own config.
        number: The job's place in the sweep, from 0.
        overrides: The job's.
    """
    config = loader.load_sweep_config(sweep, list(overrides))
    with open_dict(config):
        config.hydra.job.id, config.hydra.job.num = str(number), number
    return config


@contextlib.contextmanager
def as_job(config: DictConfig) -> Iterator[DictConfig]:
    """Let a composed config be Hydra's present one for a while, and lend what its task would be given.

    Args:
        config: As `job_config` gives it.
    """
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(config)
    try:
        yield OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    finally:
        HydraConfig.instance().cfg = before


def _named(config: DictConfig, plain: dict[str, Any], tracks: list[Track], split_index: str, index: str) -> Plan:
    choices = _choices(plain)
    weights = weight_hashes(plain["backbone"], plain["backbone_options"])
    signature = records.signature(plain, split_index, weights)
    written = configs.without_secrets(config, plain)
    written["data"]["protocol"] = plain["data"]["protocol"]
    leaf = runs.leaf(choices["backbone"], choices["loss"], choices["seed"], signature)
    return Plan(
        config=plain,
        written=written,
        tracks=tracks,
        signature=signature,
        configuration=records.configuration(plain, index, weights),
        folder=run_folder(plain, leaf),
        choices=choices,
        overrides=configs.overrides_without_secrets(_raw_overrides()),
    )


def unindexed(config: DictConfig) -> Plan:
    """Name a run whose data cannot be listed, so that its failure has a place."""
    return _named(config, configs.resolved(config), [], UNINDEXED, UNINDEXED)


def _choices(plain: dict[str, Any]) -> dict[str, Any]:
    picked = HydraConfig.get().runtime.choices
    return {
        "data": plain["data"]["name"],
        "protocol": plain["data"]["protocol"],
        "fold": plain["data"]["fold"],
        "spectrogram": picked.get("spectrogram"),
        "augment": picked.get("augment") or _steps(plain["augment"]),
        "backbone": plain["backbone"],
        "loss": picked.get("loss"),
        "seed": plain["seed"],
    }


def _steps(augment: dict[str, Any]) -> str:
    """Name an augmentation that was chosen as a list, which Hydra has no name for, by its steps."""
    if "_target_" in augment:
        return str(augment["_target_"]).rpartition(".")[2]
    return "+".join(sorted(name for name, step in augment.items() if step is not None)) or "none"


def _raw_overrides() -> list[str]:
    """List what was typed, `${…}` left as it is: read as attributes, Hydra's list would have secrets filled in."""
    return cast(list[str], OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False))


def sweeping() -> bool:
    """Say whether this is a job of a sweep: in the sweep's own process, or in one of its own, which is told its number."""
    settings = HydraConfig.get()
    return settings.mode is RunMode.MULTIRUN or not OmegaConf.is_missing(settings.job, "num")


def run_folder(plain: dict[str, Any], leaf: str) -> Path:
    """Place a run: `<runs>/<experiment or data>/<leaf>`, or where `hydra.run.dir` or `hydra.sweep.dir` say."""
    settings = HydraConfig.get()
    base = Path(plain["paths"]["runs"])
    if sweeping():
        given = Path(settings.sweep.dir)
        return (given if given != base else base / group_name(plain)) / leaf
    given = Path(settings.run.dir)
    return given if given != base else base / group_name(plain) / leaf


def sweep_folder(config: DictConfig, hydra: DictConfig | None = None) -> Path | None:
    """Place a sweep's runs as `run_folder` does; None for a data set without a name: the run itself will say so."""
    with contextlib.suppress(OmegaConfBaseException):
        settings = (hydra or config).hydra
        given, base = Path(settings.sweep.dir), Path(config.paths.runs)
        group = settings.runtime.choices.get("experiment") or config.data.name
        return given if given != base else base / str(group).replace("/", "_")
    return None


def group_name(plain: Any) -> str:
    """Name the folder that runs of one kind share: the experiment, or the data set."""
    return str(HydraConfig.get().runtime.choices.get("experiment") or plain["data"]["name"]).replace("/", "_")
