"""Several processes make of a source what one makes, to the bit, and end with an error that says what became of them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image
from test_containers import KINDS, png, save_table

from qwenvl_agent.config import DataConfig, PromptConfig, SourceConfig
from qwenvl_agent.data import indexing
from qwenvl_agent.data.dataset import build_rows

NUM = 40


def save_source(folder: Path, kind: str) -> Path:
    """Rows with faults between them: broken lines, gone pictures, the same turn again, half a character."""
    folder.mkdir()
    for name in ("red", "green", "blue"):
        (folder / f"{name}.png").write_bytes(png(name))
    Image.new("RGB", (300, 1)).save(folder / "thin.png")
    (folder / "broken.png").write_bytes(png("red")[:-30])
    pictures = ("red.png", "green.png", "blue.png", "gone.png", "thin.png", "broken.png")
    lines = []
    for i in range(NUM):
        row = KINDS[kind](i % 30 if kind != "chat" else i, pictures[i % len(pictures) if i % 7 == 0 else i % 3])
        if kind == "computer":
            row = row | {"id": f"s{i}"}  # and after 30 rows copies
        if kind == "safari" and i == NUM - 1:  # the first row's tools depend on the last's calls
            row["episode_id"], row["turn"] = "1f2e3d4c", 999
            row["tool_calls"] = json.dumps([{"name": "catch", "args": {"direction": "LEFT"}}])
            row["tool_results"] = "[]"
        text = json.dumps(row)
        lines.append("{broken" if i == 11 else text.replace("You play", "You \\ud83d") if i == 12 else text)
    path = folder / "rows.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def read(path: Path, kind: str, cache: Path) -> tuple[dict, list]:
    """What the cache's meta says, and its rows and rejects as they stand in it."""
    source = SourceConfig(path=str(path), kind=kind)
    config = DataConfig(
        sources=(source,), cache_dir=str(cache), eval_fraction=0, check_pictures="whole", max_rejected=1.0
    )
    rows = build_rows(config, PromptConfig())
    folder = rows.train.sources[0].folder
    tables = [pa.ipc.open_stream(folder / f"{name}.arrow").read_all().to_pylist() for name in ("steps", "prompts")]
    files = [(folder / name).read_bytes() for name in ("rejects.jsonl", "index.npy")]
    return json.loads((folder / "meta.json").read_text()), [*tables, *files]


def use_processes(monkeypatch, num: int, size: int = 3) -> None:
    monkeypatch.setattr(indexing, "num_processes", lambda: num)
    monkeypatch.setattr(indexing, "ALONE_SECONDS", 0.0)
    monkeypatch.setattr(indexing, "CHUNK_RECORDS", size)


@pytest.mark.parametrize("kind", KINDS)
def test_processes_make_what_one_makes(tmp_path, monkeypatch, kind):
    path = save_source(tmp_path / "data", kind)
    use_processes(monkeypatch, 1)
    alone = read(path, kind, tmp_path / "alone")
    assert alone[0]["num_rejects"] >= 4 and len(alone[1][0]) >= 20
    whole = indexing._read

    def noted(*arguments):
        (tmp_path / "pids" / str(os.getpid())).touch()
        return whole(*arguments)

    (tmp_path / "pids").mkdir()
    monkeypatch.setattr(indexing, "_read", noted)
    for size in (1, 3, 1000):
        use_processes(monkeypatch, 2, size)
        assert read(path, kind, tmp_path / f"many_{size}") == alone
    pids = {int(file.name) for file in (tmp_path / "pids").iterdir()}
    assert os.getpid() in pids and len(pids) > 2


def test_tables_are_shared_out_too(tmp_path, monkeypatch):
    rows = [
        KINDS["computer"](i, {"bytes": png("red"), "path": None}) | {"instruction": f"Open {i}."} for i in range(30)
    ]
    path = save_table(tmp_path / "rows.parquet", rows, row_group_size=7)
    use_processes(monkeypatch, 1)
    alone = read(path, "computer", tmp_path / "cache")
    use_processes(monkeypatch, 2)
    (tmp_path / "cache").rename(tmp_path / "old")
    assert read(path, "computer", tmp_path / "cache")[0]["rows_digest"] == alone[0]["rows_digest"]
    assert len(list((tmp_path / "cache/pictures").iterdir())) == 1


def test_a_short_file_is_read_in_this_process(tmp_path, monkeypatch):
    monkeypatch.setattr(indexing, "num_processes", lambda: 2)
    monkeypatch.setattr(indexing, "parallel_map", None)
    read(save_source(tmp_path / "data", "chat"), "chat", tmp_path / "cache")


def test_a_killed_process_is_named_and_nothing_is_kept(tmp_path, monkeypatch):
    path = save_source(tmp_path / "data", "chat")
    use_processes(monkeypatch, 2)
    parent, whole = os.getpid(), indexing._read

    def fatal(*arguments):
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(*arguments)

    monkeypatch.setattr(indexing, "_read", fatal)
    with pytest.raises(
        ValueError, match=r"rows.jsonl: a process that read a part of it was killed, most likely for lack"
    ):
        read(path, "chat", tmp_path / "cache")
    assert not [file for file in (tmp_path / "cache").iterdir() if file.is_dir()]


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), MemoryError("no more")])
def test_what_the_machine_lacks_ends_the_reading_from_any_process(tmp_path, monkeypatch, fault):
    path = save_source(tmp_path / "data", "chat")
    use_processes(monkeypatch, 2)
    parent, whole = os.getpid(), indexing._read

    def fail(*arguments):
        if os.getpid() != parent:
            raise fault
        return whole(*arguments)

    monkeypatch.setattr(indexing, "_read", fail)
    with pytest.raises(type(fault), match=str(fault.args[-1])):
        read(path, "chat", tmp_path / "cache")


SLOW = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored, and that is inherited
from qwenvl_agent.config import DataConfig, PromptConfig, SourceConfig
from qwenvl_agent.data import indexing
from qwenvl_agent.data.dataset import build_rows
indexing.num_processes, indexing.ALONE_SECONDS = (lambda: 2), 0.0
whole = indexing._read
def slow(*arguments):
    os.write(1, b"reading\\n")  # whole, however many processes write
    time.sleep(0.2)
    return whole(*arguments)
indexing._read, indexing.CHUNK_RECORDS = slow, 1
source = SourceConfig(path=sys.argv[1], kind="chat")
build_rows(DataConfig(sources=(source,), cache_dir=sys.argv[2]), PromptConfig())
"""


def test_ctrl_c_ends_all_processes_at_once(tmp_path):
    path = save_source(tmp_path / "data", "chat")
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, path, tmp_path / "cache"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for _ in range(4):
        assert process.stdout.readline() == "reading\n"
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    started = time.monotonic()
    _, err = process.communicate(timeout=30)
    assert time.monotonic() - started < 10
    assert err.count("Traceback") == 1 and err.rstrip().endswith("KeyboardInterrupt")
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
