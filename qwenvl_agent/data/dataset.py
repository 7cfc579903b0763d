"""Source files -> training rows: one supervised step with its history. Arrow on disk, so memory does not grow with rows.

Each source file is read once into a cache folder that is keyed by what was read:

    <cache_dir>/<key>/
        steps.arrow        one step a row; pictures as path, width, height, never as pixels
        prompts.arrow      the distinct (system prompt, tools), which steps name by number
        rejects.jsonl      {"source": "file:line", "message": "..."} for every line that gave no row
        meta.json          counts, and the digests that tell whether the cache still holds

The key is a hash of the file's bytes, the reader's options and the readers' code; `datasets`' own generator cache would
be keyed by the generator instead and return stale rows.
"""

import hashlib
import json
import os
import re
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import datasets
import numpy as np
from datasets.arrow_writer import ArrowWriter

import qwenvl_agent
from qwenvl_agent.config import DataConfig, PromptConfig, SourceConfig
from qwenvl_agent.data import chat, computer
from qwenvl_agent.data.source import Reject, SourceRow
from qwenvl_agent.schema import Observation, Picture, Request, Row, Step, Tool, ToolCall, ToolResult, Turn

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
READ_COLUMNS = ("episode_id", "turn_index", "source", "weight", "prompt", "text", "pictures", "turn", "results")
PROMPT_FEATURES = datasets.Features(
    {"system_prompt": datasets.Value("string"), "tools": datasets.Value("string"), "length": datasets.Value("float64")}
)
# Only to tell long rows from short ones before any tokenizer is at hand.
CHARS_PER_TOKEN = 3.0
PIXELS_PER_TOKEN = 32 * 32
MAX_DECODED_PROMPTS = 1024


def _read_safari(path: Path, data_cfg: DataConfig) -> Iterator[SourceRow | Reject]:
    from qwenvl_agent.envs.safari import records

    for item in records.read_rows(path, max_thought_chars=data_cfg.max_thought_chars):
        if isinstance(item, records.Reject):
            yield Reject(item.source, item.message)
            continue
        yield SourceRow(
            episode_id=item.episode_id,
            turn_index=item.turn_index,
            split_key=item.episode_id,
            system_prompt=item.system_prompt,
            tools=item.tools,
            step=item.step,
            source=item.source,
            notes=("thought_derived",) if item.thought_derived else (),
        )


def _read_chat(path: Path, data_cfg: DataConfig) -> Iterator[SourceRow | Reject]:
    return chat.read_rows(path)


def _read_computer(path: Path, data_cfg: DataConfig) -> Iterator[SourceRow | Reject]:
    return computer.read_rows(path)


# A new kind of source is one reader and one entry here (and its name among config.SourceConfig's choices).
READERS: dict[str, Callable[[Path, DataConfig], Iterator[SourceRow | Reject]]] = {
    "safari": _read_safari,
    "chat": _read_chat,
    "computer": _read_computer,
}


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
                f"{source['num_rejects']} rejected"
            )
            lines += [f"  rejected {count} x {reason}" for reason, count in source["reject_reasons"].items()]
            if source["num_rejects"]:
                lines.append(f"  each with its place: {source['rejects_path']}")
            lines += [f"  {name}: {count}" for name, count in source["notes"].items()]
        lines.append(
            f"train {len(self.train)} rows, held out {len(self.held_out)} rows "
            f"({self.report['num_held_out_episodes']} of {self.report['num_episodes']} episodes)"
        )
        return "\n".join(lines)


def build_rows(data_cfg: DataConfig, prompt_cfg: PromptConfig) -> Rows:
    """Read every source (or its cache), split the episodes, and link each row to its history."""
    if not data_cfg.sources:
        raise ValueError("data.sources is empty: there is nothing to read; name at least one file")
    if not 0 <= data_cfg.eval_fraction < 1:
        raise ValueError(f"data.eval_fraction is {data_cfg.eval_fraction}: nothing is left to train on; use 0 to 0.9")
    sources = [_open_source(source_cfg, data_cfg) for source_cfg in data_cfg.sources]
    is_held_out, num_episodes, num_held_out = _split(
        [source.split_key for source in sources], data_cfg.eval_fraction, data_cfg.seed
    )
    train, held_out = (
        RowDataset(
            sources, [s.is_row & (held == side) for s, held in zip(sources, is_held_out, strict=True)], prompt_cfg
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
    """Rows by index, decoded when asked for; pictures stay closed files. Cheap to send to a worker process.

    `lengths` estimates each row's tokens; `sampling_weights` are proportional to how often a row is drawn, their mean
    is 1.
    """

    def __init__(self, sources: "list[_Source]", is_row: list[np.ndarray], prompt_cfg: PromptConfig):
        self.sources = sources
        self.history_steps = prompt_cfg.history_steps
        positions = [np.flatnonzero(mask) for mask in is_row]
        self.position = np.concatenate(positions)
        self.source_index = np.repeat(np.arange(len(sources)), [len(p) for p in positions])
        lengths = [s.lengths(self.history_steps)[p] for s, p in zip(sources, positions, strict=True)]
        self.lengths = np.concatenate(lengths)
        self.sampling_weights = _sampling_weights([s.cfg.weight for s in sources], [len(p) for p in positions])

    def __len__(self) -> int:
        return len(self.position)

    def __getitem__(self, index: int) -> Row:
        source, position = self.sources[self.source_index[index]], int(self.position[index])
        return source.row(position, self.history_steps)


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


class _Source:
    """One source file's cache, opened: the steps on disk, and a few numbers a step in memory."""

    def __init__(self, cfg: SourceConfig, path: Path, folder: Path):
        self.cfg, self.path, self.folder = cfg, path, folder
        self.meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        self.steps = datasets.Dataset.from_file(str(folder / "steps.arrow"))
        self.prompts = datasets.Dataset.from_file(str(folder / "prompts.arrow"))
        self.split_key = _column(self.steps, "split_key").view(np.uint64)
        self.turn_index = _column(self.steps, "turn_index")
        self.previous, is_duplicate = _link(_column(self.steps, "episode_key"), self.turn_index)
        # A turn of weight 0 teaches nothing; it stays as history.
        self.is_row = ~is_duplicate & (_column(self.steps, "weight") > 0)
        self._decoded_prompts: dict[int, tuple[str, tuple[Tool, ...]]] = {}
        if not self.is_row.any():
            raise ValueError(self._nothing_to_learn())

    def row(self, position: int, history_steps: int) -> Row:
        record = self._record(position)
        history: list[Step] = []
        before = int(self.previous[position])
        while before >= 0 and len(history) < history_steps:
            history.insert(0, _decode_step(self._record(before)))
            before = int(self.previous[before])
        step = _decode_step(record)
        request = Request(*self._prompt(record["prompt"]), tuple(history), step.observation)
        row_id = f"{record['episode_id']}/{record['turn_index']}"
        return Row(row_id, request, step.turn, record["source"], record["weight"])

    def lengths(self, history_steps: int) -> np.ndarray:
        """Estimated tokens of every step's row."""
        own = _column(self.steps, "length")
        lengths = own + _column(self.prompts, "length")[_column(self.steps, "prompt")]
        before = self.previous
        for _ in range(min(history_steps, int(self.turn_index.max()))):
            lengths = lengths + np.where(before >= 0, own[before], 0.0)
            before = np.where(before >= 0, self.previous[before], -1)
        return lengths

    def report(self, history_steps: int) -> dict:
        notes = dict(self.meta["notes"])
        # Recorded agents keep their memory in the notepad; a conversation's earlier messages are nowhere else.
        if self.cfg.kind == "chat" and (num_cut := int((self.turn_index[self.is_row] > history_steps).sum())):
            notes["history_longer_than_prompt.history_steps"] = num_cut
        return {
            "path": str(self.path),
            "kind": self.cfg.kind,
            "weight": self.cfg.weight,
            "num_rows": int(self.is_row.sum()),
            "num_episodes": self.meta["num_episodes"],
            "num_rejects": self.meta["num_rejects"],
            "reject_reasons": self.meta["reject_reasons"],
            "rejects_path": str(self.folder / "rejects.jsonl"),
            "notes": notes,
        }

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
        return f"{self.path}: all {self.meta['num_rejects']} rows are rejected, nothing is left; correct them:\n{shown}"


def _column(dataset: datasets.Dataset, name: str) -> np.ndarray:
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
    previous = np.full(len(episode_key), -1)
    if len(order) > 1:
        follows = (np.diff(episode_key[order]) == 0) & (np.diff(turn_index[order]) == 1)
        previous[order[1:][follows]] = order[:-1][follows]
    return previous, is_duplicate


def _decode_step(record: dict) -> Step:
    turn, results = json.loads(record["turn"]), json.loads(record["results"])
    return Step(
        Observation(record["text"], tuple(Picture(**picture) for picture in record["pictures"])),
        Turn(turn["thought"], tuple(ToolCall(*call) for call in turn["tool_calls"]), turn["text"]),
        tuple(ToolResult(*result) for result in results),
    )


def _open_source(cfg: SourceConfig, data_cfg: DataConfig) -> _Source:
    """The source's cache, written first if there is none or its pictures have changed."""
    if cfg.weight <= 0:
        raise ValueError(
            f"weight of data source {cfg.path!r} is {cfg.weight}: no row would be drawn; remove the source"
        )
    path = Path(cfg.path)
    if path.is_dir():
        path = path / "dataset.jsonl"
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file, so no rows to read; correct data.sources")
    with open(path, "rb") as file:
        file_digest = hashlib.file_digest(file, "sha256").hexdigest()
    key = _digest([str(path), str(path.resolve()), cfg.kind, file_digest, data_cfg.max_thought_chars, _code_digest()])
    folder = Path(data_cfg.cache_dir) / key
    if not _is_fresh(folder):
        _write_cache(READERS[cfg.kind](path, data_cfg), folder)
    return _Source(cfg, path, folder)


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


@lru_cache(maxsize=1)
def _code_digest() -> str:
    """Of the code that decides what a row holds, so that a changed reader never meets rows of the old one."""
    package = Path(qwenvl_agent.__file__).parent
    names = (
        "schema.py",
        "coordinates.py",
        "data/source.py",
        "data/chat.py",
        "data/computer.py",
        "data/pictures.py",
        "data/dataset.py",
    )
    files = [*(package / name for name in names), *sorted(package.glob("envs/**/*.py"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _is_fresh(folder: Path) -> bool:
    """Whether the cache is there and every picture still has the size in bytes that it was read with."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        steps = datasets.Dataset.from_file(str(folder / "steps.arrow"))
        pictures = hashlib.sha256()
        for batch in steps.data.column("pictures").chunks:
            for path in batch.flatten().field("path").to_pylist():
                pictures.update(_stamp(path))
    except FileNotFoundError:
        return False
    return pictures.hexdigest() == meta["pictures_digest"]


def _stamp(path: str) -> bytes:
    return f"{path}\0{os.stat(path).st_size}\0".encode()


def _write_cache(items: Iterable[SourceRow | Reject], folder: Path) -> None:
    """Write everything under a temporary name, then rename: another process sees the whole cache or none."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}")
    temporary.mkdir()
    try:
        meta = _write_files(items, temporary)
        (temporary / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
        if not _is_fresh(folder):  # else another rank was faster, and what it wrote is the same
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_files(items: Iterable[SourceRow | Reject], folder: Path) -> dict:
    """The three data files; returns what meta.json holds."""
    steps = ArrowWriter(features=STEP_FEATURES, path=str(folder / "steps.arrow"))
    prompts = ArrowWriter(features=PROMPT_FEATURES, path=str(folder / "prompts.arrow"))
    numbers: dict[bytes, int] = {}
    notes: Counter[str] = Counter()
    rows_digest, pictures_digest = hashlib.sha256(), hashlib.sha256()
    with _RejectLog(folder / "rejects.jsonl") as rejects:
        for item in items:
            if isinstance(item, Reject):
                rejects.add(item)
                continue
            prompt, step = _encode_prompt(item), _encode_step(item)
            try:
                rows_digest.update(_content(prompt, step))
            except UnicodeEncodeError as error:
                # JSON may spell half a surrogate pair, which is no character: no file and no tokenizer can hold it.
                rejects.add(Reject(item.source, f"{error.object[error.start]!r} is half a character: correct the text"))
                continue
            key = hashlib.sha256(json.dumps(prompt).encode()).digest()
            if key not in numbers:
                numbers[key] = len(numbers)
                prompts.write(prompt)
            steps.write({**step, "prompt": numbers[key]})
            notes.update(item.notes)
            for picture in step["pictures"]:
                pictures_digest.update(_stamp(picture["path"]))
        steps.finalize()
        prompts.finalize()
        num_episodes = _reject_duplicates(folder / "steps.arrow", rejects)
    return {
        "num_episodes": num_episodes,
        "num_rejects": rejects.num,
        "reject_reasons": dict(rejects.reasons.most_common()),
        "notes": dict(notes),
        "rows_digest": rows_digest.hexdigest(),
        "pictures_digest": pictures_digest.hexdigest(),
    }


def _encode_prompt(row: SourceRow) -> dict:
    tools = json.dumps([vars(tool) for tool in row.tools], ensure_ascii=False)
    length = (len(row.system_prompt) + len(tools)) / CHARS_PER_TOKEN
    return {"system_prompt": row.system_prompt, "tools": tools, "length": length}


def _encode_step(row: SourceRow) -> dict:
    """What `_decode_step` reads back, with the row's place and keys."""
    observation, turn = row.step.observation, row.step.turn
    calls = [[call.name, call.arguments] for call in turn.tool_calls]
    turn_json = json.dumps({"thought": turn.thought, "tool_calls": calls, "text": turn.text}, ensure_ascii=False)
    results = json.dumps([[result.name, result.content] for result in row.step.results], ensure_ascii=False)
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


def _content(prompt: dict, step: dict) -> bytes:
    """What the dataset's hash covers: all that a model can see, and no folder's name."""
    pictures = [[os.path.basename(p["path"]), p["width"], p["height"]] for p in step["pictures"]]
    return json.dumps([prompt, {**step, "source": "", "pictures": pictures}], ensure_ascii=False).encode()


def _reject_duplicates(path: Path, rejects: "_RejectLog") -> int:
    """Log every step that stands at a taken place of its episode; returns the number of episodes."""
    steps = datasets.Dataset.from_file(str(path))
    episode_key, turn_index = _column(steps, "episode_key"), _column(steps, "turn_index")
    _, is_duplicate = _link(episode_key, turn_index)
    for position in np.flatnonzero(is_duplicate):
        step = steps[int(position)]
        message = (
            f"turn {step['turn_index']} of episode {step['episode_id']!r} is there already: it would count twice; "
            "remove one of the two"
        )
        rejects.add(Reject(step["source"], message))
    return len(np.unique(episode_key))


class _RejectLog:
    """rejects.jsonl, and a count a reason: the message without the values in it."""

    def __init__(self, path: Path):
        self.path = path
        self.num = 0
        self.reasons: Counter[str] = Counter()

    def __enter__(self) -> "_RejectLog":
        self.file = open(self.path, "w", encoding="utf-8")
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def add(self, reject: Reject) -> None:
        self.num += 1
        self.reasons[re.sub(r"'[^']*'|\"[^\"]*\"|\d+", "_", reject.message)] += 1
        self.file.write(json.dumps({"source": reject.source, "message": reject.message}) + "\n")
