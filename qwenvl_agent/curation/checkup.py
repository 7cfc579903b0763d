"""What a source file gives, before anything is trained: counts, rejects, the first row, lengths, and settings that fit.

All of it is what training does itself: its reader and cache, its prompt builder, its picture rule. Only where no
tokenizer is at hand are tokens of text estimated, and `Lengths.is_estimated` says so.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from qwenvl_agent.config import Config, PromptConfig, SourceConfig, VisionConfig
from qwenvl_agent.data.cache_files import CHARS_PER_TOKEN
from qwenvl_agent.data.dataset import SourceCache, index_source
from qwenvl_agent.data.processor import Processor
from qwenvl_agent.families import DEFAULT as FAMILY
from qwenvl_agent.formats import Format, Span, formats_of
from qwenvl_agent.prompt import Rendered, as_asked, render_row
from qwenvl_agent.schema import Picture, Row
from qwenvl_agent.vision import PUBLISHED, Geometry, fit_picture

MAX_MEASURED = 2000
"""Rows whose tokens are counted, spread over the file."""
PLACES_SHOWN = 3
"""Of each reason of a reject."""
QUANTILES = (0, 50, 90, 99, 100)
ROUND_UP = 1024
"""A budget of tokens is raised to a multiple of it."""
LONGEST_PROPOSED = 32 * ROUND_UP
"""Rows beyond it stay over the budget: they are named, and their owner decides."""


class Fault(NamedTuple):
    """A reason why records were rejected, how often, and where first: (place, message)."""

    reason: str
    number: int
    places: list[tuple[str, str]]


@dataclass(frozen=True)
class Counts:
    """Of a source file; `records` are lines, items of a list, or rows of a table. They add up: every record gave rows or
    is rejected, and every step that a record gave is a row, or stands in the history alone (weight 0)."""

    records: int
    rejected: int
    left_out: int
    """Of the rejected: records that say themselves that they are not to be learned."""
    rows: int
    episodes: int
    shown_only: int
    faults: list[Fault]
    notes: dict[str, int]

    @property
    def share_rejected(self) -> float:
        return (self.rejected - self.left_out) / max(1, self.records)


@dataclass(frozen=True)
class Lengths:
    """Tokens of `num_measured` rows with all of their history that the settings show, before anything is dropped."""

    num_measured: int
    is_estimated: bool
    row: list[int]
    """At QUANTILES, in percent."""
    vision: list[int]
    num_over: int
    """Rows over vision.max_row_tokens or max_tokens_per_row: they lose history, or cannot be used."""


class Size(NamedTuple):
    """Pictures of one size: how many, and in which size and tokens the model gets them; tokens 0: in none."""

    width: int
    height: int
    number: int
    shown_width: int
    shown_height: int
    tokens: int


@dataclass(frozen=True)
class FirstRow:
    source: str
    rendered: Rendered


def open_source(source: SourceConfig, config: Config) -> tuple[SourceCache | None, Counts]:
    """The file's cache, None if it gave no row, and what of it was rejected."""
    path, folder = index_source(source, config.data)
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    faults = read_faults(folder / "rejects.jsonl")
    try:
        cache = SourceCache(source, path, folder)
    except ValueError:  # it holds no row to learn: the counts say why
        cache = None
    shown_only = cache.num_shown_only if cache else 0
    rows = int(cache.index["is_row"].sum()) if cache else 0
    return cache, Counts(
        meta["num_records"],
        meta["num_rejected_records"],
        meta["num_left_out"],
        rows,
        meta["num_episodes"],
        shown_only,
        faults,
        meta["notes"],
    )


def read_faults(path: Path) -> list[Fault]:
    """Rejects by reason, the most frequent first."""
    counts: Counter[str] = Counter()
    places: dict[str, list[tuple[str, str]]] = defaultdict(list)
    with open(path, encoding="utf-8") as file:
        for line in file:
            reject = json.loads(line)
            reason = reject["reason"]
            counts[reason] += 1
            if len(places[reason]) < PLACES_SHOWN:
                places[reason].append((reject["source"], reject["message"]))
    return [Fault(reason, count, places[reason]) for reason, count in counts.most_common()]


def proposed(config: Config, cache: SourceCache, processor: Processor | None) -> Config:
    """The config with what this file needs changed, and nothing else: the history of conversations, sizes of pictures
    that the budget takes in none, tiles where there are no boards, rows that are longer than allowed."""
    history_steps = max(config.prompt.history_steps, deepest(cache) if cache.cfg.kind == "chat" else 0)
    prompt = replace(config.prompt, history_steps=history_steps)
    vision = fitting_sizes(config.vision, cache, geometry_of(processor))
    lengths = measure(cache, replace(config, prompt=prompt, vision=vision), processor)
    if lengths.row[-1] > vision.max_row_tokens and lengths.row[-1] <= LONGEST_PROPOSED:
        vision = replace(vision, max_row_tokens=rounded_up(lengths.row[-1]))
    if lengths.vision[-1] > vision.max_tokens_per_row and lengths.vision[-1] <= LONGEST_PROPOSED:
        vision = replace(vision, max_tokens_per_row=rounded_up(lengths.vision[-1]))
    return replace(config, prompt=prompt, vision=vision, data=replace(config.data, sources=(cache.cfg,)))


def deepest(cache: SourceCache) -> int:
    """The most steps that a row has before it."""
    return int(cache.index["turn_index"][cache.index["is_row"]].max())


def rounded_up(tokens: int) -> int:
    return -(-tokens // ROUND_UP) * ROUND_UP


def fitting_sizes(vision: VisionConfig, cache: SourceCache, geometry: Geometry) -> VisionConfig:
    """Without whole tiles if a picture is no square board, and with the minimum of tokens a picture lowered until all
    sizes fit that can: between two limits that are close, some pictures have no whole number of tokens."""
    if vision.tiles and any(size.width != size.height for size in sizes_of(cache, vision, geometry)):
        vision = replace(vision, tiles=0)
    while vision.min_tokens_per_image > 1 and has_misfits(vision, cache, geometry):
        vision = replace(vision, min_tokens_per_image=vision.min_tokens_per_image // 2)
    return vision


def has_misfits(vision: VisionConfig, cache: SourceCache, geometry: Geometry) -> bool:
    return any(not size.tokens for size in sizes_of(cache, vision, geometry))


def geometry_of(processor: Processor | None) -> Geometry:
    """Without the processor's own limits, which its config sets."""
    return replace(processor.geometry if processor else PUBLISHED, min_pixels=1, max_pixels=2**40)


def sizes_of(cache: SourceCache, vision: VisionConfig, geometry: Geometry) -> list[Size]:
    """The sizes of all pictures, the most frequent first."""
    pictures = cache.steps.data.column("pictures").combine_chunks().flatten()
    sides = np.stack([pictures.field(name).to_numpy() for name in ("width", "height")], axis=-1)
    distinct, counts = np.unique(sides, axis=0, return_counts=True)
    sizes = [(int(w), int(h), int(n)) for (w, h), n in zip(distinct, counts, strict=True)]
    return sorted((_size(*size, vision, geometry) for size in sizes), key=lambda size: -size.number)


def _size(width: int, height: int, count: int, vision: VisionConfig, geometry: Geometry) -> Size:
    try:
        shown_height, shown_width = fit_picture(Picture(width, height), vision, geometry)
    except ValueError:
        return Size(width, height, count, 0, 0, 0)
    return Size(width, height, count, shown_width, shown_height, shown_width * shown_height // geometry.token_px**2)


def rows_to_measure(cache: SourceCache) -> np.ndarray:
    """Positions, at equal distances."""
    positions = np.flatnonzero(cache.index["is_row"])
    return positions[np.linspace(0, len(positions) - 1, min(MAX_MEASURED, len(positions))).astype(int)]


def measure(cache: SourceCache, config: Config, processor: Processor | None) -> Lengths:
    """Tokens of rows as they are under the config's prompt and picture sizes."""
    vision, geometry, fmt = config.vision, geometry_of(processor), format_of(config, processor)
    row_tokens, vision_tokens = [], []
    positions = rows_to_measure(cache)
    for position in positions:
        row = cache.row(int(position), config.prompt.history_steps)
        rendered = render(row, fmt, config.prompt)
        pictures = sum(_size(p.width, p.height, 1, vision, geometry).tokens for p in rendered.pictures)
        vision_tokens.append(pictures)
        row_tokens.append(count_text(rendered, processor) + pictures)
    over = (np.array(row_tokens) > vision.max_row_tokens) | (np.array(vision_tokens) > vision.max_tokens_per_row)
    return Lengths(len(positions), processor is None, quantiles(row_tokens), quantiles(vision_tokens), int(over.sum()))


def count_text(rendered: Rendered, processor: Processor | None) -> int:
    """Tokens of the text, the pictures' pads left out: estimated without a tokenizer."""
    text = rendered.text.replace(FAMILY.template.image_pad, "")
    return (
        len(processor.tokenizer.encode(text, add_special_tokens=False))
        if processor
        else round(len(text) / CHARS_PER_TOKEN)
    )


def quantiles(values: Sequence[int]) -> list[int]:
    return [int(value) for value in np.percentile(values, QUANTILES, method="higher")]


def format_of(config: Config, processor: Processor | None) -> Format:
    return formats_of(processor.family if processor else FAMILY)[config.prompt.format]


def render(row: Row, fmt: Format, prompt: PromptConfig) -> Rendered:
    return render_row(as_asked(row.request, prompt.ask_for_thought), row.turn, fmt, prompt.supervise_history)


def first_row(cache: SourceCache, config: Config, processor: Processor | None) -> FirstRow:
    """The first row of the file that is learned, as the model will see it."""
    row = cache.row(int(np.flatnonzero(cache.index["is_row"])[0]), config.prompt.history_steps)
    return FirstRow(row.source, render(row, format_of(config, processor), config.prompt))


def marked_lines(spans: Sequence[Span]) -> list[tuple[bool, str]]:
    """The text in lines, each with whether it is learned; a line of which only a part is, in two."""
    lines: list[tuple[bool, str]] = []
    for span in spans:
        is_learned, is_first = span.part != "prompt", True
        for line in re.findall(r"[^\n]*\n|[^\n]+", span.text):
            goes_on = is_first and lines and lines[-1][0] == is_learned and not lines[-1][1].endswith("\n")
            lines = [*lines[:-1], (is_learned, lines[-1][1] + line)] if goes_on else [*lines, (is_learned, line)]
            is_first = False
    shown = [(is_learned, line.removesuffix("\n")) for is_learned, line in lines]
    return shown[:-1] if shown and not shown[-1][1] else shown
