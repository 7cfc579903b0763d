"""Rows that no training can use: found before the first step by what they cost, or replaced when they are met.

What a line of a file lacks is found by its reader (rejects.jsonl). Here is what depends on the run's budget: a picture
that the budget takes in no size, an observation over vision.max_tokens_per_row, a row over vision.max_row_tokens. The
sizes of all pictures are looked at, which takes a second for a million rows. Tokens of text are counted only in rows
whose bytes could be too many, the likeliest first, until MAX_FITTING in a row fit; the result is kept beside the cache.

What is found only later (a file that was deleted or damaged meanwhile) is `data.on_unusable_row`'s to decide.
"""

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.compute as pc

from qwenvl_agent.config import to_json
from qwenvl_agent.data.cache_files import reason_of
from qwenvl_agent.data.collator import Collator
from qwenvl_agent.data.dataset import RowDataset, Rows, SourceCache
from qwenvl_agent.data.supervision import count_supervised
from qwenvl_agent.files import write_text
from qwenvl_agent.prompt import render_row
from qwenvl_agent.schema import Observation, Picture, Request, Row, Step, Tool, ToolCall, ToolResult, Turn
from qwenvl_agent.vision import picture_tokens

VERSION = 1
"""Of which rows are found, and how they are named: raise it when either changes."""
MAX_FITTING = 1000
"""Rows with ever fewer bytes that all fit: then the rest is taken to fit."""
FRAME_BYTES = 512
"""Of a row's headings, marks and calls, at most, one token each."""
MAX_TRIES = 100
"""Rows that are tried in an unusable one's place."""

_CALL = Turn("I look.", (ToolCall("look", {"at": [3, "left"]}), ToolCall("look", {})))
_SEEN = (ToolResult("look", {"seen": None}), ToolResult("look", {}))
PROBE = Request(
    "You play.",
    (Tool("look", "Look around.", {"type": "object", "properties": {"at": {"type": "array"}}}),),
    (Step(Observation("First", (Picture(64, 64),)), _CALL, _SEEN), Step(Observation("Then"), Turn("", text="Well."))),
    Observation("Now", (Picture(640, 480), Picture(32, 96))),
)
"""With its turn `_CALL` a row of every part: what formats and template make of it tells their versions apart."""
PROBE_SIZES = [(width, height) for width in (1, 17, 256, 1000, 4001) for height in (16, 47, 512, 2049)]


def drop_unusable(rows: Rows, collator: Collator) -> Rows:
    """Without the rows that do not fit the budget; each is in the report with its place, counted by reason."""
    sources = rows.train.sources
    found = [find_unusable(source, collator) for source in sources]
    masks = [_mask(len(source.index), positions) for source, positions in zip(sources, found, strict=True)]
    train, held_out = rows.train.without(masks), rows.held_out.without(masks)
    report = rows.report | {"num_train_rows": len(train), "num_held_out_rows": len(held_out)}
    report["sources"] = [
        about | {"num_unusable": len(faults), "unusable_reasons": dict(Counter(map(reason_of, faults.values())))}
        for about, faults in zip(report["sources"], found, strict=True)
    ]
    for about, faults, source in zip(report["sources"], found, sources, strict=True):
        if faults:
            about["unusable_path"] = str(_path(source, collator))
    if not len(train):
        first = "\n".join(f"  {message}" for faults in found for message in list(faults.values())[:3])
        raise ValueError(f"no row can be used, so there is nothing to learn; correct the data or the budget:\n{first}")
    return Rows(train, held_out, report)


def find_unusable(source: SourceCache, collator: Collator) -> dict[int, str]:
    """Position and message of every step that makes no row; kept in the source's cache folder."""
    path = _path(source, collator)
    if not path.exists():
        faults = _find(source, collator)
        lines = (json.dumps({"position": position, "message": message}) for position, message in faults.items())
        write_text(path, "".join(f"{line}\n" for line in lines))
    records = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {record["position"]: record["message"] for record in records}


def _path(source: SourceCache, collator: Collator) -> Path:
    return source.folder / f"unusable-{digest_of(collator)}.jsonl"


@lru_cache(maxsize=1)
def digest_of(collator: Collator) -> str:
    """Of all that decides: budget, tokenizer, and what prompt and format make of a row of every part."""
    probe = render_row(PROBE, _CALL, collator.fmt, supervise_history=collator.prompt_cfg.supervise_history)
    unasked = render_row(replace(PROBE, asks_for_thought=False), _CALL, collator.fmt)
    sizes = [_tokens_or_none(width, height, collator) for width, height in PROBE_SIZES]
    settings = [to_json(collator.vision_cfg), to_json(collator.prompt_cfg), str(collator.geometry)]
    digest = hashlib.sha256(json.dumps([VERSION, probe.text, unasked.text, sizes, settings]).encode())
    digest.update(collator.tokenizer.backend_tokenizer.to_str().encode())
    return digest.hexdigest()[:16]


def _find(source: SourceCache, collator: Collator) -> dict[int, str]:
    is_over, may_be_over = _suspects(source, collator)
    faults: dict[int, str] = {}
    num_fitting = 0
    for position in (*is_over.tolist(), *may_be_over.tolist()):
        row = source.row(position, collator.prompt_cfg.history_steps)
        message = fault_of(collator.sample, row)
        num_fitting = 0 if message else num_fitting + 1
        if message:
            faults[position] = message
        elif num_fitting == MAX_FITTING:
            break
    return faults


def _suspects(source: SourceCache, collator: Collator) -> tuple[np.ndarray, np.ndarray]:
    """Positions of rows whose pictures are over the budget, and of those whose text may be, the longest first."""
    vision = collator.vision_cfg
    keeps_all = vision.reduce == "error"
    tokens, is_unfit = _picture_tokens(source, collator)
    history_steps = collator.prompt_cfg.history_steps
    is_unfit = source.with_history(is_unfit.astype(np.int64), history_steps) > 0
    num_bytes = np.sum([_num_bytes(source.steps, name) for name in ("text", "turn", "results")], axis=0)
    if keeps_all:  # else the history is dropped before the row is
        tokens, num_bytes = (source.with_history(values, history_steps) for values in (tokens, num_bytes))
    is_over = source.index["is_row"] & (is_unfit | (tokens > vision.max_tokens_per_row))
    length = tokens + num_bytes + FRAME_BYTES * (1 + history_steps * keeps_all) + _prompt_tokens(source, collator)
    may_be_over = np.flatnonzero(source.index["is_row"] & ~is_over & (length > vision.max_row_tokens))
    return np.flatnonzero(is_over), may_be_over[np.argsort(-length[may_be_over], kind="stable")]


def _picture_tokens(source: SourceCache, collator: Collator) -> tuple[np.ndarray, np.ndarray]:
    """Of every step: the tokens of its pictures, and whether the budget takes one of them in no size."""
    column = source.steps.data.column("pictures").combine_chunks()
    pictures = column.flatten()
    sizes = np.stack([pictures.field(name).to_numpy() for name in ("width", "height")], axis=-1)
    distinct, which = np.unique(sizes, axis=0, return_inverse=True)
    each = np.array([_tokens_or_none(int(w), int(h), collator) for w, h in distinct], dtype=np.int64)[which.reshape(-1)]
    step = np.repeat(np.arange(len(column)), pc.list_value_length(column).to_numpy())
    tokens = np.bincount(step, weights=np.maximum(each, 0), minlength=len(column)).astype(np.int64)
    return tokens, np.bincount(step, weights=each < 0, minlength=len(column)) > 0


def _tokens_or_none(width: int, height: int, collator: Collator) -> int:
    """-1 if there is no size for it."""
    try:
        return picture_tokens(Picture(width, height), collator.vision_cfg, collator.geometry)
    except ValueError:
        return -1


def _num_bytes(table: datasets.Dataset, name: str) -> np.ndarray:
    return pc.binary_length(table.data.column(name)).to_numpy().astype(np.int64)


def _prompt_tokens(source: SourceCache, collator: Collator) -> np.ndarray:
    """Of every step's system prompt and tools: counted if they are few, else their bytes."""
    prompts = source.prompts
    if len(prompts) <= MAX_FITTING:
        texts = [record["system_prompt"] + record["tools"] for record in prompts]
        # The template writes the tools with other spaces.
        lengths = np.array([1.25 * len(collator.pieces.encode(text)[0]) for text in texts])
    else:
        lengths = _num_bytes(prompts, "system_prompt") + _num_bytes(prompts, "tools")
    return lengths[source.index["prompt"]]


def _mask(length: int, positions: Iterable[int]) -> np.ndarray:
    mask = np.zeros(length, dtype=bool)
    mask[list(positions)] = True
    return mask


def fault_of(use: Callable[[Row], object], row: Row) -> str:
    """Why the row cannot be used, with its file and line; "" if it can."""
    try:
        use(row)
    except ValueError as error:
        return str(error)
    return ""


def read(collator: Collator, row: Row) -> None:
    """Do all with the row that a batch does, pictures included; ValueError if that cannot be done."""
    collator.sample(row).encoded.load_pixels()


def usable_rows(collator: Collator, rows: Sequence[Row]) -> list[Row]:
    """Those of held-out rows that can be read now; the others are named on stderr."""
    faults = [fault_of(lambda row: read(collator, row), row) for row in rows]
    for fault in filter(None, faults):
        print(f"left out of the evaluation: {fault}", file=sys.stderr)
    return [row for row, fault in zip(rows, faults, strict=True) if not fault]


def collate(
    rows: RowDataset, collator: Collator, indices: Sequence[int], on_unusable_row: str = "error", **options: Any
) -> dict:
    """The collator's batch of the rows at `indices`, with what a step and its reports need: `count_supervised` by the first
    tool that each row calls, where each row is from, and under `skipped` a message for each row that could not be used.

    In the place of such a row stands the next in the file that can be used. So a batch has as many rows as ever, the
    ranks stay in step, and a run that is resumed takes the same row as long as the files are the same.
    """
    picked, skipped = [rows[index] for index in indices], list[str]()
    try:
        batch = collator(picked, **options)
    except ValueError as error:
        if on_unusable_row == "error":
            raise ValueError(f"{error}; data.on_unusable_row=skip goes on with another row in its place") from None
        picked, skipped = _with_substitutes(rows, collator, indices)
        if not skipped:
            raise
        batch = collator(picked, **options)
    tools = [row.turn.tool_calls[0].name if row.turn.tool_calls else "" for row in picked]
    sources = [row.source for row in picked]
    return batch | count_supervised(batch, tools) | {"sources": sources, "skipped": skipped}


def _with_substitutes(rows: RowDataset, collator: Collator, indices: Sequence[int]) -> tuple[list[Row], list[str]]:
    picked, skipped = list[Row](), list[str]()
    for index in indices:
        fault = fault_of(lambda row: read(collator, row), rows[index])
        row = _substitute(rows, collator, index) if fault else rows[index]
        if fault:
            skipped.append(f"{fault} ({row.id} takes its place)")
        picked.append(row)
    return picked, skipped


def _substitute(rows: RowDataset, collator: Collator, index: int) -> Row:
    for step in range(1, MAX_TRIES + 1):
        row = rows[(index + step) % len(rows)]
        fault = fault_of(lambda row: read(collator, row), row)
        if not fault:
            return row
    raise ValueError(f"{fault}: {MAX_TRIES} rows in a row cannot be used: is the folder with the pictures there?")


def name_skipped(micro_batches: Sequence[dict], step: int) -> None:
    """Name on stderr, from whatever rank, the rows of a step that were left out."""
    for message in (message for batch in micro_batches for message in batch["skipped"]):
        print(f"step {step + 1}: left out: {message}", file=sys.stderr)
