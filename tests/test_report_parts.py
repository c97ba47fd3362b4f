"""What the report shows beside the table: each part against another library or a plain loop, and whatever strangers write."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import precision_recall_fscore_support
from sklearn.preprocessing import MultiLabelBinarizer

from musicnet_eval import leaderboard, records, report
from musicnet_eval.records import Prediction
from musicnet_eval.report import comparison, methods, songs
from musicnet_eval.report.figures import PRINT
from musicnet_eval.significance import cliques
from tests.fake_runs import predictions, write_audit, write_hardest, write_run
from tests.test_report import EVIL, Page, write

CLASSES = ("a", "b", "c", "d")


def test_runs_in_wandb_are_linked_by_web_addresses_alone(tmp_path):
    urls = ("https://wandb.ai/lab/music/runs/1", "javascript:alert(1)", ["https://x"], None)
    for seed, url in enumerate(urls):
        changed(write_run(tmp_path, 15, seed=seed) / "result.json", facts={"classes": ["blues", "jazz"], "wandb": {"url": url}})
    links = [link["href"] for link in Page(write(tmp_path)).named("a") if "rel" in link]
    assert links == [urls[0]]


def answers(seed: int, count: int = 60, several: bool = False) -> list[Prediction]:
    """Draw what a network says of some songs."""
    draw = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        chances = draw.dirichlet(np.ones(len(CLASSES)))
        label, said = CLASSES[draw.integers(len(CLASSES))], CLASSES[int(chances.argmax())]
        if several:
            label, said = ("|".join(np.array(CLASSES)[draw.random(len(CLASSES)) < 0.4]) for _ in range(2))
        rows.append(Prediction("test", f"song{i}", f"song{i}", label, said, dict(zip(CLASSES, chances, strict=True))))
    return rows


def table_of(folder: Path, metric: str = leaderboard.METRIC) -> leaderboard.Table:
    (table,) = leaderboard.collect([folder], metric).tables
    return table


# --- classes, calibration, hardest songs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("several", [False, True], ids=["one label", "several"])
def test_classes_are_scikit_learns(tmp_path, several):
    both = [answers(seed, several=several) for seed in range(2)]
    for seed, rows in enumerate(both):
        write_run(tmp_path, rows=rows, classes=CLASSES, seed=seed)
    true, said = ([getattr(row, name).split("|") for rows in both for row in rows] for name in ("label", "predicted"))
    binary = MultiLabelBinarizer(classes=CLASSES)
    told = [binary.fit_transform([[name for name in names if name] for names in texts]) for texts in (true, said)]
    expected = np.array(precision_recall_fscore_support(*told, zero_division=0))
    found = songs.by_class(table_of(tmp_path).rows[0])
    assert [one.name for one in found] == list(CLASSES)
    np.testing.assert_allclose(np.array([one[1:] for one in found], dtype=float).T, expected)
    cells = [row for row in Page(write(tmp_path)).rows if row[0] in CLASSES and len(row) == 5]
    assert [row[1] for row in cells] == [f"{value:.3f}" for value in expected[2]]


def test_reliability_points_are_those_of_a_plain_loop(tmp_path):
    rows = answers(0, 200)
    write_run(tmp_path, rows=rows, classes=CLASSES)
    found = songs.claims(table_of(tmp_path).rows[0])
    points = []
    for low in range(10):
        held = [row for row in rows if low / 10 <= round(row.probabilities[row.predicted], 6) < (low + 1) / 10]
        if held:
            sure = sum(row.probabilities[row.predicted] for row in held) / len(held)
            points.append((sure, sum(row.label == row.predicted for row in held) / len(held), len(held)))
    top, bottom = songs.reliability_figure(found, PRINT).axes
    line = next(line for line in top.lines if line.get_marker() == "o")
    np.testing.assert_allclose(line.get_xydata(), [point[:2] for point in points], atol=1e-5)
    assert sorted(bar.get_height() for bar in bottom.patches) == sorted(count for *_, count in points)
    sure = np.mean([row.probabilities[row.predicted] for row in rows])
    right = np.mean([row.label == row.predicted for row in rows])
    assert f"Says {sure:.3f}, is right in {right:.3f}: {abs(sure - right):.3f} too sure, over 200 songs" in write(tmp_path)


def test_a_certain_answer_is_in_the_last_bin(tmp_path):
    certain = [row._replace(probabilities={"blues": 1.0, "jazz": 1.0}) for row in predictions(15, 20, ["blues", "jazz"])]
    write_run(tmp_path, rows=certain)
    _, bottom = songs.reliability_figure(songs.claims(table_of(tmp_path).rows[0]), PRINT).axes
    (bar,) = bottom.patches
    assert (bar.get_height(), round(bar.get_x() + bar.get_width() / 2, 6)) == (20, 0.95)


def test_hardest_songs_are_those_of_a_pandas_group_by(tmp_path):
    frames = []
    for number, backbone in enumerate(("x", "y", "z")):
        rows = (
            answers(0) if number == 0 else [row._replace(predicted=CLASSES[(i + number) % 4]) for i, row in enumerate(answers(0))]
        )
        write_run(tmp_path, rows=rows, classes=CLASSES, backbone=backbone)
        frames.append(pd.DataFrame(rows))
    frame = pd.concat(frames)
    frame["wrong"] = frame.label != frame.predicted
    counts = frame.groupby("song").wrong.agg(["sum", "count"]).reset_index()
    expected = counts[counts["sum"] > 0].sort_values(["sum", "song"], ascending=[False, True]).head(songs.MOST_SONGS)
    found = songs.hardest(table_of(tmp_path))
    assert [(one["song"], one["wrong"], one["runs"]) for one in found] == [tuple(row) for row in expected.to_numpy()]
    first = frame[(frame.song == found[0]["song"]) & frame.wrong].predicted.value_counts()
    assert {f"{name} ({count})" for name, count in first.items()} == set(found[0]["instead"].split(", "))
    assert [one["place"] for one in found] == list(range(1, len(found) + 1))


def test_hardest_songs_have_the_picture_that_any_run_drew(tmp_path):
    write_run(tmp_path, 18, backbone="x")
    write_hardest(write_run(tmp_path, 17, backbone="y"), ["song0-18", "unknown"])
    text = write(tmp_path)
    assert [image["alt"] for image in Page(text).named("img")] == ["Spectrogram of song0-18"]
    assert "<strong>2. song0-19</strong>: jazz, taken for blues (2); wrong in 2 of 2 runs" in text


@pytest.mark.parametrize("listed", ["{", "{}", "[1, null, {}]", '[{"song": 1, "file": "hardest-0.png"}]', "[" * 100_000])
def test_damaged_lists_of_hardest_songs_are_none(tmp_path, listed):
    run = write_hardest(write_run(tmp_path, 15), ["song0-18"])
    (run / "pictures" / "hardest.json").write_text(listed)
    assert not Page(write(tmp_path)).named("img")


# --- comparisons --------------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(1, 6).map(float), st.integers(0, 6).map(float)), min_size=1, max_size=12), st.booleans())
def test_front_is_what_brute_force_finds(points, lower):
    sign = -1 if lower else 1

    def beaten(one):
        return any(
            other != one and other[0] <= one[0] and sign * other[1] >= sign * one[1]
            for other in points
        )  # fmt: skip

    found = comparison.front(points, lower=lower)
    assert {points[i] for i in found} == {point for point in points if not beaten(point)}
    assert len({points[i] for i in found}) == len(found)
    assert [points[i][0] for i in found] == sorted(points[i][0] for i in found)


@pytest.mark.parametrize("metric", ["test/song/accuracy", "test/song/log_loss"])
def test_grid_is_a_pandas_pivot(tmp_path, metric):
    told = []
    for number, (backbone, loss) in enumerate((("x", "ce"), ("x", "ls"), ("y", "ce"), ("y", "ls"), ("y", "ls"), ("z", "ce"))):
        write_run(tmp_path, 8 + 2 * number, backbone=backbone, loss=loss, spectrogram=f"s{number}")
        score = (8 + 2 * number) / 20
        told.append((backbone, loss, 1.5 - score if metric.endswith("log_loss") else score))
    pivot = pd.DataFrame(told, columns=["backbone", "loss", "score"]).pivot_table("score", "backbone", "loss")
    found = comparison.grid(table_of(tmp_path, metric))
    assert found is not None
    shares = {}
    for backbone, line in zip(found.backbones, found.cells, strict=True):
        for loss, cell in zip(found.losses, line, strict=True):
            expected = pivot.loc[backbone, loss]
            assert (cell is None) == np.isnan(expected)
            if cell is not None:
                assert cell[0] == f"{expected:.4f}"
                shares[cell[1]] = expected
    best = pivot.min().min() if metric.endswith("log_loss") else pivot.max().max()
    assert shares[max(shares)] == pytest.approx(best)
    assert (max(shares), min(shares)) == (1, 0)


def test_one_loss_makes_no_grid(tmp_path):
    write_run(tmp_path, backbone="x")
    write_run(tmp_path, backbone="y")
    assert comparison.grid(table_of(tmp_path)) is None
    assert "Backbone by loss" not in write(tmp_path)


@pytest.fixture
def data_sets(tmp_path):
    """Seven data sets on which a beats b, and c is far behind; with this many, signed ranks can tell rows apart."""
    for number in range(7):
        for backbone, correct in (("a$x$", 90 + number), ("b", 85 if number % 2 else 97), ("c", 20), ("d", 10)):
            write_run(tmp_path, correct, 100, data=f"data{number}", backbone=backbone)
    return tmp_path


def test_critical_difference_diagram_has_every_rank_and_bar(data_sets):
    board = leaderboard.collect([data_sets])
    standing = board.standing
    assert standing is not None
    figure = comparison.critical_difference(standing, PRINT)
    (axes,) = figure.axes
    texts = [text.get_text() for text in axes.texts]
    for label, rank in zip(standing.labels, standing.ranks.ranks, strict=True):
        assert f" {label.replace('$', chr(92) + '$')} ({rank:.2f}) " in texts
    assert [text for text in texts if text.isdigit()] == ["1", "2", "3", "4"]
    bars = [tuple(line.get_xdata()) for line in axes.lines if line.get_color() == PRINT.train]
    ranks = standing.ranks.ranks
    assert bars == [(ranks[bar[0]], ranks[bar[-1]]) for bar in cliques(ranks, standing.same())]
    low, high = next(line.get_xdata() for line in axes.lines if line.get_color() == PRINT.val)
    assert high - low == pytest.approx(min(standing.ranks.critical_difference, 3))
    assert "critical difference" in " ".join(texts)


def test_labels_of_the_diagram_lie_within_it_and_apart(data_sets):
    figure = comparison.critical_difference(leaderboard.collect([data_sets]).standing, PRINT)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    boxes = [text.get_window_extent() for text in axes.texts if "(" in text.get_text()]
    width, height = figure.get_size_inches() * figure.dpi
    for box in boxes:
        assert box.x0 >= 0
        assert box.y0 >= -1
        assert box.x1 <= width
        assert box.y1 <= height
    assert not [1 for i, one in enumerate(boxes) for other in boxes[:i] if one.overlaps(other)]


@pytest.mark.slow
def test_page_shows_the_diagram(data_sets):
    text = write(data_sets)
    (figure,) = re.findall(r'<svg role="img" aria-label="Critical-difference.*?</svg>', text, flags=re.DOTALL)
    assert "Nemenyi" in "".join(ET.fromstring(figure).itertext())
    assert "Mean ranks over 7 data sets" in text


# --- what was done ------------------------------------------------------------------------------------------------------------


def test_methods_name_data_protocol_songs_seeds_tests_and_versions(tmp_path):
    config = {
        "trainer": {"max_epochs": 7},
        "data": {"batch_size": 32, "segment_seconds": 3.0, "sample_rate": 22050},
        "monitor": "val/song/accuracy",
    }
    for seed in range(3):
        write_run(tmp_path, 15, groups=10, seed=seed, config=config, backbone="x")
        write_run(tmp_path, 12, groups=10, seed=seed, config=config, backbone="y")
    told = methods.paragraph(table_of(tmp_path))
    for words in (
        "2 configurations were compared on toy under the protocol group_kfold (fold 0): 20 test songs in 10 groups, 2 classes",
        "3 seed(s) (in all: 0; 1; 2), for 7 epochs in batches of 32, on segments of 3.0 s at 22050 Hz seen as mel spectrograms",
        "best val/song/accuracy was kept",
        "Reported is test/song/accuracy",
        "paired tests on the same songs, corrected for all pairs (Holm)",
        "Versions: timm 1.0.22, torch 2.9.0.",
        "Hardware: device cpu.",
    ):
        assert words in told
    assert told in write(tmp_path).replace("&#39;", "'")


def test_audits_are_summed_up_below_their_table(tmp_path):
    write_run(tmp_path)
    write_audit(tmp_path / "toy" / "audit")
    write_audit(tmp_path / "other" / "audit", data="other")
    text = write(tmp_path)
    assert "Audit of fold 0: 60 of 60 tracks heard, 1.5 h; recordings found twice: 2, of which across splits: 1" in text
    assert text.count("Audit of fold") == 1


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"leaks": 3}', '{"leaks": {}, "findings": []}', "\x00", "9" * 5000])
@pytest.mark.slow
def test_damaged_audits_are_named(tmp_path, content):
    write_run(tmp_path / "runs")
    path = write_audit(tmp_path / "toy" / "audit") / "audit.json"
    path.write_text(content)
    text = write(tmp_path)
    assert "Audits not readable, left out (1)" in text
    assert "<code>toy/audit/audit.json</code> (audit): " in text
    assert str(tmp_path) not in text


@pytest.mark.parametrize("change", [{"hours": float("inf")}, {"tracks": "many"}, {"hours": None}, {"findings": {}}, {"leaks": 1}])
@pytest.mark.slow
def test_audits_of_wrong_types_are_named(tmp_path, change):
    write_run(tmp_path / "runs")
    path = write_audit(tmp_path / "toy" / "audit") / "audit.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change).replace("Infinity", "1e999"))
    assert "Audit" in write(tmp_path)


# --- LaTeX --------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_latex_names_figures_that_exist_and_escapes_what_tex_would_read(tmp_path, capsys):
    evil = "50%_a&b#{c}~$d$^\\input{x}"
    for seed in range(2):
        for backbone, loss in ((evil, "ce"), ("y", "ce"), (evil, "ls"), ("y", "ls")):
            write_run(
                tmp_path / "runs", 15 + seed, seed=seed, backbone=backbone.replace("/", ""), loss=loss, classes=("x$y$", "b_c")
            )
    assert report.main([str(tmp_path / "runs"), "--format", "latex", "--output", str(tmp_path / "paper")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "paper" / "report.tex")
    text = (tmp_path / "paper" / "report.tex").read_text(encoding="utf8")
    named = set(re.findall(r"includegraphics\[width=\\linewidth\]\{(.*?)\}", text))
    present = {str(path.relative_to(tmp_path / "paper")) for path in (tmp_path / "paper").rglob("*.pdf")}
    assert named == present
    for kind in ("forest", "backbone-loss", "curves", "classes", "confusion", "reliability"):
        assert any(f"figures/{kind}-1" in name for name in named), kind
    assert all((tmp_path / "paper" / name).read_bytes().startswith(b"%PDF") for name in named)
    assert all(re.fullmatch(r"figures/[A-Za-z0-9-]+\.pdf", name) for name in named)
    assert r"50\%\_a\&b\#\{c\}\textasciitilde{}\$d\$\textasciicircum{}\textbackslash{}input\{x\}" in text
    assert r"\input" not in text
    assert r"\paragraph{Methods.} 4 configurations" in text


@pytest.mark.slow
def test_latex_is_the_same_twice(tmp_path):
    write_run(tmp_path / "runs")
    for name in ("one", "two"):
        assert report.main([str(tmp_path / "runs"), "--format", "latex", "--output", str(tmp_path / name)]) == 0
    for path in (tmp_path / "one").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()


# --- strangers' records -------------------------------------------------------------------------------------------------------


def test_texts_of_strangers_run_nothing_in_any_part(tmp_path):
    quoted = "\"'><img src=x onerror=alert(1)>"
    rows = [Prediction("test", f"{EVIL}{i}", quoted, (EVIL, quoted)[i % 2], quoted, {EVIL: 0.4, quoted: 0.6}) for i in range(10)]
    for backbone in (EVIL, quoted):
        for loss in (EVIL, quoted):
            run = write_run(tmp_path, rows=rows, classes=(EVIL, quoted), backbone=backbone, loss=loss, data=EVIL, protocol=quoted)
            write_hardest(run, [row.song for row in rows])
            record = records.read_json(run / "result.json")
            record["facts"] |= {"tracks": {EVIL: quoted}, "bad_tracks": {quoted: EVIL}, "leaky": True, "planted": {EVIL: 1}}
            record["git"] = {EVIL: quoted}
            records.write_json(run / "result.json", record)
    write_audit(tmp_path / "audit", data=EVIL, protocol=quoted, fold=EVIL, written=quoted)
    write_audit(tmp_path / "bad" / EVIL.replace("/", ""), tracks=EVIL)
    text = write(tmp_path)
    page = Page(text)
    for part in ("Hardest songs", "Classes", "Audit of fold", "Backbone by loss", "Left out as unusable", "Audits not readable"):
        assert part in text
    assert text.count("alert(1)") > 60
    assert len(page.named("script")) == 1
    assert all(image["src"].startswith("data:image/png;base64,") for image in page.named("img"))
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert {EVIL, quoted} <= {row[0] for row in page.rows}  # as text, in a cell


def changed(path: Path, **change: Any) -> None:
    record = json.loads(path.read_text())
    for name, value in change.items():
        record[name] = {**record[name], **value} if isinstance(value, dict) and isinstance(record.get(name), dict) else value
    path.write_text(json.dumps(record))


@pytest.mark.parametrize(
    "change",
    [
        {"facts": {"classes": 3}},
        {"facts": {"classes": [1, None, {"a": 1}]}},
        {"facts": {"classes": "blues"}},
        {"facts": {"tracks": [1], "bad_tracks": 3, "planted": 1, "leaky": []}},
        {"facts": {"tracks": {"train": [1]}, "bad_tracks": [1, {}], "multilabel": "no"}},
        {"choices": {"fold": {"a": 1}, "seed": [1]}},
        {"choices": {"backbone": None, "loss": {"_target_": "x"}}},
        {"choices": {"data": ["x"], "protocol": 3}},
        {"config": []},
        {"config": {"trainer": 3, "data": [1], "monitor": {"a": 1}}},
        {"versions": [1], "hardware": "cpu", "git": 3},
        {"versions": None, "hardware": {"a": [1]}, "git": {"b": None}},
        {"metrics": {"gap/segment/accuracy": None}},
        {"seconds": {"fit": 0.0}, "parameters": 0},
        {"seconds": {"fit": -5.0}, "parameters": -3},
        {"parameters": 10**30},
        {"throughput": {"train_segments_per_second": None}},
    ],
)
@pytest.mark.parametrize("everywhere", [False, True], ids=["one run", "all"])
@pytest.mark.slow
def test_wrong_types_in_foreign_records_give_a_page(tmp_path, change, everywhere):
    for number, (backbone, loss) in enumerate((("x", "ce"), ("y", "ls"))):
        run = write_run(tmp_path, 12 + number, backbone=backbone, loss=loss, epochs=0)
        if everywhere or backbone == "x":
            changed(run / "result.json", **change)
    nothing = everywhere and change == {"config": []}  # refused when read, and no other run is left
    assert report.main([str(tmp_path)]) == (2 if nothing else 0)
    assert leaderboard.main([str(tmp_path), "--format", "json"]) == (2 if nothing else 0)
    if everywhere and not nothing:
        assert report.main([str(tmp_path), "--format", "latex"]) == 0


@pytest.mark.parametrize(
    "alter",
    [
        lambda row: row._replace(predicted=""),
        lambda row: row._replace(label=""),
        lambda row: row._replace(label="", predicted="", group="", song="x"),
        lambda row: row._replace(probabilities=dict.fromkeys(row.probabilities, float("nan"))),
        lambda row: row._replace(probabilities=dict.fromkeys(row.probabilities, float("inf"))),
        lambda row: row._replace(probabilities=dict.fromkeys(row.probabilities, -1.0)),
        lambda row: row._replace(label="|", predicted="||"),
        lambda row: row._replace(song="曲 \u202e\x1b[31m", label="曲", predicted="曲"),
    ],
)
@pytest.mark.slow
def test_odd_predictions_give_a_page(tmp_path, alter):
    rows = [alter(row) if i % 2 else row for i, row in enumerate(predictions(10, 20, ("blues", "jazz")))]
    write_run(tmp_path, rows=rows, metrics={}, epochs=0)
    write_run(tmp_path, 14, backbone="other", epochs=0)
    assert report.main([str(tmp_path)]) == 0
    assert report.main([str(tmp_path), "--format", "latex"]) == 0
    assert not {"\x1b", "\u202e"} & set((tmp_path / "report.html").read_text(encoding="utf8"))
