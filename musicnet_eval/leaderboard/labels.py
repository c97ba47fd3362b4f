"""What tells the rows of one table apart: their choices, their overrides, and `--by`."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from musicnet_eval import records
from musicnet_eval.contracts import RunRecord
from musicnet_eval.errors import ConfigError, nearest
from musicnet_eval.leaderboard.text import plain

SHOWN = ("backbone", "loss", "spectrogram", "augment")  # choices that tell rows apart; data and protocol head the table
BARE = SHOWN[:3]  # shown without their key; `none` alone would not say that it is the augmentation
# Keys that tell no configurations apart: seeds and folds, places, and what only shows progress.
QUIET = (
    *records.NOT_IN_CONFIGURATION,
    *("trainer.enable_progress_bar", "trainer.enable_model_summary", "trainer.log_every_n_steps"),
)

Settings = dict[str, str]  # what was chosen or overridden → its value


def settings(runs: Sequence[RunRecord]) -> Settings:
    """Give a configuration's choices, and the overrides that all its runs share."""
    choices = {name: plain(runs[0]["choices"].get(name)) for name in SHOWN}
    options = runs[0]["config"].get("backbone_options")
    if isinstance(options, Mapping) and options.get("pretrained") is True:
        choices["backbone"] += " (pretrained)"  # however it was asked for: on the command line or by an experiment
    shared = set.intersection(*(set(_overrides(run["overrides"]).items()) for run in runs))
    return {**choices, **dict(sorted(shared))}


def _overrides(overrides: Iterable[str]) -> Settings:
    """Split Hydra overrides into key and value, without those that tell no configurations apart, and without the choices."""
    pairs = (plain(override).partition("=") for override in overrides)
    found = {key.lstrip("+"): _canonical(value) for key, _, value in pairs}
    silent = {key for key in found if _below(key.lstrip("~").replace("/", "."), QUIET)}
    shown = {*silent, *SHOWN, "data", "data.protocol", "backbone_options.pretrained"}
    return {key: value for key, value in found.items() if key not in shown}


def _below(key: str, names: Iterable[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _canonical(value: str) -> str:
    """Write a number in one way: 1e-3 and 0.001 are the same override."""
    try:
        return f"{float(value):.10g}"
    except ValueError:
        return value


def labels(rows: Mapping[str, Settings], configs: Mapping[str, Any], by: Sequence[str] = ()) -> dict[str, str]:
    """Label each row by its backbone and all that differs between rows.

    Where that is not enough (a YAML file was edited between runs, or the songs changed), config values follow, then the
    configuration's own name.

    Args:
        rows: Settings of each row, by its configuration.
        configs: Resolved config of each row.
        by: The settings that make a row, where they were named; these alone are shown then.
    """
    if by:
        return {name: _label(row, by) for name, row in rows.items()}
    keys = dict.fromkeys(key for row in rows.values() for key in row)
    found = {name: _label(row, _telling(keys, rows.values(), "backbone")) for name, row in rows.items()}
    for label in _repeated(found):
        same = {name: _flat(configs[name]) for name in found if found[name] == label}
        keys = dict.fromkeys(sorted(key for row in same.values() for key in row if not _below(key, QUIET)))
        telling = _telling(keys, same.values())[:3]
        found |= {name: _label({"backbone": label, **row}, ["backbone", *telling]) for name, row in same.items()}
    unclear = _repeated(found)
    return {name: f"{label} · #{name[:6]}" if label in unclear else label for name, label in found.items()}


def _telling(keys: Iterable[str], rows: Iterable[Settings], always: str = "") -> list[str]:
    rows = list(rows)
    return [key for key in keys if key == always or len({row.get(key) for row in rows}) > 1]


def _repeated(found: Mapping[str, str]) -> list[str]:
    return [label for label, count in Counter(found.values()).items() if count > 1]


def _label(row: Settings, keys: Iterable[str]) -> str:
    return " · ".join(row[key] if key in BARE else f"{key}={row[key]}" for key in keys if key in row)


def _flat(config: Any, prefix: str = "") -> Settings:
    if not isinstance(config, dict):
        return {prefix: plain(config)}
    return {key: value for name, node in config.items() for key, value in _flat(node, f"{prefix}.{name}".lstrip(".")).items()}


def marginal(rows: Mapping[str, Settings], by: Sequence[str]) -> tuple[dict[str, list[str]], dict[str, Settings], str]:
    """Join configurations that agree in `by`, if each joined row averages over the same of everything else.

    Args:
        rows: Settings of each configuration.
        by: The settings that make a row.

    Returns:
        The configurations of each joined row, its settings, and a note on what it averages over (empty: nothing).

    Raises:
        ConfigError: A name in `by` is not known, or the rows would average over different things.
    """
    known = sorted({key for row in rows.values() for key in row})
    for name in by:
        if name not in known:
            raise ConfigError(f"--by {plain(name)} is neither a choice nor an override of these runs: {nearest(name, known)}")
    joined, kept, rest = defaultdict(list), {}, defaultdict(list)
    for configuration, row in rows.items():
        full = {key: row.get(key, "(default)") for key in known}
        name = json.dumps([full[key] for key in by])
        joined[name].append(configuration)
        kept[name] = {key: full.pop(key) for key in dict.fromkeys(by)}
        rest[name].append(json.dumps(full))
    others = {name: [json.loads(text) for text in texts] for name, texts in rest.items()}
    varied = {key: sorted({one[key] for group in others.values() for one in group}) for key in known if key not in by}
    varied = {key: values for key, values in varied.items() if len(values) > 1}
    if len({tuple(sorted(texts)) for texts in rest.values()}) > 1:
        uneven = [key for key in varied if len({tuple(sorted(one[key] for one in group)) for group in others.values()}) > 1]
        raise ConfigError(
            f"--by {','.join(by)} would average over different things: the rows differ in {', '.join(uneven or varied)}. "
            f"Use --by {','.join([*by, *(uneven or varied)])}, or give folders in which every row has them all."
        )
    over = "; ".join(f"{key} ({', '.join(values)})" for key, values in varied.items())
    return dict(joined), kept, f"Each row averages over {over}; its sd holds their differences too." if over else ""
