"""Run records: what names a run, what a reader may trust, and that nobody sees half a file."""

from __future__ import annotations

import json
import math
import threading

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from musicnet_eval import records
from musicnet_eval.errors import RecordError
from tests.fake_runs import predictions, write_failed, write_run, write_status

CONFIG = {
    "seed": 1,
    "backbone": "resnet18",
    "optimizer": {"lr": 0.001, "betas": [0.9, 1.0]},
    "data": {"root": "/a", "fold": 2, "cache_dir": "/c", "num_workers": 4, "segment_seconds": 3.0},
    "hydra": {"run": {"dir": "x"}},
    "logger": None,
    "callbacks": {
        "looks": {"_target_": "musicnet_eval.callbacks.MetricsTable"},
        "stops": {"_target_": "lightning.EarlyStopping"},
    },
}
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
TREES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8
)


def changed(path: str, value: object) -> dict:
    config = json.loads(json.dumps(CONFIG))
    *parents, leaf = path.split(".")
    node = config
    for parent in parents:
        node = node[parent]
    node[leaf] = value
    return config


# --- identity -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    ["data.root", "data.cache_dir", "data.num_workers", "hydra.run", "logger", "num_threads", "run", "callbacks.looks.every"],
)
def test_signature_does_not_see_what_changes_no_number(path):
    assert records.signature(changed(path, 99), "i") == records.signature(CONFIG, "i")


@pytest.mark.parametrize(
    "path", ["seed", "data.fold", "backbone", "optimizer.lr", "data.segment_seconds", "callbacks.stops.patience", "unheard_of"]
)
def test_signature_sees_what_may_change_a_number(path):
    assert records.signature(changed(path, 99), "i") != records.signature(CONFIG, "i")


def test_signature_sees_songs_and_weights():
    names = {records.signature(CONFIG, *about) for about in (("i",), ("j",), ("i", {"w": "1"}), ("i", {"w": "2"}))}
    assert len(names) == 4


@pytest.mark.parametrize(
    ("path", "same"), [("seed", True), ("data.fold", True), ("optimizer.lr", False), ("data.segment_seconds", False)]
)
def test_configuration_is_what_seeds_and_folds_repeat(path, same):
    assert (records.configuration(changed(path, 99), "i") == records.configuration(CONFIG, "i")) == same


def test_signature_is_12_hexadecimal_digits():
    name = records.signature(CONFIG, "i")
    assert len(name) == 12
    assert int(name, 16) >= 0


def test_signature_leaves_the_config_as_it_was():
    before = json.dumps(CONFIG)
    records.signature(CONFIG, "i")
    assert json.dumps(CONFIG) == before


@pytest.mark.parametrize(("one", "other"), [(1, 1.0), (1e-3, 0.001), ({"a": 1, "b": 2}, {"b": 2, "a": 1}), ((1, 2), [1, 2])])
def test_canonical_is_one_way_of_writing(one, other):
    assert records.canonical(one) == records.canonical(other)


@pytest.mark.parametrize(("one", "other"), [(1, True), (1, "1"), (0.1, 0.2), ([1, 2], [2, 1]), (None, "None")])
def test_canonical_keeps_unlike_apart(one, other):
    assert records.canonical(one) != records.canonical(other)


@given(TREES)
def test_canonical_is_strict_json_of_any_tree(tree):
    text = records.canonical(tree)
    assert records.canonical(json.loads(text)) == text


def test_file_hash_is_sha256(tmp_path):
    (tmp_path / "w").write_bytes(b"abc")  # the digest of FIPS 180-2, appendix B.1
    assert records.file_hash(tmp_path / "w") == "ba7816bf8f01cfea"


# --- writing ------------------------------------------------------------------------------------------------------------------


@given(st.dictionaries(st.text(), TREES, max_size=3))
def test_json_comes_back_with_null_for_what_is_not_finite(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("json") / "x.json"
    records.write_json(path, value)
    assert records.read_json(path) == json.loads(json.dumps(value), parse_constant=lambda _: None)


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "x.json"
    records.write_json(path, {"old": 1})
    with pytest.raises(TypeError, match="not JSON serializable"):
        records.write_json(path, {"new": object()})
    with pytest.raises(UnicodeEncodeError):
        records.write_text(path, "half a text, then a lone surrogate \ud800")
    assert records.read_json(path) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_readers_never_see_half_a_file(tmp_path):
    path = tmp_path / "status.json"
    records.write_json(path, {"epoch": 0, "ballast": ["x" * 1000] * 100})
    done = threading.Event()

    def keep_writing():
        for epoch in range(60):
            records.write_json(path, {"epoch": epoch, "ballast": ["x" * 1000] * 100})
        done.set()

    writer = threading.Thread(target=keep_writing)
    writer.start()
    seen = set()
    while not done.is_set():
        seen.add(records.read_json(path)["epoch"])
    writer.join()
    assert seen <= set(range(60))


def test_files_get_the_usual_rights(tmp_path):
    records.write_text(tmp_path / "a", "ä\n")
    (tmp_path / "b").touch()
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode
    assert (tmp_path / "a").read_bytes() == "ä\n".encode()


# --- reading ------------------------------------------------------------------------------------------------------------------


def test_result_comes_back(tmp_path):
    record = records.read_result(write_run(tmp_path, 15, seed=3))
    assert (record["choices"]["seed"], record["metrics"]["test/song/accuracy"]) == (3, 0.75)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("schema", 2, "schema 2"),
        ("status", None, "'status'"),
        ("signature", 7, "'signature'"),
        ("configuration", None, "'configuration'"),
        ("choices", [], "'choices'"),
        ("metrics", [], "'metrics'"),
        ("metrics", {"a": "0.5"}, "no number"),
        ("metrics", {"a": True}, "no number"),
        ("metrics", {"a": 10**400}, "no number"),
        ("metrics", {"a": 1e308}, "no number"),
        ("seconds", {"fit": "long"}, "no number"),
        ("overrides", [1], "overrides"),
        ("parameters", "many", "'parameters'"),
        ("parameters", 10**400, "no number"),
    ],
)
def test_a_foreign_or_half_record_is_told_apart(tmp_path, field, value, message):
    run = write_run(tmp_path)
    record = records.read_json(run / "result.json")
    (run / "result.json").write_text(json.dumps({**record, field: value}))
    with pytest.raises(RecordError, match=message):
        records.read_result(run)


@pytest.mark.parametrize("value", [None, math.nan, math.inf, 3, 0.5])
def test_a_number_or_none_is_a_metric(tmp_path, value):
    run = write_run(tmp_path)
    record = records.read_json(run / "result.json")
    (run / "result.json").write_text(json.dumps({**record, "metrics": {"a": value}}))
    assert records.read_result(run)["metrics"]["a"] in (value, pytest.approx(value, nan_ok=True))


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"9" * 5000, b"[]", b"null"])
def test_unreadable_json_is_an_error_of_ours(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(RecordError, match=r"x\.json"):
        records.read_json(tmp_path / "x.json")


def test_predictions_come_back_and_pandas_reads_them(tmp_path):
    rows = predictions(3, 5, ['a "quoted", class', "b\nnewline"])
    records.write_predictions(tmp_path, rows, ['a "quoted", class', "b\nnewline"])
    assert records.read_predictions(tmp_path) == rows
    frame = pd.read_csv(tmp_path / "predictions.csv")
    assert (frame["label"] == frame["predicted"]).sum() == 3
    assert frame.filter(like="prob_").sum(axis=1).tolist() == pytest.approx([1.0] * 5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "lacks the columns"),
        ("split,song,group,label\n", r"lacks the columns \['predicted'\]"),
        ("split,song,group,label,predicted\ntest,1,g\n", "has not 5 cells"),
        ("split,song,group,label,predicted\ntest,1,g,a,b,c\n", "has not 5 cells"),
        ("split,song,group,label,predicted,prob_a\ntest,1,g,a,b,high\n", "could not convert"),
    ],
)
def test_damaged_predictions_are_an_error_of_ours(tmp_path, content, message):
    (tmp_path / "predictions.csv").write_text(content)
    with pytest.raises(RecordError, match=message):
        records.read_predictions(tmp_path)


def test_no_predictions_are_an_error_of_ours(tmp_path):
    with pytest.raises(RecordError, match="does not exist"):
        records.read_predictions(tmp_path)


def test_curves_leave_out_empty_cells_and_a_row_cut_short(tmp_path):
    (tmp_path / "metrics.csv").write_text("epoch,a,b\n0,1,\n1,,2\n2,x,3\n3,0.5")
    assert records.read_curves(tmp_path) == [{"epoch": 0, "a": 1}, {"epoch": 1, "b": 2}]
    assert records.read_curves(tmp_path / "none") == []


# --- finding ------------------------------------------------------------------------------------------------------------------


def test_runs_are_found_at_any_depth_each_once_and_not_inside_runs(tmp_path):
    run = write_run(tmp_path / "sweep" / "deep")
    write_run(run / "evaluations")
    failed = write_failed(tmp_path / "sweep" / "failed")
    write_run(tmp_path / ".hidden")
    assert records.find_runs([tmp_path, tmp_path / "sweep", run]) == sorted([run.resolve(), failed.resolve()])


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(RecordError, match="not a folder"):
        records.find_runs([tmp_path / "nowhere"])


def test_state_of_each_kind_of_run(tmp_path):
    assert records.state(write_run(tmp_path)) == "done"
    assert records.state(write_failed(tmp_path / "failed")) == "failed"
    assert records.state(write_status(tmp_path / "running", "running")) == "running"
    assert records.state(tmp_path) == "unknown"


@pytest.mark.parametrize("content", ["", "{", "{}", None])
def test_done_is_what_has_a_record_that_can_be_read(tmp_path, content):
    run = write_run(tmp_path)
    write_status(run, "done")
    (run / records.RESULT).unlink()
    if content is not None:
        (run / records.RESULT).write_text(content)
    assert records.state(run) == "unknown"
    write_status(run, "running")
    assert records.state(run) == "running"


@pytest.mark.parametrize("again", ["running", "interrupted"])
def test_a_failed_run_tried_again_is_what_it_is_now(tmp_path, again):
    run = write_failed(tmp_path / "run")
    write_status(run, again)
    assert records.state(run) == again
