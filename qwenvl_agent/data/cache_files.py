"""The files of a source's cache, as they are written: dataset.py, which reads them, says what each holds."""

import hashlib
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import datasets
import numpy as np
import pyarrow as pa

from qwenvl_agent.data.source import FileNote, Item, Reject, SourceRow
from qwenvl_agent.schema import Tool

STEP_FEATURES = datasets.Features(
    {
        "episode_id": datasets.Value("string"),
        "episode_key": datasets.Value("int64"),
        "split_key": datasets.Value("int64"),
        "turn_index": datasets.Value("int64"),
        "source": datasets.Value("string"),
        "weight": datasets.Value("float64"),
        "prompt": datasets.Value("int64"),
        "text": datasets.Value("string"),
        "pictures": datasets.List(
            {"path": datasets.Value("string"), "width": datasets.Value("int64"), "height": datasets.Value("int64")}
        ),
        "turn": datasets.Value("string"),
        "results": datasets.Value("string"),
        "length": datasets.Value("float64"),
    }
)
PROMPT_FEATURES = datasets.Features(
    {"system_prompt": datasets.Value("string"), "tools": datasets.Value("string"), "length": datasets.Value("float64")}
)
INDEX_DTYPE = np.dtype(
    [
        ("split_key", np.uint64),
        ("length", np.float64),
        ("prompt", np.int32),
        ("turn_index", np.int32),
        ("previous", np.int32),
        ("is_row", np.bool_),
    ],
    align=True,
)
"""`previous` is the position of the step before in its episode, or -1; `is_row` whether the step is one to learn."""
# Only to tell long rows from short ones before any tokenizer is at hand.
CHARS_PER_TOKEN = 3.0
PIXELS_PER_TOKEN = 32 * 32
ROWS_A_BATCH = 10_000
"""Of an Arrow file: each batch costs some 8 KB of memory when it is opened."""
_to_json = json.JSONEncoder(ensure_ascii=False).encode  # json.dumps would make an encoder for each row


def column_of(dataset: datasets.Dataset, name: str) -> np.ndarray:
    return dataset.data.column(name).to_numpy()


def _link(episode_key: np.ndarray, turn_index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each step: the position of the step just before it in its episode or -1, and whether it is a duplicate.

    A missing turn ends the history: -1. Of two steps with the same place in an episode the first in the file stands.
    """
    order = np.lexsort((turn_index, episode_key))
    is_same_episode = np.diff(episode_key[order], prepend=0) == 0
    is_same_episode[:1] = False
    distance = np.diff(turn_index[order], prepend=0)
    is_duplicate = np.zeros(len(order), dtype=bool)
    is_duplicate[order] = is_same_episode & (distance == 0)
    order = order[~is_duplicate[order]]
    previous = np.full(len(episode_key), -1, dtype=np.int32)
    if len(order) > 1:
        follows = (np.diff(episode_key[order]) == 0) & (np.diff(turn_index[order]) == 1)
        previous[order[1:][follows]] = order[:-1][follows]
    return previous, is_duplicate


def file_stamps(paths: list[str]) -> bytes:
    # A loop over os.stat: scandir, directory descriptors and threads are all slower on a local disk.
    stats = map(os.stat, paths)
    numbers = itertools.chain.from_iterable((stat.st_size, stat.st_mtime_ns) for stat in stats)
    return np.fromiter(numbers, dtype="<i8", count=2 * len(paths)).tobytes()


@dataclass(frozen=True)
class Encoded:
    """Items as the cache keeps them, in their order. Plain data, for other processes."""

    places: list[str | Reject]
    """Of each item: its source, or the reject."""
    steps: pa.RecordBatch
    """Of the rows; `prompt` is the position in `prompts`."""
    prompts: list["_Prompt"]
    """The distinct ones, in the order in which they are first used."""
    contents: list[bytes]
    """Of each row: what the dataset's hash covers, besides the prompt."""
    stamps: bytes
    """`file_stamps` of the rows' pictures."""
    notes: Counter[str]


@dataclass(frozen=True)
class _Prompt:
    """A (system prompt, tools), encoded."""

    record: dict
    content: bytes


def encode(items: Iterable[Item]) -> Encoded:
    """What the cache keeps of the items; a row that cannot be kept is a reject."""
    prompts, notes = _Prompts(), Counter[str]()
    places, steps, contents, pictures = list[str | Reject](), list[dict](), list[bytes](), list[str]()
    for item in items:
        if isinstance(item, FileNote):
            notes[item.name] += item.count
            continue
        if isinstance(item, Reject):
            places.append(item)
            continue
        step = _encode_step(item)
        try:
            content = _content(step)
            prompt = prompts.number(item)  # last: no other than a row that is kept makes it known
        except UnicodeEncodeError as error:
            # JSON may spell half a surrogate pair, which is no character: no file and no tokenizer can hold it.
            fault = f"{error.object[error.start]!r} is half a character: correct the text"
            places.append(Reject(item.source, fault))
            continue
        places.append(item.source)
        steps.append({**step, "prompt": prompt})
        contents.append(content)
        pictures += [picture["path"] for picture in step["pictures"]]
        notes.update(item.notes)
    batch = pa.RecordBatch.from_pylist(steps, schema=STEP_FEATURES.arrow_schema)
    return Encoded(places, batch, prompts.encoded, contents, file_stamps(pictures), notes)


class _Prompts:
    """The distinct prompts of some rows; a million rows name a handful, so each is encoded once."""

    def __init__(self) -> None:
        self.encoded: list[_Prompt] = []
        self.numbers: dict[tuple[str, int], int] = {}
        self.tools: list[tuple[Tool, ...]] = []
        """Kept because they are known again by their identity."""

    def number(self, row: SourceRow) -> int:
        """UnicodeEncodeError for half a character."""
        key = (row.system_prompt, id(row.tools))
        if key not in self.numbers:
            record = _encode_prompt(row)
            self.encoded.append(_Prompt(record, _to_json(record).encode()))
            self.tools.append(row.tools)
            self.numbers[key] = len(self.encoded) - 1
        return self.numbers[key]


def write_files(batches: Iterable[Encoded], folder: Path) -> dict:
    """The four data files; returns what meta.json holds."""
    notes: Counter[str] = Counter()
    records = _Places()
    rows_digest, stamps_digest = hashlib.sha256(), hashlib.sha256()
    with (
        _Table(folder / "steps.arrow", STEP_FEATURES) as steps,
        _PromptTable(folder / "prompts.arrow") as prompts,
        _RejectLog(folder / "rejects.jsonl") as rejects,
    ):
        for batch in batches:
            for place in batch.places:
                records.add(place.source if isinstance(place, Reject) else place)
                if isinstance(place, Reject):
                    rejects.add(place)
            used = batch.steps.column("prompt").to_numpy()
            for prompt, content in zip(used, batch.contents, strict=True):
                rows_digest.update(b"[%b, %b]" % (batch.prompts[prompt].content, content))
            stamps_digest.update(batch.stamps)
            notes.update(batch.notes)
            steps.write(_with_column(batch.steps, "prompt", prompts.numbers_of(batch.prompts)[used]))
        steps.close()
        num_episodes = _write_index(folder, rejects)
    return {
        "num_episodes": num_episodes,
        "num_records": records.num,
        "num_rejected_records": rejects.records.num,
        "num_left_out": rejects.num_left_out,
        "num_rejects": rejects.num,
        "reject_reasons": dict(rejects.reasons.most_common()),
        "notes": dict(notes),
        "rows_digest": rows_digest.hexdigest(),
        "picture_stamps_digest": stamps_digest.hexdigest(),
    }


def _with_column(batch: pa.RecordBatch, name: str, values: np.ndarray) -> pa.RecordBatch:
    columns = dict(zip(batch.schema.names, batch.columns, strict=True)) | {name: pa.array(values, pa.int64())}
    return pa.RecordBatch.from_arrays(list(columns.values()), schema=batch.schema)


class _Table:
    """An Arrow file for `datasets`, written about ROWS_A_BATCH rows at a time."""

    def __init__(self, path: Path, features: datasets.Features):
        self.schema = features.arrow_schema
        self.stream = pa.ipc.new_stream(str(path), self.schema)
        self.batches: list[pa.RecordBatch] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def write(self, batch: pa.RecordBatch) -> None:
        self.batches.append(batch)
        if sum(batch.num_rows for batch in self.batches) >= ROWS_A_BATCH:
            self._flush()

    def close(self) -> None:
        """Twice does no harm."""
        self._flush()
        self.stream.close()

    def _flush(self) -> None:
        if any(batch.num_rows for batch in self.batches):
            self.stream.write_table(pa.Table.from_batches(self.batches, self.schema).combine_chunks())
        self.batches = []


class _PromptTable(_Table):
    """The distinct prompts of all rows."""

    def __init__(self, path: Path):
        super().__init__(path, PROMPT_FEATURES)
        self.numbers: dict[bytes, int] = {}

    def numbers_of(self, prompts: list[_Prompt]) -> np.ndarray:
        """(num_prompts,) their positions in the table, in which those that are new are written."""
        keys = [hashlib.sha256(prompt.content).digest() for prompt in prompts]
        new = {key: prompt.record for key, prompt in zip(keys, prompts, strict=True) if key not in self.numbers}
        for key in new:
            self.numbers[key] = len(self.numbers)
        if new:
            self.write(pa.RecordBatch.from_pylist(list(new.values()), schema=self.schema))
        return np.array([self.numbers[key] for key in keys], dtype=np.int64)


def _encode_prompt(row: SourceRow) -> dict:
    # An entry of its own form only where there is one, so that the dataset's hash stays what it was for all others.
    fields = [{key: value for key, value in vars(tool).items() if value is not None} for tool in row.tools]
    tools = _to_json(fields)
    length = (len(row.system_prompt) + len(tools)) / CHARS_PER_TOKEN
    return {"system_prompt": row.system_prompt, "tools": tools, "length": length}


def _encode_step(row: SourceRow) -> dict:
    """What `_decode_step` reads back, with the row's place and keys."""
    observation, turn = row.step.observation, row.step.turn
    calls = [[call.name, call.arguments] for call in turn.tool_calls]
    turn_json = _to_json({"thought": turn.thought, "tool_calls": calls, "text": turn.text})
    results = _to_json([[result.name, result.content] for result in row.step.results])
    pictures = [{"path": p.path, "width": p.width, "height": p.height} for p in observation.pictures]
    num_chars = len(observation.text) + len(turn_json) + len(results)
    num_pixels = sum(p.width * p.height for p in observation.pictures)
    return {
        "episode_id": row.episode_id,
        "episode_key": _key(row.episode_id),
        "split_key": _key(row.split_key),
        "turn_index": row.turn_index,
        "source": row.source,
        "weight": row.weight,
        "text": observation.text,
        "pictures": pictures,
        "turn": turn_json,
        "results": results,
        "length": num_chars / CHARS_PER_TOKEN + num_pixels / PIXELS_PER_TOKEN,
    }


def _key(text: str) -> int:
    # "surrogatepass": half a character is reported where the row is checked, not here.
    return int.from_bytes(
        hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little", signed=True
    )


def _content(step: dict) -> bytes:
    """What the dataset's hash covers of a step: all that a model can see, and no folder's name."""
    pictures = [[os.path.basename(p["path"]), p["width"], p["height"]] for p in step["pictures"]]
    return _to_json({**step, "source": "", "pictures": pictures}).encode()


def _write_index(folder: Path, rejects: "_RejectLog") -> int:
    """index.npy, from steps.arrow; logs every step at a taken place of its episode; returns the number of episodes."""
    steps = datasets.Dataset.from_file(str(folder / "steps.arrow"))
    index = np.zeros(len(steps), dtype=INDEX_DTYPE)
    for name in ("turn_index", "length", "prompt"):
        index[name] = column_of(steps, name)
    index["split_key"] = column_of(steps, "split_key").view(np.uint64)
    episode_key = column_of(steps, "episode_key")
    index["previous"], is_duplicate = _link(episode_key, index["turn_index"])
    # A turn of weight 0 teaches nothing; it stays as history.
    index["is_row"] = ~is_duplicate & (column_of(steps, "weight") > 0)
    np.save(folder / "index.npy", index)
    for position in np.flatnonzero(is_duplicate):
        step = steps[int(position)]
        message = (
            f"turn {step['turn_index']} of episode {step['episode_id']!r} is there already: it would count twice; "
            "remove one of the two"
        )
        rejects.add(Reject(step["source"], message))
    return len(np.unique(episode_key))


def reason_of(message: str) -> str:
    """The message without the values in it."""
    return re.sub(r"'[^']*'|\"[^\"]*\"|\d+", "_", message)


class _Places:
    """Counts the records of a file: what comes of one record comes together."""

    def __init__(self) -> None:
        self.num = 0
        self.last = ""

    def add(self, source: str) -> None:
        self.num += source != self.last
        self.last = source


class _RejectLog:
    """rejects.jsonl, and a count a reason: the message without the values in it."""

    def __init__(self, path: Path):
        self.path = path
        self.num = self.num_left_out = 0
        self.records = _Places()
        self.reasons: Counter[str] = Counter()

    def __enter__(self) -> "_RejectLog":
        self.file = open(self.path, "w", encoding="utf-8")
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def add(self, reject: Reject) -> None:
        self.num += 1
        self.num_left_out += reject.is_left_out
        self.records.add(reject.source)
        reason = reason_of(reject.message)
        self.reasons[reason] += 1
        self.file.write(json.dumps({"source": reject.source, "message": reject.message, "reason": reason}) + "\n")
