"""Label trust: the numbers of a plain loop, wrong labels found where sound tells them, sums that survive processes."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

from musicnet_eval import report
from musicnet_eval.contracts import Track
from musicnet_eval.errors import ConfigError
from musicnet_eval.label_trust import LabelTrust, Suspect, suspects
from tests.conftest import TINY, Command, only_run
from tests.fake_runs import PNG, write_run

CLASSES = ("a", "b", "c")


def read(run: Path) -> list[dict[str, str]]:
    with (run / "suspect_labels.csv").open(newline="", encoding="utf8") as file:
        return list(csv.DictReader(file))


# --- the numbers ----------------------------------------------------------------------------------------------------------------

LISTEN = """
import json, pathlib
from lightning.pytorch.callbacks import Callback


class Listen(Callback):
    '''Write down what the callback is about: the scores and the label of every song, step by step.'''

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        lines = [
            json.dumps([trainer.datamodule.tracks[song].id, label, scores])
            for song, label, scores in zip(batch["song"].tolist(), batch["label"].tolist(), outputs["scores"].tolist())
        ]
        with open(f"heard{trainer.global_rank}", "a") as file:
            file.write("\\n".join(lines) + "\\n")
"""
RUN = ("data=folder", "backbone=test_resnet", *TINY, "trainer.max_epochs=3", "plugins=[listen]")
RUN = (*RUN, "+callbacks.listen={_target_: listen.Listen}")


def by_plain_loop(heard: list[list]) -> dict[str, tuple[float, float, int]]:
    """Average the ratio of the label's probability to the largest one, and the largest other probability's class and mean."""
    ratios, chances, labels = defaultdict(list), defaultdict(list), {}
    for song, label, scores in heard:
        p = np.exp(np.array(scores, dtype=np.float64))
        p /= p.sum()
        ratios[song].append(p[label] / p.max())
        chances[song].append(p)
        labels[song] = label
    told = {}
    for song, values in ratios.items():
        mean = np.mean(chances[song], axis=0)
        mean[labels[song]] = -1
        told[song] = (float(np.mean(values)), float(mean.max()), len(values))
    return told


def check_against_loop(run: Path, heard: list[Path]) -> None:
    rows = read(run)
    told = by_plain_loop([json.loads(line) for file in heard for line in file.read_text().splitlines()])
    assert {row["song"] for row in rows} == set(told)
    for row in rows:
        trust, chance, times = told[row["song"]]
        assert float(row["trust"]) == pytest.approx(trust, abs=1e-5)
        assert float(row["probability"]) == pytest.approx(chance, abs=1e-5)
        assert int(row["times"]) == times
    assert [int(row["rank"]) for row in rows] == list(range(1, len(rows) + 1))
    trusts = [float(row["trust"]) for row in rows]
    assert trusts == sorted(trusts)


def test_equals_a_plain_loop_and_draws_the_least_trusted(tones: Path, train: Command, tmp_path: Path):
    (tmp_path / "listen.py").write_text(LISTEN)
    assert train(*RUN, f"data.root={tones}", "callbacks.label_trust.pictures=2") == 0
    run = only_run(tmp_path)
    check_against_loop(run, [tmp_path / "heard0"])
    last = [json.loads(line) for line in (tmp_path / "heard0").read_text().splitlines()][-6:]  # an epoch hears each song once
    ratios = [trust for trust, _, _ in by_plain_loop(last).values()]
    with (run / "metrics.csv").open(newline="") as file:
        *_, epoch = csv.DictReader(file)
    assert float(epoch["train/song/trust_mean"]) == pytest.approx(np.mean(ratios), abs=1e-5)
    assert float(epoch["train/song/trust_low"]) == pytest.approx(np.mean(np.array(ratios) < 0.5), abs=1e-5)
    rows = read(run)
    assert all(row["label"] != row["instead"] and row["song"].startswith(row["label"]) for row in rows)
    assert [row["picture"] for row in rows] == ["suspect-1.png", "suspect-2.png", "", "", "", ""]
    with Image.open(run / "pictures/suspect-1.png") as picture:
        assert picture.size == (32 * 5, 32 * 5)  # 32 bins and 32 frames, five times as large


TWO = """
import sys, pathlib, lightning
from functools import partial
from listen import Listen
from musicnet_eval.classifier import MusicClassifier
from musicnet_eval.datamodule import MusicDataModule
from musicnet_eval.datasets import assign_splits, folder
from musicnet_eval.label_trust import LabelTrust
from musicnet_eval.spectrograms import LogMel

tracks = assign_splits(folder(sys.argv[1]), "group_kfold", folds=3)
front = LogMel(sample_rate=8000, n_fft=256, hop_length=128, n_mels=32)
size = {"sample_rate": 8000, "segment_seconds": 0.5, "batch_size": 2}
data = MusicDataModule(tracks, front, cache_dir=pathlib.Path("cache").resolve(), **size)
data.setup()
model = MusicClassifier(data.facts, len(tracks), "stats_linear")
trainer = lightning.Trainer(
    accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, logger=False, enable_checkpointing=False, default_root_dir="run",
    num_sanity_val_steps=0, use_distributed_sampler=False, callbacks=[LabelTrust(0), Listen()], enable_progress_bar=False,
)
trainer.fit(model, datamodule=data)
"""


@pytest.mark.slow
def test_two_processes_sum_what_each_has_seen(tones: Path, tmp_path: Path):
    (tmp_path / "listen.py").write_text(LISTEN)
    (tmp_path / "two.py").write_text(TWO)
    done = subprocess.run(
        [sys.executable, "two.py", str(tones)], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "heard1").stat().st_size > 0
    check_against_loop(tmp_path / "run", [tmp_path / "heard0", tmp_path / "heard1"])


def test_several_labels_take_the_probability_of_those_given():
    trust = LabelTrust()
    scores = torch.tensor([[0.0, 2.0, -1.0], [3.0, 0.0, 0.0]])
    label = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    from musicnet_eval.label_trust import _row

    row = _row(scores, label, multilabel=True)
    p = 1 / (1 + np.exp(-scores.numpy()))
    assert row[:, 3].numpy() == pytest.approx([(p[0, 0] + p[0, 1]) / 2, p[1, 2]])
    tracks = [Track("x", Path("x"), ("a", "b"), "x"), Track("y", Path("y"), ("c",), "y")]
    first, second = suspects(row, tracks, CLASSES)
    assert (first.song, first.label, first.instead) == ("y", "c", "a")
    assert (second.song, second.label, second.instead) == ("x", "a|b", "c")
    assert trust.state_dict() == {}


def test_soft_labels_of_one_song_equal_hard_ones_at_the_corner():
    from musicnet_eval.label_trust import _row

    scores = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    label = torch.tensor([0, 1, 2, 1, 0])
    hard, soft = _row(scores, label, multilabel=False), _row(scores, torch.eye(3)[label], multilabel=False)
    torch.testing.assert_close(hard, soft)


def test_songs_never_trained_on_are_left_out_and_ties_go_by_name():
    total = torch.tensor([[0.5, 0.5, 0.0, 1.0, 2.0], [0.0, 0.0, 0.0, 0.0, 0.0], [0.2, 0.3, 0.5, 0.5, 1.0]])
    tracks = [Track(name, Path(name), ("a",), name) for name in ("z", "never", "b")]
    found = suspects(total, tracks, CLASSES, pictures=1)
    assert found == [
        Suspect(1, "b", "b", "a", 0.5, "c", 0.5, 1, "suspect-1.png"),
        Suspect(2, "z", "z", "a", 0.5, "b", 0.25, 2, ""),
    ]


@pytest.mark.parametrize("pictures", [-1, 1.5, True])
def test_a_wrong_number_of_pictures_is_refused(pictures):
    with pytest.raises(ConfigError, match=r"callbacks\.label_trust\.pictures="):
        LabelTrust(pictures=pictures)


# --- what it is for -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many_tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make 4 classes of tones that any ear tells apart, 30 tracks each."""
    root = tmp_path_factory.mktemp("many")
    draw = np.random.default_rng(1)
    time = np.arange(6400) / 8000
    for name, pitch in (("a", 250.0), ("b", 600.0), ("c", 1300.0), ("d", 2600.0)):
        (root / name).mkdir()
        for number in range(30):
            tone = 0.3 * np.sin(2 * np.pi * pitch * draw.uniform(0.95, 1.05) * time + draw.uniform(0, 6))
            soundfile.write(root / name / f"{number}.wav", tone + 0.02 * draw.standard_normal(len(time)), 8000)
    return root


@pytest.mark.parametrize("loss", ["cross_entropy", "balanced_trusted_robust"])
@pytest.mark.slow
def test_finds_planted_labels_where_sound_tells_them(many_tones: Path, train: Command, tmp_path: Path, loss: str):
    more = ("data.folds=5", "data.batch_size=8", "trainer.max_epochs=8", "optimizer.lr=0.03", "callbacks=label_trust")
    planted = "data.plant.wrong_labels=0.2"
    assert train("data=folder", f"data.root={many_tones}", "backbone=stats_linear", *TINY, *more, planted, f"loss={loss}") == 0
    run = only_run(tmp_path)
    with (run / "planted.csv").open(newline="") as file:
        true = {row["song"]: row["true_label"] for row in csv.DictReader(file)}
    rows = read(run)
    wrong = [row["song"] in true for row in rows]
    assert sum(wrong) == len(true) == 4 * 4  # of 18 training songs a class
    assert roc_auc_score(wrong, [-float(row["trust"]) for row in rows]) >= 0.95
    assert np.mean([row["instead"] == true[row["song"]] for row in rows if row["song"] in true]) >= 0.75
    assert not (run / "pictures").exists()


# --- in the report --------------------------------------------------------------------------------------------------------------

EVIL = "<script>alert(1)</script>"
HEAD = "rank,song,group,label,trust,instead,probability,times,picture\n"


def page(folder: Path) -> str:
    return report.write([folder], folder / "report.html").read_text(encoding="utf8")


def figures(text: str) -> list[str]:
    section = text.rpartition("Labels to listen to")[2].partition("</section>")[0]  # not the list of contents
    return re.findall(r"<figure>.*?</figure>", section, flags=re.DOTALL)


def test_report_averages_places_over_runs_and_leaves_planted_runs_out(tmp_path: Path):
    lists = (
        "1,x,g,a,0.001,b,0.9,3,suspect-1.png\n2,y,g,a,0.002,b,0.8,3,\n3,z,z,b,0.9,a,0.1,3,\n",
        "1,y,g,a,0.5,b,0.6,3,suspect-1.png\n2,z,z,b,0.6,c,0.3,3,\n3,x,g,a,0.7,c,0.3,3,\n",
    )
    for seed, lines in enumerate(lists):
        run = write_run(tmp_path, seed=seed)
        (run / "suspect_labels.csv").write_text(HEAD + lines)
        (run / "pictures").mkdir(exist_ok=True)
        (run / "pictures/suspect-1.png").write_bytes(PNG)
    planted = write_run(tmp_path, seed=7)
    (planted / "suspect_labels.csv").write_text(HEAD + "1,planted,g,a,0.0,b,1,3,\n")
    record = json.loads((planted / "result.json").read_text())
    record["facts"]["planted"] = {"wrong_label": 3}
    (planted / "result.json").write_text(json.dumps(record))
    text = page(tmp_path)
    first, second, third = figures(text)  # mean places: y 1/2, x 2/3, z 5/6
    assert "1. y<" in first
    assert "labelled a; 2 of 2 runs say rather b; trust 0.251; group g" in first
    assert "2. x<" in second
    assert "1 of 2 runs" in second
    assert "3. z<" in third
    assert "group" not in third
    assert ["<img" in one for one in (first, second, third)] == [True, True, False]
    assert "of 3 songs over 2 runs" in text
    assert "made wrong on purpose: 1 runs" in text


@pytest.mark.parametrize("lines", ["1,x\n", "1,x,g,a,much,b,1,1,\n", "", "\x00"])
@pytest.mark.slow
def test_report_does_without_a_damaged_list(tmp_path: Path, lines: str):
    run = write_run(tmp_path)
    (run / "suspect_labels.csv").write_text(HEAD + lines)
    assert "Labels to listen to" not in page(tmp_path)


def test_report_escapes_the_list_and_reads_no_picture_elsewhere(tmp_path: Path):
    run = write_run(tmp_path)
    (tmp_path / "secret.png").write_bytes(PNG)
    (run / "suspect_labels.csv").write_text(HEAD + f"1,{EVIL},{EVIL},{EVIL},0.1,{EVIL},1,1,../../secret.png\n")
    text = page(tmp_path)
    (figure,) = figures(text)
    assert "<script" not in figure
    assert "<img" not in figure
    assert "alert(1)" in figure
