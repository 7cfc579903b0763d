"""Records are the same whatever holds them, at places that tell them apart; what cannot be read stands at its place."""

import datetime
import decimal
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from source_rows import read_rows

from qwenvl_agent.containers import data_files, json_list, read_records, records_of
from qwenvl_agent.data.source import Reject

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
ITEMS = st.dictionaries(st.text(max_size=8), VALUES, max_size=4)


def values_of(path: Path) -> list:
    return [record.content for record in read_records(path)]


def places_of(path: Path) -> list[str]:
    return [record.source.removeprefix(f"{path}:") for record in read_records(path)]


@given(st.lists(ITEMS, max_size=6), st.sampled_from([None, 0, 1]), st.booleans(), st.integers(1, 40))
def test_a_list_gives_what_json_gives_wherever_the_window_ends(items, indent, is_ascii, chunk):
    content = json.dumps(items, indent=indent, ensure_ascii=is_ascii).encode("utf-8", "surrogatepass")
    try:
        content.decode()
    except UnicodeDecodeError:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_list, "CHUNK", chunk)
        window = json_list._Window(io.BytesIO(content))
        found = []
        while window.skip():
            found.append(window.take())
    assert found == items and window.line == 1 + content.count(b"\n")


@pytest.mark.parametrize("chunk", [1, 7, 64, 2**20])
def test_a_fault_is_told_alike_wherever_the_window_ends(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(json_list, "CHUNK", chunk)
    path = tmp_path / "a.json"
    path.write_text('[{"a": 1}, {"a": 1, "a": 2}, {"b": ' + "7" * 5000 + '},\n{"c": "x"}, {"a": [}, {"a": 3}]')
    (first, twice, digits, third, broken) = read_records(path)
    assert (first.content, third.content) == ({"a": 1}, {"c": "x"})
    assert str(twice.content).startswith("key 'a' is there twice in one object")
    assert str(digits.content).startswith("a number has thousands of digits")
    assert str(broken.content) == (
        "not JSON (Expecting value, column 20): the line is skipped; correct it; the rest of the file is not read"
    )
    assert places_of(path) == ["1", "1[1]", "1[2]", "2", "2[4]"]


@pytest.mark.parametrize("chunk", [5, 2**20])
def test_a_list_that_is_cut_off_or_no_text_gives_what_is_in_front(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(json_list, "CHUNK", chunk)
    path = tmp_path / "a.json"
    path.write_bytes(b'[{"a": "\xc3\xa9"}, {"a": "bc')
    whole, cut = values_of(path)
    assert whole == {"a": "é"} and "Unterminated string" in str(cut) and "the rest of the file is not read" in str(cut)
    path.write_bytes(b'\xef\xbb\xbf[{"a": 1}, {"a": "\xff"}, {"a": 2}]')
    whole, broken = values_of(path)
    assert whole == {"a": 1}
    assert str(broken).startswith("byte 21 is not UTF-8: from there on nothing is read; save it as UTF-8")


def test_lines_and_one_object_may_be_called_json(tmp_path):
    items = [{"a": 1}, {"a": 2}]
    path = tmp_path / "lines.json"
    path.write_text("".join(f"{json.dumps(item)}\n" for item in items))
    assert values_of(path) == items and places_of(path) == ["1", "2"]
    path.write_text(json.dumps(items[0]))
    assert values_of(path) == items[:1]


MEMORY = """
import resource, sys
from pathlib import Path
from qwenvl_agent.containers import read_records
path = Path(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
num = sum(1 for _ in read_records(path))
print(num, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_stays_flat_whatever_a_list_s_length(tmp_path):
    path, item = tmp_path / "long.json", json.dumps({"text": "x" * 2000})
    path.write_text("[" + ", ".join([item] * 25_000) + "]")  # one line of 50 MB
    done = subprocess.run([sys.executable, "-c", MEMORY, path], capture_output=True, text=True, check=True)
    num, kilobytes = map(int, done.stdout.split())
    assert num == 25_000 and kilobytes < 16_000


# tables


def png(color: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 48), color).save(file, "PNG")
    return file.getvalue()


def save_table(path: Path, rows: list[dict] | pa.Table, **options) -> Path:
    table = pa.Table.from_pylist(rows) if isinstance(rows, list) else rows
    pyarrow.parquet.write_table(table, path, **options)
    return path


def test_cells_are_the_plain_values_that_json_would_hold(tmp_path):
    columns = {
        "whole": pa.array([3, None]),
        "date": pa.array([datetime.date(2026, 11, 27)] * 2),
        "time": pa.array([datetime.datetime(2026, 11, 27, 3, 4, 5)] * 2),
        "seconds": pa.array([datetime.timedelta(seconds=1.5)] * 2),
        "decimal": pa.array([decimal.Decimal("3.50"), None]),
        "count": pa.array([decimal.Decimal("3"), None]),
        "map": pa.array([[("k", 1)], None], type=pa.map_(pa.string(), pa.int64())),
        "word": pa.array(["x", "y"]).dictionary_encode(),
        "large": pa.array(["x", None], type=pa.large_string()),
        "half": pa.array(np.array([1.5, 2.5], np.float16)),
        "parts": pa.array([[{"type": "text", "text": "a", "image": None}], [None]]),
    }
    first, second = values_of(save_table(tmp_path / "a.parquet", pa.table(columns)))
    assert first == {
        "whole": 3,
        "date": "2026-11-27",
        "time": "2026-11-27T03:04:05",
        "seconds": 1.5,
        "decimal": 3.5,
        "count": 3,
        "map": {"k": 1},
        "word": "x",
        "large": "x",
        "half": 1.5,
        "parts": [{"type": "text", "text": "a"}],
    }
    assert second.keys() == {"date", "time", "seconds", "word", "half", "parts"} and second["parts"] == [None]
    assert {type(value) for value in first.values()} <= {int, float, str, dict, list}
    assert places_of(tmp_path / "a.parquet") == ["1", "2"]


def test_a_cell_without_a_plain_value_costs_its_row_and_damage_the_rest(tmp_path):
    twice = pa.array([[("k", 1)], [("k", 1), ("k", 2)], []], type=pa.map_(pa.string(), pa.int64()))
    path = save_table(tmp_path / "a.parquet", pa.table({"map": twice}))
    first, second, third = values_of(path)
    assert (first, third) == ({"map": {"k": 1}}, {"map": {}})
    assert str(second).startswith("a cell has no plain value") and "duplicate key" in str(second)
    path.write_bytes(path.read_bytes()[:-20])
    (fault,) = values_of(path)
    assert str(fault).startswith("the table is damaged")
    path = save_table(tmp_path / "c.parquet", [{"column": 1}])
    path.write_bytes(path.read_bytes().replace(b"column", b"\xed" * 6))
    (fault,) = values_of(path)
    assert str(fault).startswith("the table is damaged")
    path = save_table(tmp_path / "b.parquet", [{"a": "x" * 50 + str(i)} for i in range(100)], compression="none")
    path.write_bytes(path.read_bytes().replace(b"x" * 50 + b"9", b"\xff" * 51))
    assert len(values_of(path)) == 100  # no text, and no reader's fault


def safari(turn: int, picture: object) -> dict:
    return {
        "episode_id": "1f2e3d4c",
        "mission": "find the red tiger",
        "turn": turn,
        "system_prompt": "You play.",
        "context_text": "Mission: find the red tiger\nStep: 1/180\nPosition: (25, 25)\n\nFound Targets: (none)\n\nNotepad:\n-",
        "image": picture,
        "tool_calls": json.dumps([{"name": "update_notepad", "args": {"content": "x"}}]),
        "tool_results": json.dumps([{"name": "update_notepad", "result": {"status": "updated"}}]),
        "thought_text": "I note it.",
    }


def recorded(turn: int, picture: object) -> dict:
    tool = {"type": "function", "function": {"name": "act", "description": "Act.", "parameters": {"type": "object"}}}
    calls = {"tool_calls": json.dumps([{"name": "act", "args": {}}]), "tool_results": "[]"}
    return safari(turn, picture) | calls | {"tools": json.dumps([tool])}


def chat(turn: int, picture: object) -> dict:
    said = [{"role": "user", "content": f"<image>What {turn}?"}, {"role": "assistant", "content": "A tiger."}]
    return {"id": f"c{turn}", "messages": said, "images": [picture]}


def computer(turn: int, picture: object) -> dict:
    action = {"action": "click", "x": 10 + turn, "y": 20, "reasoning": "There."}
    return {"id": f"s{turn}", "instruction": "Open it.", "screenshot": picture, "action": action}


KINDS = {"safari": safari, "recorded": recorded, "chat": chat, "computer": computer}


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_reads_the_same_rows_of_lines_a_list_and_tables(tmp_path, kind):
    form, colors = KINDS[kind], ("red", "green", "blue")
    for i, color in enumerate(colors):
        (tmp_path / f"{i}.png").write_bytes(png(color))
    named = [form(i, f"{i}.png") for i in range(3)]
    (tmp_path / "a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in named))
    (tmp_path / "a.json").write_text(json.dumps(named, indent=2))
    cells = [form(i, {"bytes": png(color), "path": None}) for i, color in enumerate(colors)]
    save_table(tmp_path / "a.parquet", cells, row_group_size=2)
    save_table(tmp_path / "b.parquet", [form(i, png(color)) for i, color in enumerate(colors)])
    found = {name: list(read_rows(tmp_path / name, kind)) for name in ("a.jsonl", "a.json", "a.parquet", "b.parquet")}
    for name, rows in found.items():
        assert len(rows) == 3 and not any(isinstance(row, Reject) for row in rows), rows
        for row, same, color in zip(rows, found["a.jsonl"], colors, strict=True):
            assert (row.step.turn, row.step.observation.text) == (same.step.turn, same.step.observation.text)
            (picture,) = row.step.observation.pictures
            assert picture.open().getpixel((0, 0)) == Image.new("RGB", (1, 1), color).getpixel((0, 0))
            assert (Path(picture.path).parent.name == "pictures") == name.endswith(".parquet")
        assert [row.source for row in rows][-1].startswith(f"{tmp_path}/{name}:")
    assert [row.source.rpartition(":")[2] for row in found["a.parquet"]] == ["1", "2", "3"]
    assert len(list((tmp_path / "kept" / "pictures").iterdir())) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_cell_that_is_no_picture_costs_its_row(tmp_path, kind):
    cells = [KINDS[kind](i, {"bytes": content, "path": None}) for i, content in enumerate([png("red"), b"GIF89a", b""])]
    _, broken, empty = read_rows(save_table(tmp_path / "a.parquet", cells), kind)
    for reject, number in ((broken, 2), (empty, 3)):
        assert isinstance(reject, Reject) and reject.source == f"{tmp_path}/a.parquet:{number}"
        assert "is not a readable picture" in reject.message


# which files


def test_shards_are_one_source_in_order_and_must_all_be_there(tmp_path):
    for i in range(3):
        save_table(tmp_path / f"train-{i:05d}-of-00003.parquet", [{"a": 2 * i}, {"a": 2 * i + 1}])
    for path in (tmp_path, tmp_path / "train-*.parquet", tmp_path / "train-0000[0-2]-of-*"):
        records = list(records_of(data_files(path)))
        assert [record.content["a"] for record in records] == [0, 1, 2, 3, 4, 5]
        assert records[-1].source == f"{tmp_path}/train-00002-of-00003.parquet:2"
    (tmp_path / "train-00001-of-00003.parquet").unlink()
    with pytest.raises(ValueError, match=r"holds 2 of 3 shards: rows would be missing; .*train\*.parquet"):
        data_files(tmp_path)
    assert len(data_files(tmp_path / "train*.parquet")) == 2


def test_a_folder_with_several_splits_is_refused(tmp_path):
    for name in ("test-00000-of-00001", "train-00000-of-00001"):
        (tmp_path / "data").mkdir(exist_ok=True)
        save_table(tmp_path / "data" / f"{name}.parquet", [{"a": 1}])
    with pytest.raises(ValueError, match=r"data holds test, train: which are to be trained on is unknown; name one"):
        data_files(tmp_path)
    (tmp_path / "dataset.jsonl").write_text("{}")
    assert data_files(tmp_path) == (tmp_path / "dataset.jsonl",)


def test_paths_that_mean_no_file_are_refused(tmp_path):
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "dataset_info.json").write_text("{}")
    (tmp_path / "saved" / "data-00000-of-00001.arrow").write_bytes(b"")
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.jsonl").write_text("{}")
    for path, message in [
        ("gone.jsonl", "there is no such file"),
        ("*.jsonl", "no file matches"),
        ("?/x.jsonl", "files of 2 folders match"),
        ("a", "holds neither dataset.jsonl nor"),
        ("saved", "is a folder of Dataset.save_to_disk"),
    ]:
        with pytest.raises(ValueError, match=message):
            data_files(tmp_path / path)


@pytest.mark.parametrize("name", ["data.jsonl", "data.json"])
def test_a_record_without_end_is_refused_and_not_kept(tmp_path, monkeypatch, name):
    monkeypatch.setattr("qwenvl_agent.containers.MAX_RECORD_BYTES", 100)
    monkeypatch.setattr("qwenvl_agent.containers.json_list.MAX_RECORD_BYTES", 100)
    monkeypatch.setattr("qwenvl_agent.containers.json_list.CHUNK", 64)
    long = '{"a": "' + "x" * 1000 + '"}'
    path = tmp_path / name
    path.write_text(
        '{"a": 1}\n' + long + '\n{"a": 2}\n' if name == "data.jsonl" else f'[{{"a": 1}},\n{long},\n{{"a": 2}}]'
    )
    found = [(record.source.rpartition(":")[2], record.content) for record in read_records(path)]
    assert found[0][0] == "1" and found[1][0] == "2"
    assert "a record of more than" in str(found[1][1])
    assert [source for source, _ in found[2:]] == (["3"] if name == "data.jsonl" else [])
