from __future__ import annotations

import csv
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml

from musicnet_eval import evaluate, load_run, predict, records
from musicnet_eval.errors import RecordError
from tests.conftest import TINY, Command, only_run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the place of a run that all tests here copy; the first one trains it."""
    return tmp_path_factory.mktemp("trained") / "run"


@pytest.fixture
def run(trained: Path, tones: Path, train: Command, tmp_path: Path) -> Path:
    """Train on segments that do not divide the songs, so that the last window overlaps."""
    if not trained.exists():
        assert train("data=folder", f"data.root={tones}", "backbone=test_resnet", *TINY) == 0
        shutil.copytree(only_run(tmp_path), trained)
        return only_run(tmp_path)
    return Path(shutil.copytree(trained, tmp_path / "runs/folder/run"))


def test_predictions_equal_those_of_the_training(run: Path, tones: Path) -> None:
    loaded = load_run(run)
    rows = [row for row in records.read_predictions(run) if row.split == "test"]
    assert len(rows) == 6
    for row in rows:
        assert loaded.predict(tones / row.song) == pytest.approx(row.probabilities, abs=1e-5)


def test_a_stereo_run_predicts_what_its_evaluation_did(tones: Path, train: Command, tmp_path: Path) -> None:
    for file in tones.rglob("*.wav"):
        sound, rate = soundfile.read(file)
        target = tmp_path / "stereo" / file.relative_to(tones)
        target.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(target, np.stack([sound, -0.5 * sound], axis=1), rate)
    overrides = ("data=folder", f"data.root={tmp_path / 'stereo'}", "data.channels=2", "backbone=test_resnet", *TINY)
    assert train(*overrides, f"hydra.run.dir={tmp_path / 'run'}") == 0
    loaded = load_run(tmp_path / "run")
    assert loaded.record["facts"]["image_shape"][0] == 2
    for row in records.read_predictions(tmp_path / "run"):
        if row.split == "test":
            assert loaded.predict(tmp_path / "stereo" / row.song) == pytest.approx(row.probabilities, abs=1e-5)
    assert loaded.predict(tones / "low/0.wav")  # mono: two equal sides
    soundfile.write(tmp_path / "short.wav", np.full((2000, 2), 0.1), 8000)
    assert sum(loaded.predict(tmp_path / "short.wav").values()) == pytest.approx(1)


def test_long_files_other_rates_and_stereo(run: Path, tmp_path: Path) -> None:
    time = np.arange(3 * 44100) / 44100
    soundfile.write(tmp_path / "a.wav", np.stack([0.3 * np.sin(2 * np.pi * 900 * time)] * 2, axis=1), 44100)
    assert sum(load_run(run).predict(tmp_path / "a.wav").values()) == pytest.approx(1)


def test_the_loaded_run_in_python(run: Path) -> None:
    loaded = load_run(run)
    chances = loaded(torch.zeros(2, loaded.segment))
    assert chances.shape == (2, 3)
    torch.testing.assert_close(chances.sum(dim=1), torch.ones(2))
    assert loaded.classes == ("high", "low", "middle")


def test_formats(run: Path, tones: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(tones / "low/0.wav"), str(tones / "high/1.wav")]
    assert predict.main([str(run), *files, "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["path"] for row in rows] == files
    assert all(row["predicted"] == max(row["probabilities"], key=row["probabilities"].get) for row in rows)
    assert predict.main([str(run), *files, "--format", "csv"]) == 0
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [float(row["prob_low"]) for row in table] == pytest.approx([row["probabilities"]["low"] for row in rows], rel=1e-4)
    assert predict.main([str(run), str(tones), "--format", "json"]) == 0  # a folder stands for what is in it
    assert len(json.loads(capsys.readouterr().out)) == 18
    assert predict.main([str(run), *files]) == 0
    cells = [line.split("│")[1].strip() for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert "".join(cells) == "".join(files)  # long paths are folded, never cut


def test_a_bad_file_is_named_and_the_others_predicted(
    run: Path, tones: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.wav").write_text("no")
    assert predict.main([str(run), str(tmp_path / "bad.wav"), str(tones / "low/0.wav"), "--format", "json"]) == 2
    shown = capsys.readouterr()
    assert len(json.loads(shown.out)) == 1
    assert "bad.wav" in shown.err


@pytest.mark.parametrize("name", ["predict", "evaluate"])
def test_folders_that_are_no_runs(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = {"predict": lambda: predict.main([str(tmp_path), "a.wav"]), "evaluate": lambda: evaluate.main([str(tmp_path)])}
    assert command[name]() == 2
    assert "result.json' does not exist" in capsys.readouterr().err


def test_evaluate_again_gives_the_same_numbers(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "result.json").read_bytes()
    assert evaluate.main([str(run)]) == 0
    folder = Path(capsys.readouterr().out.strip().splitlines()[-1])
    assert folder.parent == run / "evaluations"
    metrics = json.loads((folder / "evaluation.json").read_text())["metrics"]
    trained = records.read_result(run)["metrics"]
    assert metrics == {key: value for key, value in trained.items() if key.startswith(("val/", "test/"))}
    assert (folder / "predictions.csv").read_bytes() == (run / "predictions.csv").read_bytes()
    assert (run / "result.json").read_bytes() == before


def test_evaluate_on_other_data(run: Path, tones: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(tones, tmp_path / "more")
    shutil.copy(tmp_path / "more/low/0.wav", tmp_path / "more/low/more.wav")
    assert evaluate.main([str(run), f"data.root={tmp_path / 'more'}", "data.hop_seconds=0.1"]) == 0
    folder = Path(capsys.readouterr().out.strip().splitlines()[-1])
    assert sum(json.loads((folder / "evaluation.json").read_text())["tracks"].values()) == 19


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("backbone=resnet18", "cannot be turned in an evaluation"),
        ("spectrogram.n_mels=64", "cannot be turned"),
        ("nonsense", "cannot be turned"),
        ("data.foldd=1", "do not compose"),
        ("data.fold=9", "data.fold=9 is outside"),
        ("data.fold=1", "6 of 12 songs to be tested (first: 'high/"),
        ("data.split_seed=1", "were trained on by this run"),
    ],
)
def test_evaluate_refusals(run: Path, override: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([str(run), override]) == 2
    assert message in capsys.readouterr().err


def test_evaluate_refuses_other_classes(run: Path, tones: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(tones, tmp_path / "other")
    (tmp_path / "other/low").rename(tmp_path / "other/lower")
    assert evaluate.main([str(run), f"data.root={tmp_path / 'other'}"]) == 2
    assert "differing: ['low', 'lower']" in capsys.readouterr().err


def test_a_checkpoint_of_another_network_is_refused(run: Path) -> None:
    path = run / "checkpoints/best.ckpt"
    state = torch.load(path, weights_only=True)["state_dict"]
    torch.save({"state_dict": {key: value for key, value in state.items() if "layer4" not in key}}, path)
    with pytest.raises(RecordError, match="belongs to another network"):
        load_run(run)
    path.write_bytes(b"half a checkpoint")
    with pytest.raises(RecordError, match="is not a checkpoint of tensors only"):
        load_run(run)
    path.unlink()
    with pytest.raises(RecordError, match="does not exist"):
        load_run(run)


class _Evil:
    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        import os

        return os.mkdir, (self.target,)


def test_a_strangers_checkpoint_runs_no_code(run: Path, tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "hyper_parameters": _Evil(str(tmp_path / "ran"))}, run / "checkpoints/best.ckpt")
    with pytest.raises(RecordError, match="tensors only"):
        load_run(run)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "target",
    [
        "os.mkdir",
        "torch.load",
        "torch.nn.modules.module.torch.load",  # what a pattern torch.nn.* would let through
        "musicnet_eval.configs.importlib.import_module",
        "builtins.open",
        "pathlib.Path.touch",
    ],
)
@pytest.mark.parametrize("place", ["spectrogram", "model", "data"])
def test_a_strangers_config_builds_nothing_of_its_own(run: Path, tmp_path: Path, target: str, place: str) -> None:
    record = json.loads((run / "result.json").read_text())
    node = {"_target_": target, "_args_": [str(tmp_path / "ran")]}
    if place == "spectrogram":
        record["config"]["spectrogram"] = record["config"]["datamodule"]["spectrogram"] = node
    elif place == "model":
        record["config"]["model"]["optimizer"] = node
    else:
        record["config"]["data"]["index"] = node
    (run / "result.json").write_text(json.dumps(record))
    with pytest.raises(RecordError, match="does not ship"):
        evaluate.evaluate(run, [])
    if place == "spectrogram":
        with pytest.raises(RecordError, match="does not ship"):
            load_run(run)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("place", ["optimizer", "scheduler"])
def test_a_strangers_interpolation_is_refused(run: Path, tmp_path: Path, place: str) -> None:
    """An interpolation would bring in, at building time, a node that the list of targets never saw."""
    record = json.loads((run / "result.json").read_text())
    record["config"]["model"][place] = f"${{oc.create:{{_target_:os.mkdir,path:{tmp_path / 'ran'}}}}}"
    (run / "result.json").write_text(json.dumps(record))
    with pytest.raises(RecordError, match="interpolation"):
        evaluate.evaluate(run, [])
    assert not (tmp_path / "ran").exists()


def test_plugins_of_a_run_are_printed_never_imported(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "stranger.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    record = json.loads((run / "result.json").read_text())
    record["config"]["plugins"] = ["stranger"]
    (run / "result.json").write_text(json.dumps(record))
    evaluate.evaluate(run, [])
    assert "plugins=['stranger'], which are not imported" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


def test_config_yaml_is_plain_yaml(run: Path) -> None:
    assert isinstance(yaml.safe_load((run / "config.yaml").read_text())["data"], dict)


@pytest.mark.slow
def test_names_that_are_no_utf8_go_the_whole_way(
    tones: Path, train: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = tmp_path / "music"  # Hydra itself takes no override that is not UTF-8
    shutil.copytree(tones, odd)
    for number in range(6):
        shutil.move(odd / "low" / f"{number}.wav", Path(os.fsdecode(os.fsencode(odd) + b"/low/\xe9t\xe9%d.wav" % number)))
    assert train("data=folder", f"data.root={odd}", "backbone=test_resnet", *TINY) == 0
    run = only_run(tmp_path / "runs")
    songs = {row.song for row in records.read_predictions(run)}
    assert songs & {f"low/\\xe9t\\xe9{number}.wav" for number in range(6)}
    for form in ("table", "csv", "json"):
        assert predict.main([str(run), str(odd / "low"), "--format", form]) == 0
    assert "\\xe9t\\xe9" in capsys.readouterr().out
