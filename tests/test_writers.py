"""Writers: what they write is read back by somebody else's reader; torn files, grown headers, resumed runs."""

import csv
import io
import json
import math
import re
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from jaxprop.train import CSV, JSONL, Console, Writer
from jaxprop.train.writers import console as _console
from jaxprop.train.writers import trackers as _trackers
from jaxprop.train.writers.writer import number_of, resume_at

ROWS = [(i, {"loss": 1.0 / i, "steps_per_second": 100.0}) for i in range(1, 5)]


def fill(writer, rows=ROWS):
    for step, row in rows:
        writer.write(step, row)
    writer.close()


def read_csv(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def read_jsonl(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- numbers ----------------------------------------------------------------------------------------

NUMBERS = [
    (1.5, 1.5),
    (np.float32(0.5), 0.5),
    (np.int64(3), 3),
    (True, True),
    (np.bool_(False), False),
    (np.array([2.0]), 2.0),
    (np.array(1.5, ml_dtypes.bfloat16), 1.5),
]


@pytest.mark.parametrize("value, expected", NUMBERS, ids=str)
def test_numbers_become_pythons_own(value, expected):
    got = number_of("loss", value)
    assert got == expected and type(got) is type(expected)


NO_NUMBERS = [
    (np.ones(3), "a row holds single real numbers, but 'loss' is an array of shape (3,)."),
    ("high", "a row holds single real numbers, but 'loss' is 'high'."),
    (1j, "a row holds single real numbers, but 'loss' is of type complex."),
    (None, "a row holds single real numbers, but 'loss' is of type NoneType."),
]


@pytest.mark.parametrize("value, message", NO_NUMBERS, ids=lambda x: str(x)[:12])
def test_what_is_no_number_is_named(value, message, tmp_path):
    for writer in (JSONL(tmp_path / "a"), CSV(tmp_path / "b")):
        with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
            writer.write(1, {"loss": value})
        writer.close()


# --- files ------------------------------------------------------------------------------------------


def test_jsonl_is_read_back(tmp_path):
    fill(JSONL(tmp_path / "deep" / "log.jsonl"), [*ROWS, (5, {"loss": math.inf, "grad": math.nan})])
    rows = read_jsonl(tmp_path / "deep" / "log.jsonl")
    assert rows[:4] == [{"step": step, **row} for step, row in ROWS]
    assert rows[4]["loss"] == math.inf and math.isnan(rows[4]["grad"])


def test_csv_is_read_back_exactly(tmp_path):
    fill(CSV(tmp_path / "log.csv"))
    rows = read_csv(tmp_path / "log.csv")
    assert [(int(r["step"]), float(r["loss"])) for r in rows] == [(i, row["loss"]) for i, row in ROWS]


def test_a_csv_header_grows(tmp_path):
    names = ["loss", "h, 'quoted'/norm", 'b"x"']
    fill(CSV(tmp_path / "log.csv"), [(i + 1, {name: float(i)}) for i, name in enumerate(names)])
    rows = read_csv(tmp_path / "log.csv")
    assert list(rows[0]) == ["step", *names]
    assert [[row[name] for name in names] for row in rows] == [
        ["0.0", "", ""],
        ["", "1.0", ""],
        ["", "", "2.0"],
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log.csv"]


@pytest.mark.parametrize("make, read", [(CSV, read_csv), (JSONL, read_jsonl)])
def test_a_file_of_another_run_is_not_overwritten(make, read, tmp_path):
    path = tmp_path / "log"
    fill(make(path))
    before = path.read_bytes()
    message = f"{path} holds rows of another run. Resume that run, choose another file, or pass overwrite=True."
    with pytest.raises(FileExistsError, match=f"^{re.escape(message)}$"):
        make(path).write(1, {"loss": 1.0})
    assert path.read_bytes() == before
    fill(make(path, overwrite=True), ROWS[:1])
    assert len(read(path)) == 1


@pytest.mark.parametrize("make, read", [(CSV, read_csv), (JSONL, read_jsonl)])
@pytest.mark.parametrize("last", [0, 2, 4, 9])
def test_a_resumed_run_goes_on_where_the_checkpoint_was(make, read, last, tmp_path):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    later = [(i, {"loss": 1.0 / i, "steps_per_second": 100.0}) for i in range(last + 1, 12)]
    fill(make(whole), [*ROWS[:last], *later])
    fill(make(resumed))
    writer = make(resumed)
    resume_at([writer], last)
    fill(writer, later)
    assert resumed.read_bytes() == whole.read_bytes()
    assert len({row["step"] for row in read(resumed)}) == len(read(resumed))


@pytest.mark.parametrize("make", [CSV, JSONL])
def test_every_torn_end_is_repaired(make, tmp_path):
    path = tmp_path / "log"
    fill(make(path))
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        writer = make(path)
        writer.resume(4)
        there = path.read_bytes()
        done = there.count(b"\n") - (make is CSV)
        assert whole.startswith(there)
        fill(writer, ROWS[max(done, 0) :])
        assert path.read_bytes() == whole, cut


def test_a_torn_end_may_be_any_bytes(tmp_path):
    path = tmp_path / "log.jsonl"
    fill(JSONL(path))
    whole = path.read_bytes()
    for torn in (b"\x00" * 7, b'{"step": 5, "lo\xff\n', b"{}\n", b"[1]\n"):
        path.write_bytes(whole + torn)
        writer = JSONL(path)
        writer.resume(9)
        writer.close()
        assert path.read_bytes() == whole


@pytest.mark.parametrize("make", [CSV, JSONL])
def test_rows_survive_a_kill(make, tmp_path):
    script = f"""
import os, signal
from jaxprop.train import {make.__name__}
writer = {make.__name__}({str(tmp_path / "log")!r})
for i in range(1, 4):
    writer.write(i, {{"loss": 1.0 / i, "later": i}} if i == 3 else {{"loss": 1.0 / i}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", script]).returncode == -9
    rows = (read_csv if make is CSV else read_jsonl)(tmp_path / "log")
    assert [float(row["loss"]) for row in rows] == [1.0, 1 / 2, 1 / 3]


# --- the terminal -----------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_lines_where_there_is_no_terminal():
    stream = io.StringIO()
    console = Console(total=4000, stream=stream, pause=0.0)
    console.write(1000, {"loss": np.float32(0.25), "eval_loss": 0.5, "h/norm": 1.0, "steps_per_second": 2.0})
    console.write(4000, {"loss": 0.125, "steps_per_second": 2000.0})
    console.close()
    assert stream.getvalue().splitlines() == [
        "step 1000/4000  loss 0.25  eval_loss 0.5  2.0 steps/s  25:00 left",
        "step 4000/4000  loss 0.125  2,000.0 steps/s  0:00 left",
    ]


def test_lines_come_at_a_bearable_rate_and_the_last_is_shown(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(_console.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    console = Console(stream=stream, pause=10.0)
    for i in range(1, 101):
        now[0] = i * 0.5
        console.write(i, {"loss": 1.0})
    console.close()
    steps = [int(line.split()[1]) for line in stream.getvalue().splitlines()]
    assert steps == [1, 21, 41, 61, 81, 100]


def test_speed_is_counted_from_the_first_row_and_rows_of_a_step_are_one(monkeypatch):
    now = [5.0]
    monkeypatch.setattr(_console.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    console = Console(total=2000, stream=stream, show=["accuracy"], pause=0.0)
    console.write(1000, {"loss": 2.0})  # the first one: what went before was compiling
    now[0] = 7.0
    console.write(1010, {"loss": 1.0, "accuracy": 0.5})
    console.write(1010, {"eval_loss": 3.0})
    assert stream.getvalue().splitlines() == [
        "step 1000/2000  loss 2",
        "step 1010/2000  loss 1  accuracy 0.5  5.0 steps/s  3:18 left",
        "step 1010/2000  loss 1  accuracy 0.5  eval_loss 3  5.0 steps/s  3:18 left",
    ]


def test_a_bar_on_a_terminal():
    pytest.importorskip("rich")
    stream = Terminal()
    console = Console(total=100, stream=stream)
    console.write(50, {"loss": 0.25, "steps_per_second": 10.0})
    console.write(100, {"loss": 0.125, "steps_per_second": 10.0})
    console.close()
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
    for part in ("step 100/100", "loss 0.125", "10.0 steps/s", "0:00 left"):
        assert part in shown


def test_lines_on_a_terminal_without_rich(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    stream = Terminal()
    fill(Console(stream=stream), ROWS[:1])
    assert stream.getvalue() == "step 1  loss 1  100.0 steps/s\n"


TIMES = [(0.0, "?"), (math.nan, "?"), (1.0, "2:46:40"), (100.0, "1:40"), (1e9, "0:00")]


@pytest.mark.parametrize("speed, expected", TIMES)
def test_time_left(speed, expected):
    assert _console.time_left(10_000, 0, speed) == expected


# --- other people's trackers ------------------------------------------------------------------------


@pytest.mark.library
def test_tensorboard_reads_its_files(tmp_path):
    pytest.importorskip("tensorboardX")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    fill(_trackers.TensorBoard(tmp_path))
    writer = _trackers.TensorBoard(tmp_path)
    resume_at([writer], 2)
    fill(writer, [(3, {"loss": 7.0}), (4, {"loss": np.float32(8.0)})])
    events = accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 1.0), (2, 0.5), (3, 7.0), (4, 8.0)]
    assert set(events.Tags()["scalars"]) == {"loss", "steps_per_second"}


@pytest.mark.library
@pytest.mark.filterwarnings("ignore")
def test_wandb_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    writer = _trackers.WandB(project="test", mode="offline", dir=str(tmp_path))
    for step, row in ROWS:
        writer.write(step, row)
    assert (
        writer.run.summary["loss"] == 1 / 3 and writer.run.step == 4
    )  # a row is taken when the next one comes
    writer.close()
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert file.stat().st_size > 0
    with wandb.init(project="test", mode="offline", dir=str(tmp_path)) as run:
        fill(_trackers.WandB(run))
        run.log({"still": "open"})  # a run that was given stays open


@pytest.mark.library
@pytest.mark.filterwarnings("ignore")
def test_mlflow_file_store(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = tmp_path.as_uri()
    writer = _trackers.MLflow("test", tracking_uri=uri)
    fill(writer, [(step, {**row, "params['w']/norm": 1.0}) for step, row in ROWS])
    fill(_trackers.MLflow("test", tracking_uri=uri, run_id=writer.run_id), [(5, {"loss": 0.125})])
    client = writer._client
    points = [(m.step, m.value) for m in client.get_metric_history(writer.run_id, "loss")]
    assert points == [(1, 1.0), (2, 0.5), (3, 1 / 3), (4, 0.25), (5, 0.125)]
    run = client.get_run(writer.run_id)
    assert run.info.status == "FINISHED" and run.data.metrics["params__w__/norm"] == 1.0


ABSENT = {
    "TensorBoard": ("tensorboardX", "tensorboard", lambda p: _trackers.TensorBoard(p)),
    "WandB": ("wandb", "wandb", lambda p: _trackers.WandB()),
    "MLflow": ("mlflow", "mlflow", lambda p: _trackers.MLflow()),
}


@pytest.mark.parametrize("name", ABSENT)
def test_a_package_that_is_not_there_is_named(name, tmp_path, monkeypatch):
    package, extra, make = ABSENT[name]
    monkeypatch.setitem(sys.modules, package, None)
    message = (
        f"{name} writes through {{}}, which is not installed: pip install 'jaxprop-toolkit[{extra}]'"
    ).format("MLflow" if name == "MLflow" else package)
    with pytest.raises(ImportError, match=re.escape(message)):
        make(tmp_path)


def test_all_writers_keep_the_protocol(tmp_path):
    class Mine:
        def write(self, step, row): ...
        def close(self): ...

    for writer in (Mine(), Console(), CSV(tmp_path / "a"), JSONL(tmp_path / "b")):
        assert isinstance(writer, Writer)
    resume_at([Mine()], 3)  # one that cannot be told is left alone
