"""The command `musicnet-audit [overrides]`: hear every track, look for leaks, write what was found, exit with what it means."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from musicnet_eval import __version__, configs, records
from musicnet_eval.contracts import Track
from musicnet_eval.datasets import PROTOCOLS, assign_splits, fingerprint, split_settings
from musicnet_eval.errors import ConfigError, DataError, MusicnetError, RecordError, nearest
from musicnet_eval.pipes import ends_with_reader

if TYPE_CHECKING:
    from musicnet_eval.audit.listen import Heard

SCHEMA = 1
TURNABLE = ("data", "paths", "plugins")
CHECKSUMS = "checksums.json"
BESIDE = Path()  # in place of a FILE: `checksums.json` in the folder of the audit
MEASURED = ("seconds", "sample_rate", "channels", "format", "loudness", "peak", "silent", "clipped", "sha256", "reason")

DESCRIPTION = """\
Look through a data set before anything is trained on it: what it holds, which files are bad, which recordings are
in it twice (re-encoded, resampled, louder, shifted, cut out of a longer one), and whether a recording or a group
(artist, album, work) stands in two splits. Takes the data.* keys of musicnet-train. Trains nothing.

Writes audit.html (with sounds to compare), audit.json (all findings) and tracks.csv (one row a track) to
<paths.runs>/<data>/audit, prints a summary and the path of the page."""
EPILOG = """\
examples:
  musicnet-audit                                        the embedded data, data=tradition
  musicnet-audit data=gtzan data.root=~/gtzan data.protocol=stratified
  musicnet-audit data=csv data.manifest=songs.csv --write-checksums songs.sha256.json
  musicnet-audit data=csv data.manifest=songs.csv --verify songs.sha256.json

exit codes:
  0  no leak, and with --verify every file as it was
  1  a recording or a group stands in two splits, or with --verify a file is missing or changed
  2  bad usage or input: the data has no splits, or no track of it can be decoded
  130  interrupted by Ctrl-C"""


@ends_with_reader
def main(arguments: Sequence[str] | None = None) -> int:
    """Run `musicnet-audit` and give its exit code."""
    lines = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("musicnet-audit", description=DESCRIPTION, epilog=EPILOG, formatter_class=lines)
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="data=NAME, data.root=DIR, …, as for musicnet-train")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the audit goes; default: <paths.runs>/<data>/audit")
    beside = f"default: {CHECKSUMS} in that folder"
    for flag, what in (
        ("--write-checksums", "write the SHA-256 of every file"),
        ("--verify", "compare files with what it wrote"),
    ):
        parser.add_argument(flag, nargs="?", type=Path, const=BESIDE, metavar="FILE", help=f"{what}; {beside}")
    parser.add_argument("--workers", type=_count(1), metavar="N", help="processes that listen; default: one a core")
    parser.add_argument(
        "--snippets", type=_count(0), default=20, metavar="N", help="duplicates with sounds on the page; default: 20"
    )
    options = parser.parse_intermixed_args(arguments)
    for flag in ("write_checksums", "verify"):
        given = getattr(options, flag)
        if given and "=" in str(given):  # `--verify data=gtzan`: the override was taken for the file
            options.overrides.append(str(given))
            setattr(options, flag, BESIDE)
    try:
        return audit(options)
    except MusicnetError as error:
        print(f"musicnet-audit: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("musicnet-audit: interrupted; nothing was written", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise  # nobody reads: no file of the audit's is wrong
    except OSError as error:
        print(f"musicnet-audit: '{error.filename}' cannot be written ({error.strerror}). Give another --out.", file=sys.stderr)
        return MusicnetError.exit_code


def _count(least: int) -> Any:
    def number(text: str) -> int:
        if not text.isascii() or not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from {least} on")
        return int(text)

    return number


def audit(options: argparse.Namespace) -> int:
    """Audit the data set that the overrides name, write what was found, and give the exit code.

    Raises:
        MusicnetError: The overrides, the index, the splits or the checksums cannot be used, or no track can.
    """
    config = _config(options.overrides)
    choice = config["data"]
    folder: Path = options.out or Path(config["paths"]["runs"]) / choice["name"] / "audit"
    written = _read_checksums(_place(options.verify, folder)) if options.verify is not None else None
    tracks, split = _split(choice)
    folder.mkdir(parents=True, exist_ok=True)  # where that is impossible, it is better known now
    from musicnet_eval.audit import findings, page
    from musicnet_eval.audit.listen import listen_all

    heard = listen_all(tracks, choice["sample_rate"], choice["max_seconds"], options.workers)
    record = {
        "schema": SCHEMA,
        "kind": "audit",
        "data": choice["name"],
        **split,
        "max_seconds": choice["max_seconds"],
        "overrides": configs.overrides_without_secrets(options.overrides),
        **findings.summary(tracks, heard),
        "checksums": None if written is None else findings.changes(written, findings.checksums(tracks, heard)),
        "version": __version__,
        "written": records.now(),
    }
    records.write_json(folder / "audit.json", record)
    _write_tracks(folder / "tracks.csv", tracks, heard)
    sounds = page.snippets(record, {track.id: track.path for track in tracks}, options.snippets)
    records.write_text(folder / "audit.html", page.render(record, sounds))
    page.show(record)
    if options.write_checksums is not None:
        place = _place(options.write_checksums, folder)
        sums = findings.checksums(tracks, heard)
        records.write_json(place, {"schema": SCHEMA, "data": choice["name"], "sha256": sums})
        print(f"checksums of {len(sums)} of {len(tracks)} files: {place}")
    print(folder / "audit.html")
    return _exit_code(record)


def _exit_code(record: dict[str, Any]) -> int:
    if record["split_error"]:
        raise DataError(f"The data has no splits. {record['split_error']}")
    if not record["decoded"]:
        first = record["findings"]["bad_files"][0]
        raise DataError(f"None of {record['tracks']} tracks can be decoded: '{first['id']}' {first['reason']}. Check data.root.")
    changed = record["checksums"] or {"missing": [], "changed": []}
    return int(any([*record["leaks"].values(), changed["missing"], changed["changed"]]))


# --- what is given ------------------------------------------------------------------------------------------------------------


def _config(overrides: Sequence[str]) -> dict[str, Any]:
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        if "=" not in override or key.split(".")[0] not in TURNABLE:
            raise ConfigError(f"{override!r} cannot be turned in an audit; only {', '.join(TURNABLE)} can, as in data=gtzan.")
    config = configs.resolved(configs.compose(overrides))
    configs.check(config)
    for key, least, most in (("sample_rate", 1000, 384_000), ("max_seconds", 0.01, 86_400)):  # as the data module has it
        value = config["data"][key]
        if value is not None and (isinstance(value, (bool, str)) or not least <= value <= most):
            raise ConfigError(f"data.{key}={value!r} must be a number from {least} to {most}.")
    configs.import_plugins(config["plugins"])
    return config


def _split(choice: dict[str, Any]) -> tuple[list[Track], dict[str, Any]]:
    """List the tracks with their splits, those too that the protocol leaves out; without any where it cannot be followed."""
    tracks = configs.build(choice["index"], "data.index")
    if not tracks:
        raise DataError("The index lists no tracks. Check data.root, or data.manifest.")
    settings = {**split_settings(choice, tracks), "allow_group_overlap": True}  # an overlap is found, and shown
    if settings["protocol"] not in PROTOCOLS:
        raise DataError(
            f"data.protocol={settings['protocol']!r} is not a protocol; {nearest(str(settings['protocol']), PROTOCOLS)}"
        )
    try:
        done, error = assign_splits(tracks, **settings), None
    except DataError as problem:  # an audit is what a data set like this needs; it ends with the same error
        done, error = [], str(problem)
        print(f"note: there are no splits to look at. {error}", file=sys.stderr)
    split_of = {track.id: track.split for track in done}
    about = {key: settings[key] for key in ("protocol", "fold", "folds", "split_seed")}
    index = fingerprint(done) if done else None
    return [replace(track, split=split_of.get(track.id)) for track in tracks], {**about, "split_error": error, "index": index}


def _place(given: Path, folder: Path) -> Path:
    return folder / CHECKSUMS if given == BESIDE else given.expanduser()


def _read_checksums(path: Path) -> dict[str, str]:
    if not path.is_file():
        raise RecordError(f"'{path}' does not exist. Write it with --write-checksums while the data is as it should be.")
    sums = records.read_json(path).get("sha256")
    if not isinstance(sums, dict) or not all(isinstance(value, str) for value in sums.values()):
        raise RecordError(f"'{path}' holds no checksums. Give a file that --write-checksums wrote.")
    return sums


# --- what is written ----------------------------------------------------------------------------------------------------------


def _write_tracks(path: Path, tracks: Sequence[Track], heard: Sequence[Heard]) -> None:
    """Write one row a track; bytes of a name that are not UTF-8 as backslash escapes."""
    with (
        records.replacing(path) as temporary,
        temporary.open("w", newline="", encoding="utf8", errors="backslashreplace") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["id", "label", "group", "split", *MEASURED])
        for track, one in zip(tracks, heard, strict=True):
            measured = [getattr(one, name) for name in MEASURED] if one.reason is None else _unheard(one)
            writer.writerow([track.id, "|".join(track.labels), track.group, track.split or "", *measured])


def _unheard(one: Heard) -> list[Any]:
    return [getattr(one, name) if name in ("sha256", "reason") else None for name in MEASURED]
