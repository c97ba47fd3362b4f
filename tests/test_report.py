"""The report: one file, nothing loaded, nothing run but its own script, and the numbers of the leaderboard in it."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import re
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path
from urllib.parse import unquote

import pytest
from sklearn.metrics import confusion_matrix, recall_score

from musicnet_eval import leaderboard, records, report
from musicnet_eval.leaderboard.tables import LINE
from tests.fake_runs import PNG, predictions, write_curves, write_failed, write_pictures, write_run

EVIL = "<script>alert(1)</script>"


class Page(html.parser.HTMLParser):
    """All that a browser would see: tags with their attributes, and the text of every table cell."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.scripts: list[str] = []
        self._within = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._within = tag
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        self._within = "" if tag in ("td", "th", "button", "script") else self._within

    def handle_data(self, data):
        if self._within in ("td", "th", "button"):
            self.rows[-1][-1] += data
        if self._within == "script":
            self.scripts.append(data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def write(folder: Path, **options) -> str:
    return report.write([folder], folder / "report.html", **options).read_text(encoding="utf8")


def figures(text: str) -> list[str]:
    return re.findall(r'<svg role="img" aria-label="Learning curves.*?</svg>', text, flags=re.DOTALL)


@pytest.fixture
def runs(tmp_path):
    for seed in range(2):
        write_run(tmp_path, 15 + seed, seed=seed, classes=("blues", "jazz", "pop"), pictures=seed == 0)
        write_run(tmp_path, 10 + seed, seed=seed, classes=("blues", "jazz", "pop"), backbone="vgg11")
    write_failed(tmp_path / "oom")
    return tmp_path


# --- what is on the page ------------------------------------------------------------------------------------------------------


def test_page_has_the_leaderboard_and_the_failures(runs):
    text = write(runs)
    cells = {cell.strip() for row in Page(text).rows for cell in row}
    assert {"resnet18", "0.7750", "vgg11", "0.5250 †"} <= cells  # 10.5 of 20 songs; guessing 7 in 20 stays up to 11 within 95 %
    assert "RuntimeError: out of memory" in text
    assert "4 finished runs of 2 configurations" in text
    assert "torch 2.9.0" in text


def test_page_loads_nothing(runs):
    page = Page(write(runs))
    assert not page.named("link")
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "action", "data"):
            value = attributes.get(name) or "#"
            assert value.startswith(("#", "data:")), value
    assert "url(http" not in write(runs)
    assert "@import" not in write(runs)


def test_only_the_pages_own_script_may_run(runs):
    page = Page(write(runs))
    policy = next(meta["content"] for meta in page.named("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    (script,) = page.scripts
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert len(page.named("script")) == 1


def test_table_is_sorted_by_keyboard_and_pictures_have_texts(runs):
    page = Page(write(runs))
    assert len(page.named("button")) == len(LINE)
    assert [head["aria-sort"] for head in page.named("th") if "aria-sort" in head] == ["ascending"]
    assert all(image["alt"] for image in page.named("img"))
    assert all(svg.get("aria-label") or svg.get("aria-hidden") for svg in page.named("svg"))


def test_ids_are_unique(runs):
    counts = Counter(attributes["id"] for _, attributes in Page(write(runs)).tags if attributes.get("id"))
    assert counts
    assert set(counts.values()) == {1}


def test_downloads_are_the_leaderboard_itself(runs):
    board = leaderboard.collect([runs])
    links = [unquote((link["href"] or "").split(",", 1)[1]) for link in Page(write(runs)).named("a") if "download" in link]
    assert links == [leaderboard.to_csv(board), leaderboard.to_json(board)]


def test_dots_stand_where_their_numbers_are(runs):
    text = write(runs)
    axis = [(float(x), float(tick)) for x, tick in re.findall(r'<text x="([\d.]+)%"[^>]*>([\d.]+)</text>', text)]
    dots = [(float(x), float(said)) for x, said in re.findall(r'<circle cx="([\d.]+)%"[^>]*><title>([\d.]+) ', text)]
    assert len(dots) == 4
    (x0, low), (x1, high) = axis[0], axis[-1]
    for x, value in dots:
        assert low + (x - x0) / (x1 - x0) * (high - low) == pytest.approx(value, abs=1e-4)


def test_chance_is_drawn_for_song_accuracy_only(runs):
    assert 'class="chance"' in write(runs)
    assert 'class="chance"' not in write(runs, metric="test/segment/accuracy")


# --- learning curves ----------------------------------------------------------------------------------------------------------


def test_gap_is_the_last_one_by_hand(tmp_path):
    for seed, correct in enumerate((10, 14)):
        write_run(tmp_path, correct, seed=seed, epochs=4)
    # Training ends at 0.95, validation at 10/20 and 14/20, the record's own gap is 0.95 - 0.9 * accuracy.
    assert "Last gap 0.350: training 0.950 less validation 0.600, epoch 4, runs: 2." in write(tmp_path)
    assert "Gap to test: 0.410." in write(tmp_path)


def test_mean_ends_where_the_first_run_stops(tmp_path):
    write_run(tmp_path, 10, epochs=2)
    write_run(tmp_path, 10, epochs=9, seed=1)
    assert "epoch 2, runs: 2" in write(tmp_path)


def test_figures_are_whole_take_the_pages_colours_and_hold_no_foreign_text(tmp_path):
    write_run(tmp_path, backbone="x$y^$", loss=EVIL, classes=(EVIL, "b"))
    (figure,) = figures(write(tmp_path))
    root = ET.fromstring(figure)
    assert len(list(root.iter("text"))) > 10
    assert "currentColor" in figure
    assert "var(--train)" in figure
    assert "#01020" not in figure
    assert not {"alert", "x$y"} & set(re.findall(r"alert|x\$y", figure))


def test_page_is_the_same_twice_but_for_its_date(runs, monkeypatch):
    monkeypatch.setattr(records, "now", lambda: "then")
    assert write(runs) == write(runs)


@pytest.mark.parametrize(
    "content", ["", "epoch,step\n", "epoch,train/segment/loss\nnan,1\n0,inf\n0,nan\n0,1e300\n", "a,b\n1,2\n"]
)
def test_no_curves_are_said_to_be_none(tmp_path, content):
    run = write_run(tmp_path)
    (run / "metrics.csv").write_text(content)
    text = write(tmp_path)
    assert "no learning curves in metrics.csv" in text
    assert not figures(text)


def test_one_epoch_is_drawn_as_a_point(tmp_path):
    write_curves(write_run(tmp_path), 1, 0.5)
    assert "<use " in figures(write(tmp_path))[0]


# --- confusion ----------------------------------------------------------------------------------------------------------------


def test_confusion_matrix_is_scikit_learns(tmp_path):
    classes = ["a", "b", "c"]
    for seed, correct in enumerate((13, 17)):
        write_run(tmp_path, correct, 20, classes, seed=seed)
    rows = predictions(13, 20, classes) + predictions(17, 20, classes)
    true, said = [row.label for row in rows], [row.predicted for row in rows]
    expected = confusion_matrix(true, said, labels=classes)
    recall = recall_score(true, said, labels=classes, average=None)
    table = [[cell.strip() for cell in row] for row in Page(write(tmp_path)).rows if row[0] in classes and len(row) == 6]
    assert [[int(cell or 0) for cell in row[1:4]] for row in table] == expected.tolist()
    assert [row[4] for row in table] == [f"{value:.3f}" for value in recall]
    assert [int(row[5]) for row in table] == expected.sum(axis=1).tolist()


def test_many_classes_list_the_commonest_confusions(tmp_path):
    classes = [f"class{i:02d}" for i in range(40)]
    write_run(tmp_path, 60, 80, classes)
    text = write(tmp_path)
    assert "40 classes: the commonest confusions" in text
    assert ["class20", "class21", "1", "0.500"] in Page(text).rows


def test_multilabel_has_no_matrix(tmp_path):
    write_run(tmp_path, rows=[row._replace(label="blues|jazz") for row in predictions(10, 20, ["blues", "jazz"])])
    assert "several labels: a confusion matrix has no meaning" in write(tmp_path)


def test_no_predictions_are_said_to_be_none(tmp_path):
    (write_run(tmp_path) / "predictions.csv").unlink()
    assert "No predictions.csv to count" in write(tmp_path)


# --- pictures -----------------------------------------------------------------------------------------------------------------


def pictures(text: str) -> list[str]:
    return [(image["src"] or "").split(",")[1] for image in Page(text).named("img")]


def test_one_spectrogram_a_class_and_data_set(runs):
    write_run(runs, seed=5, classes=("blues", "jazz"), pictures=True)
    write_run(runs, data="other", classes=("x", "y"), pictures=True)
    text = write(runs)
    assert pictures(text) == [base64.b64encode(PNG).decode()] * 5
    assert [image["alt"] for image in Page(text).named("img")][1] == "Spectrogram of y: y: 3 s, mel, 64 bins"


@pytest.mark.parametrize("png", [b"<svg onload=alert(1)>", b"GIF89a", PNG + bytes(1_000_000), b""])
def test_what_is_no_small_png_stays_out(tmp_path, png):
    write_pictures(write_run(tmp_path), ["blues"], png)
    assert not pictures(write(tmp_path))


@pytest.mark.parametrize(
    "file", ["../secret.png", "link.png", "sub/../../secret.png", "{tmp}/secret.png", "", ".", "a\\u0000.png"]
)
@pytest.mark.slow
def test_pictures_outside_the_folder_stay_out(tmp_path, file):
    run = write_run(tmp_path, pictures=True)
    (run / "secret.png").write_bytes(PNG)
    (tmp_path / "secret.png").write_bytes(PNG)
    (run / "pictures" / "link.png").symlink_to(run / "secret.png")
    listed = f'[{{"class": "blues", "file": "{file.replace("{tmp}", str(tmp_path))}"}}]'
    (run / "pictures" / "spectrograms.json").write_text(listed)
    assert not pictures(write(tmp_path))


@pytest.mark.parametrize("listed", ["{", "{}", "[1, null, {}]", '[{"class": 1, "file": "spectrogram-0.png"}]', "[" * 100_000])
@pytest.mark.slow
def test_damaged_lists_of_pictures_are_none(tmp_path, listed):
    run = write_run(tmp_path, pictures=True)
    (run / "pictures" / "spectrograms.json").write_text(listed)
    assert not pictures(write(tmp_path))


def test_pictures_of_all_data_sets_stay_within_the_page(tmp_path):
    for number in range(3):
        run = write_run(tmp_path, data=f"data{number}")
        write_pictures(run, ["blues", "jazz"], PNG + bytes(900_000))
    text = write(tmp_path)
    assert len(pictures(text)) == 2
    assert text.count("Left out, as too large for one page: 2.") == 2


# --- strangers' records -------------------------------------------------------------------------------------------------------


def test_texts_of_strangers_run_nothing(tmp_path):
    quoted = "\"'><img src=x onerror=alert(1)>"
    for backbone, loss in ((EVIL, quoted), ("b", EVIL)):
        run = write_run(
            tmp_path, backbone=backbone, loss=loss, classes=(EVIL, quoted), data=EVIL, protocol=quoted, overrides=[f"a={EVIL}"]
        )
        record = records.read_json(run / "result.json")
        record |= {"versions": {EVIL: quoted}, "hardware": {quoted: EVIL}}
        record["choices"] |= {"seed": EVIL, "fold": quoted}
        records.write_json(run / "result.json", record)
        write_pictures(run, (EVIL, quoted))
    write_failed(tmp_path / "failed", EVIL)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "result.json").write_text(f'{{"schema": "{EVIL}"}}')
    text = write(tmp_path)
    page = Page(text)
    assert text.count("alert(1)") > 20  # the texts are there, as texts
    assert len(page.named("script")) == 1
    assert all(image["src"].startswith("data:image/png;base64,") for image in page.named("img"))
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]


def test_numbers_of_strangers_break_nothing(tmp_path):
    run = write_run(tmp_path, metrics={"gap/segment/accuracy": 1e300})
    write_run(tmp_path, seed=1, metrics={"gap/segment/accuracy": 1e300})
    (run / "metrics.csv").write_text("epoch,train/segment/loss\n0,1e29\n1e29,-1e29\n")
    assert "1e+300" in write(tmp_path) or "1000000" in write(tmp_path)


# --- size and command ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_200_runs_fit_into_8_megabytes(tmp_path):
    classes = [f"class{i}" for i in range(20)]
    for number in range(50):
        for seed in range(4):
            write_run(tmp_path, 60 + seed, 100, classes, backbone=f"net{number}", seed=seed, epochs=100)
    text = write(tmp_path)
    assert len(text.encode()) < 8_000_000
    assert len(figures(text)) == 40
    assert text.count("Shown for the first 40 of 50 configurations.") == 4  # curves, confusion, classes, calibration


def test_command_writes_beside_the_runs_and_prints_the_path(runs, capsys):
    assert report.main([str(runs)]) == 0
    assert capsys.readouterr().out.strip() == str(runs / "report.html")
    assert report.main([str(runs), "--output", str(runs / "deep" / "page.html")]) == 0
    assert (runs / "deep" / "page.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "not a folder"),
        (["failed"], "no finished run"),
        (["failed"], "out of memory"),
        (["runs", "--metric", "test/song/acuracy"], "did you mean 'test/song/accuracy'"),
        (["runs", "--output", "failed"], "cannot be written"),
    ],
)
def test_command_says_what_is_wrong_and_exits_2(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs")
    write_failed(tmp_path / "failed" / "f")
    assert report.main(arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "failed" / "report.html").exists()


def test_a_sweep_in_which_all_failed_gets_its_page(tmp_path):
    write_failed(tmp_path / "f")
    text = write(tmp_path)
    assert "No finished run" in text
    assert "out of memory" in text
