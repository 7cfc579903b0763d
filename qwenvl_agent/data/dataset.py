"""Source files -> training rows: one supervised step with its history. Arrow on disk, so memory does not grow with rows.

Each source file is read once into a cache folder that is keyed by what was read:

    <cache_dir>/<key>/
        steps.arrow        one step a row; pictures as path, width, height, never as pixels
        prompts.arrow      the distinct (system prompt, tools), which steps name by number
        index.npy          the numbers that are wanted of every step at once: keys, length, where its history is
        rejects.jsonl      {"source": "file:line", "message", "reason"} for every line that gave no row
        meta.json          counts, and the digests that tell whether the cache still holds
    <cache_dir>/<file>.sha256  what a source file's bytes hash to, as long as the file is the same

The key is a hash of the file's bytes, the reader's options and the versions that reader and cache state (`VERSION`, and
`readers.Reader`); `datasets`' own generator cache would be keyed by the generator instead and return stale rows. What is read of a cache is mapped, not loaded: memory that the
kernel may take back, and that all processes of a machine share.
"""

import copy
import hashlib
import json
import shutil
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import datasets
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from qwenvl_agent.config import KINDS_WITH_OWN_PROMPTS, DataConfig, PromptConfig, SourceConfig
from qwenvl_agent.containers import data_files, num_records
from qwenvl_agent.containers.note import Note, ignore
from qwenvl_agent.data.cache_files import Encoded, column_of, file_stamps, write_files
from qwenvl_agent.data.indexing import index
from qwenvl_agent.data.readers import READERS
from qwenvl_agent.file_signatures import check_is_data
from qwenvl_agent.files import read_json, write_json
from qwenvl_agent.schema import Observation, Picture, Request, Row, Step, Tool, ToolCall, ToolResult, Turn

VERSION = 2
"""Of what the files of a cache hold, and of what all readers share (sizes of pictures, texts made NFC, schemas): raise it
when either changes, and every source is read anew, once. tests/test_reader_versions.py says when."""

READ_COLUMNS = ("episode_id", "turn_index", "source", "weight", "prompt", "text", "pictures", "turn", "results")
MAX_DECODED_PROMPTS = 1024
LONG_FILE = 2**24
"""Bytes from which indexing takes some seconds."""
MAX_LINES_WHOLE = 2000
"""Of a file whose pictures are decoded when it is read, unless data.check_pictures says otherwise: some seconds."""
LOG_SECONDS = 30.0
"""Between two lines about a long file, where no terminal shows a bar."""
SETTLED_NS = 10 * 10**9


@dataclass(frozen=True)
class Rows:
    """The rows of a run. `report` is plain JSON: counts, rejects by reason, and `dataset_hash` for result files."""

    train: "RowDataset"
    held_out: "RowDataset"
    report: dict

    def summary(self) -> str:
        """The report in a few lines, for people."""
        lines = []
        for source in self.report["sources"]:
            lines.append(
                f"{source['path']}: {source['num_rows']} rows of {source['num_episodes']} episodes, "
                f"{source['num_rejects']} rejected, of {source['num_records']} records"
            )
            if source["num_shown_only"]:
                lines.append(f"  not learned {source['num_shown_only']} x answer of weight 0, which the history shows")
            lines += [f"  rejected {count} x {reason}" for reason, count in source["reject_reasons"].items()]
            if source["num_rejects"]:
                lines.append(f"  each with its place: {source['rejects_path']}")
            reasons = source.get("unusable_reasons", {})
            lines += [f"  not used {count} x {reason}" for reason, count in reasons.items()]
            lines += [f"  each with its place: {source['unusable_path']}"] if reasons else []
            lines += [f"  {name}: {count}" for name, count in source["notes"].items()]
        lines.append(
            f"train {len(self.train)} rows, held out {len(self.held_out)} rows "
            f"({self.report['num_held_out_episodes']} of {self.report['num_episodes']} episodes)"
        )
        return "\n".join(lines)


def build_rows(data_cfg: DataConfig, prompt_cfg: PromptConfig) -> Rows:
    """Read every source (or its cache), split the episodes, and link each row to its history."""
    if not data_cfg.sources:
        raise ValueError(
            "data.sources is empty: there is nothing to read; name at least one file (of a curriculum take a stage, runs/NAME/STAGE/config.json)"
        )
    if not 0 <= data_cfg.eval_fraction < 1:
        raise ValueError(f"data.eval_fraction is {data_cfg.eval_fraction}: nothing is left to train on; use 0 to 0.9")
    sources = [_open_source(source_cfg, data_cfg) for source_cfg in data_cfg.sources]
    for source in sources if prompt_cfg.supervise_history else ():
        source.refuse_weights()
    is_held_out, num_episodes, num_held_out = _split(
        [source.index["split_key"] for source in sources], data_cfg.eval_fraction, data_cfg.seed
    )
    train, held_out = (
        RowDataset(
            sources,
            [s.index["is_row"] & (held == side) for s, held in zip(sources, is_held_out, strict=True)],
            prompt_cfg,
        )
        for side in (False, True)
    )
    report = {
        "dataset_hash": _digest([[s.meta["rows_digest"], s.cfg.weight] for s in sources]),
        "num_train_rows": len(train),
        "num_held_out_rows": len(held_out),
        "num_episodes": num_episodes,
        "num_held_out_episodes": num_held_out,
        "sources": [source.report(prompt_cfg.history_steps) for source in sources],
    }
    return Rows(train, held_out, report)


class RowDataset:
    """Rows by index, decoded when asked for; pictures stay closed files. Cheap to send to a worker process."""

    def __init__(self, sources: "list[SourceCache]", is_row: list[np.ndarray], prompt_cfg: PromptConfig):
        self.sources = sources
        self.history_steps = prompt_cfg.history_steps
        self.positions = [np.flatnonzero(mask).astype(np.int32) for mask in is_row]
        self.ends = np.cumsum([len(positions) for positions in self.positions])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> Row:
        index = range(len(self))[index]
        source = int(np.searchsorted(self.ends, index, side="right"))
        position = self.positions[source][index - self.ends[source]]  # counted from the source's end
        return self.sources[source].row(int(position), self.history_steps)

    def without(self, masks: list[np.ndarray]) -> "RowDataset":
        """The rows whose steps are not masked; a mask is over all steps of a source."""
        other = copy.copy(self)
        vars(other).pop("lengths", None)
        other.positions = [p[~mask[p]] for p, mask in zip(self.positions, masks, strict=True)]
        other.ends = np.cumsum([len(positions) for positions in other.positions])
        return other

    @cached_property
    def lengths(self) -> np.ndarray:
        """Estimated tokens of each row."""
        pairs = zip(self.sources, self.positions, strict=True)
        return np.concatenate([source.lengths(self.history_steps)[positions] for source, positions in pairs])

    @property
    def sampling_weights(self) -> np.ndarray:
        """Proportional to how often each row is drawn; their mean is 1."""
        return _sampling_weights([s.cfg.weight for s in self.sources], [len(p) for p in self.positions])


def _sampling_weights(shares: list[float], num_rows: list[int]) -> np.ndarray:
    """A source's share is spread evenly over its rows, so equal shares of a small and a large source repeat the small.

    One source alone gives exact ones.
    """
    total = sum(num_rows)
    drawn = sum(share for share, n in zip(shares, num_rows, strict=True) if n)
    weights = [share / drawn * total / n if n else 0.0 for share, n in zip(shares, num_rows, strict=True)]
    return np.repeat(np.asarray(weights), num_rows)


def _split(split_keys: list[np.ndarray], fraction: float, seed: int) -> tuple[list[np.ndarray], int, int]:
    """For each source, which steps are held out; then the number of episodes, and of those held out.

    An episode's side depends on its own key and the seed alone, so it stays when others are added. The one exception:
    of two or more episodes at least one is held out (unless fraction is 0) and at least one is trained on.
    """
    episodes = np.unique(np.concatenate(split_keys))
    draw = _mix(episodes ^ _mix(np.asarray([seed % 2**64], dtype=np.uint64)))
    is_held_out = draw < np.uint64(int(fraction * 2**64))
    if fraction > 0 and len(episodes) > 1:
        is_held_out[draw.argmin()] = True
        is_held_out[draw.argmax()] = False
    sides = [is_held_out[np.searchsorted(episodes, keys)] for keys in split_keys]
    return sides, len(episodes), int(is_held_out.sum())


def _mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64: uint64 to well-spread uint64, one to one (products wrap by design)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class SourceCache:
    """One source file's cache, opened; nothing of it is loaded."""

    def __init__(self, cfg: SourceConfig, path: Path, folder: Path):
        self.cfg, self.path, self.folder = cfg, path, folder
        self.meta = read_json(folder / "meta.json")
        self.steps = datasets.Dataset.from_file(str(folder / "steps.arrow"))
        self.prompts = datasets.Dataset.from_file(str(folder / "prompts.arrow"))
        self.index = np.asarray(np.load(folder / "index.npy", mmap_mode="r"))
        self._decoded_prompts: dict[int, tuple[str, tuple[Tool, ...]]] = {}
        if not self.index["is_row"].any():
            raise ValueError(self._nothing_to_learn())

    def __reduce__(self) -> tuple:
        """Another process opens the cache itself."""
        return SourceCache, (self.cfg, self.path, self.folder)

    def row(self, position: int, history_steps: int) -> Row:
        record = self._record(position)
        history: list[Step] = []
        previous = self.index["previous"]
        before = int(previous[position])
        while before >= 0 and len(history) < history_steps:
            history.insert(0, _decode_step(self._record(before)))
            before = int(previous[before])
        step = _decode_step(record)
        asks_for_thought = self.cfg.kind not in KINDS_WITH_OWN_PROMPTS
        request = Request(*self._prompt(record["prompt"]), tuple(history), step.observation, asks_for_thought)
        row_id = f"{record['episode_id']}/{record['turn_index']}"
        return Row(row_id, request, step.turn, record["source"], record["weight"])

    def lengths(self, history_steps: int) -> np.ndarray:
        """Estimated tokens of every step's row."""
        return (
            self.with_history(self.index["length"], history_steps)
            + column_of(self.prompts, "length")[self.index["prompt"]]
        )

    def with_history(self, values: np.ndarray, history_steps: int) -> np.ndarray:
        """Of every step: its value and those of the steps before it that its row shows, summed."""
        total, previous = values, self.index["previous"]
        before = previous
        for _ in range(min(history_steps, int(self.index["turn_index"].max()))):
            total = total + np.where(before >= 0, values[before], 0)
            before = np.where(before >= 0, previous[before], -1)
        return total

    def refuse_weights(self) -> None:
        """ValueError for an answer with a weight of its own, which a history that is learned would not keep."""
        weighted = np.flatnonzero(column_of(self.steps, "weight") != 1)
        if len(weighted):
            step = self.steps[int(weighted[0])]
            raise ValueError(
                f"{step['source']}: an answer has weight {step['weight']:g}, and prompt.supervise_history learns all turns "
                "of a history alike: it would be learned in full; set it to false, or take the weights out of the data"
            )

    def report(self, history_steps: int) -> dict:
        notes = dict(self.meta["notes"])
        # Recorded agents keep their memory in the notepad; a conversation's earlier messages are nowhere else.
        if self.cfg.kind == "chat" and (num_cut := self._num_deeper(history_steps)):
            notes["history_longer_than_prompt.history_steps"] = num_cut
        return {
            "path": str(self.path),
            "kind": self.cfg.kind,
            "weight": self.cfg.weight,
            "num_rows": int(self.index["is_row"].sum()),
            "num_episodes": self.meta["num_episodes"],
            "num_records": self.meta["num_records"],
            "num_rejected_records": self.meta["num_rejected_records"],
            "num_left_out": self.meta["num_left_out"],
            "num_rejects": self.meta["num_rejects"],
            "num_shown_only": self.num_shown_only,
            "reject_reasons": self.meta["reject_reasons"],
            "rejects_path": str(self.folder / "rejects.jsonl"),
            "notes": notes,
        }

    @property
    def num_shown_only(self) -> int:
        """Answers of weight 0: in the history of those after them, and no rows of their own."""
        return int((column_of(self.steps, "weight") == 0).sum())

    def tool_names(self) -> set[frozenset[str]]:
        """The names of the tools of each distinct prompt."""
        return {frozenset(tool["name"] for tool in json.loads(tools)) for tools in set(self.prompts["tools"])}

    def _num_deeper(self, history_steps: int) -> int:
        return int((self.index["is_row"] & (self.index["turn_index"] > history_steps)).sum())

    def _record(self, position: int) -> dict:
        # Column by column, three times as fast as `self.steps[position]`, which goes through a table of one row.
        table = self.steps.data
        return {name: table.column(name)[position].as_py() for name in READ_COLUMNS}

    def _prompt(self, number: int) -> tuple[str, tuple[Tool, ...]]:
        if number not in self._decoded_prompts:
            if len(self._decoded_prompts) == MAX_DECODED_PROMPTS:
                self._decoded_prompts.clear()
            record = self.prompts[number]
            tools = tuple(Tool(**tool) for tool in json.loads(record["tools"]))
            self._decoded_prompts[number] = (record["system_prompt"], tools)
        return self._decoded_prompts[number]

    def _nothing_to_learn(self) -> str:
        if len(self.steps):
            return f"{self.path}: every answer has weight 0: there is nothing to learn; give at least one a weight"
        with open(self.folder / "rejects.jsonl", encoding="utf-8") as file:
            first = [json.loads(line) for line, _ in zip(file, range(3), strict=False)]
        if not first:
            return f"{self.path} holds no rows: there is nothing to learn; give a file with recorded turns"
        shown = "\n".join(f"  {reject['source']}: {reject['message']}" for reject in first)
        return (
            f"{self.path}: all {self.meta['num_rejects']} rows are rejected, nothing is left; correct them "
            f"(qwenvl-agent check-data {self.path} says what the file is):\n{shown}"
        )


def _decode_step(record: dict) -> Step:
    turn, results = json.loads(record["turn"]), json.loads(record["results"])
    return Step(
        Observation(record["text"], tuple(Picture(**picture) for picture in record["pictures"])),
        Turn(turn["thought"], tuple(ToolCall(*call) for call in turn["tool_calls"]), turn["text"]),
        tuple(ToolResult(*result) for result in results),
    )


def _open_source(cfg: SourceConfig, data_cfg: DataConfig) -> SourceCache:
    """The source's cache, written first if there is none or its pictures have changed."""
    return SourceCache(cfg, *index_source(cfg, data_cfg))


def index_source(cfg: SourceConfig, data_cfg: DataConfig) -> tuple[Path, Path]:
    """The source's file and its cache's folder, written first if there is none or its pictures have changed; the folder
    may hold no row to learn."""
    if cfg.weight <= 0:
        raise ValueError(
            f"weight of data source {cfg.path!r} is {cfg.weight}: no row would be drawn; remove the source"
        )
    files = data_files(cfg.path)
    path = files[0] if len(files) == 1 else Path(cfg.path)
    for file in files:
        check_is_data(file)
    digests = [_file_digest(file, Path(data_cfg.cache_dir)) for file in files]
    content = digests[0] if len(files) == 1 else _digest([[file.name for file in files], digests])
    is_whole = data_cfg.check_pictures == "whole" or (data_cfg.check_pictures == "auto" and _are_short(files))
    reader = READERS[cfg.kind]
    options = [data_cfg.max_thought_chars, is_whole, VERSION, reader.version, reader.beside(files[0], cfg)]
    key = _digest([str(path), str(path.resolve()), cfg.kind, content, *options])
    folder = Path(data_cfg.cache_dir) / key
    if not _is_fresh(folder):
        with _progress(path.name, sum(file.stat().st_size for file in files)) as note:
            _write_cache(index(files, cfg, data_cfg, note, decodes_pictures=is_whole), folder)
    return path, folder


def _file_digest(path: Path, cache_dir: Path) -> str:
    """SHA-256 of the file's bytes, remembered as long as the file is the same by its inode.

    No program can set the time of an inode's last change. But two changes within one tick of the clock have the same,
    so the digest of a file that changed just now is not kept.
    """
    note = cache_dir / f"{_digest(str(path.resolve()))}.sha256"
    stamp, checked_ns = _stamp(path), time.time_ns()
    try:
        known = read_json(note)
    except FileNotFoundError:
        known = {}
    if known.get("stamp") == stamp:
        return known["sha256"]
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    changed_ns = max(stamp["ctime_ns"], stamp["mtime_ns"])
    if _stamp(path) == stamp and checked_ns - changed_ns > SETTLED_NS:
        cache_dir.mkdir(parents=True, exist_ok=True)
        write_json(note, {"path": str(path), "stamp": stamp, "sha256": digest})
    return digest


def _stamp(path: Path) -> dict[str, int]:
    stat = path.stat()
    names = ("dev", "ino", "size", "mtime_ns", "ctime_ns")
    return {name: getattr(stat, f"st_{name}") for name in names}


@contextmanager
def _progress(name: str, num_bytes: int) -> Iterator[Note]:
    """What is told how many bytes are read: a bar in a terminal, a line now and then elsewhere, if the file is long."""
    console = Console(stderr=True)
    if num_bytes < LONG_FILE:
        yield ignore
    elif not console.is_terminal:
        yield _ProgressLines(name, num_bytes)
    else:
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(f"indexing {name}", total=num_bytes)
            yield lambda done: bar.update(task, completed=done)


class _ProgressLines:
    """A line on stderr every LOG_SECONDS."""

    def __init__(self, name: str, num_bytes: int):
        self.name, self.num_bytes = name, num_bytes
        self.started = self.said = time.monotonic()

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if done and now - self.said >= LOG_SECONDS:
            self.said = now
            left = (now - self.started) * (self.num_bytes / done - 1)
            print(f"indexing {self.name}: {done / self.num_bytes:.0%}, about {left:.0f} s more", file=sys.stderr)


def _are_short(files: Sequence[Path]) -> bool:
    """Of few records; a JSON list may be one line of any length."""
    if any(file.suffix != ".parquet" and file.stat().st_size >= LONG_FILE for file in files):
        return False
    return sum(num_records(file, MAX_LINES_WHOLE) for file in files) <= MAX_LINES_WHOLE


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def _is_fresh(folder: Path) -> bool:
    """Whether the cache is there and every picture has the size in bytes and the time of change that it was read with.

    What has those and is another picture all the same is found when it is opened, if its width or height differs.
    """
    try:
        meta = read_json(folder / "meta.json")
        steps = datasets.Dataset.from_file(str(folder / "steps.arrow"))
        stamps = hashlib.sha256()
        for chunk in steps.data.column("pictures").chunks:
            stamps.update(file_stamps(chunk.flatten().field("path").to_pylist()))
    except OSError:
        return False
    return stamps.hexdigest() == meta["picture_stamps_digest"]


def _write_cache(batches: Iterable[Encoded], folder: Path) -> None:
    """Write everything under a temporary name, then rename: another process sees the whole cache or none."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}")
    temporary.mkdir()
    try:
        meta = write_files(batches, temporary)
        write_json(temporary / "meta.json", meta)
        if not _is_fresh(folder):  # else another rank was faster, and what it wrote is the same
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
