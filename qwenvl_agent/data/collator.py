"""Rows to a batch: one text, one tokenizer call, labels by spans, pictures within the budget.

Training rows and generation prompts go through the same `encode`, so that a prompt's ids are the first ids of its row.
A row over budget loses whole pictures or whole steps by the stated policy, or is an error: ids are never cut. (Only a
turn that itself takes its row over vision.max_row_tokens drops a step which the prompt alone would have kept.)

Legend: B rows, T tokens.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qwenvl_agent.config import Config, PromptConfig, TrainConfig, VisionConfig
from qwenvl_agent.data.masks import IGNORE_INDEX, label_tokens
from qwenvl_agent.data.packing import PADDING, Columns, join, pad, plan_packs
from qwenvl_agent.data.pieces import PieceTokenizer
from qwenvl_agent.data.pixels import feature_path, load_pixels, patchify, picture_key
from qwenvl_agent.data.processor import Processor
from qwenvl_agent.data.supervision import known_pictures, supervised_places
from qwenvl_agent.families import Family
from qwenvl_agent.formats import Format, Span, formats_of
from qwenvl_agent.prompt import Rendered, as_asked, render_prompt, render_row
from qwenvl_agent.schema import Picture, Request, Row, Turn
from qwenvl_agent.vision import Geometry, drop_oldest_step, fit_picture, reduce_request


@dataclass(frozen=True)
class Encoded:
    """A row before padding."""

    input_ids: np.ndarray
    offsets: np.ndarray
    """(T, 2): where each token's characters begin and end in the text."""
    spans: tuple[Span, ...]
    """Of the text that was tokenised, every picture's pad repeated."""
    pictures: tuple[Picture, ...]
    sizes: tuple[tuple[int, int], ...]
    """(height, width) of each picture as the model sees it."""
    source: str
    """For error messages."""
    num_turns: int
    """Of the messages in it, the one to learn included: `prompt.Rendered`."""
    image_pad: str
    """What stands in the text for one token of a picture."""

    def load_pixels(self) -> list[torch.Tensor]:
        """The pictures at their sizes; ValueError names the row's source."""
        return [self.of_picture(load_pixels, i) for i in range(len(self.pictures))]

    def of_picture(self, function: Callable, index: int) -> Any:
        """`function` of one picture and its size; ValueError names the row's source."""
        try:
            return function(self.pictures[index], *self.sizes[index])
        except ValueError as error:
            raise ValueError(f"{self.source}: {error}") from None


@dataclass(frozen=True)
class Sample:
    """A training row before padding; the arrays are (T,) as in the batch."""

    row: Row
    encoded: Encoded
    labels: np.ndarray
    weights: np.ndarray
    parts: np.ndarray


def build_collator(processor: Processor, config: Config) -> "Collator":
    """What makes a config's batches and prompts, in its format as the processor's family reads and writes it."""
    fmt = formats_of(processor.family)[config.prompt.format]
    if config.train.pack_tokens and not processor.family.packs:
        raise ValueError(
            f"train.pack_tokens is {config.train.pack_tokens}, and a layer of {processor.name!r} keeps a state that would run on "
            "from row to row: losses would be of other rows; set train.pack_tokens=0"
        )
    if processor.only_thinks and not fmt.closing:
        raise ValueError(
            f"{processor.name!r} is a Thinking checkpoint, and prompt.format is {fmt.name!r}: its answers begin inside a think "
            "block, which that format has not; set prompt.format=think, or use the Instruct checkpoint"
        )
    return Collator(processor, fmt, config.prompt, config.vision, config.train)


class Collator:
    """Callable on rows (training) and `encode_prompt` on requests (generation); counts reductions in `reductions`."""

    def __init__(
        self,
        processor: Processor,
        fmt: Format,
        prompt_cfg: PromptConfig,
        vision_cfg: VisionConfig,
        train_cfg: TrainConfig,
    ):
        self.processor, self.tokenizer = processor, processor.tokenizer
        self.image_processor = processor.image_processor
        self.geometry: Geometry = processor.geometry
        self.fmt, self.prompt_cfg, self.vision_cfg = fmt, prompt_cfg, vision_cfg
        self.part_weights = {
            "thought": train_cfg.weight_thought,
            "call": train_cfg.weight_call,
            "text": train_cfg.weight_call,
            "end": train_cfg.weight_call,
        }
        self.family: Family = fmt.family
        self.image_pad_id = self.tokenizer.convert_tokens_to_ids(self.family.template.image_pad)
        self.pieces = PieceTokenizer(self.tokenizer)
        self.reductions: Counter = Counter()

    def __call__(
        self,
        rows: Sequence[Row],
        pack_tokens: int = 0,
        feature_dir: Path | None = None,
        always_runs_tower: bool = False,
    ) -> dict:
        """A training batch, padded on the right; with `pack_tokens`, in packs of about so many tokens (data/packing.py).

        With `always_runs_tower` a batch without pictures gets a blank one, where no token sees it: DDP and ZeRO wait
        for all ranks to run the vision tower, and a tower that trains gets a gradient of zero and not none.

        input_ids, attention_mask, mm_token_type_ids (0 text, 1 image) (B, T); position_ids (4, B, T): text, t, h, w;
        labels (B, T), IGNORE_INDEX outside the turns to learn; loss_weights (B, T); parts (B, T), indices of PARTS;
        row_index (B, T): which row a supervised token is of; supervised (N,): `supervised_places`; segments (B, T) of packs, PADDING outside, and pack_sizes,
        a list for each pack of the tokens in every segment;
        patches, patch_scale and image_grid_thw (`patchify`) and `known_pictures`, absent without pictures; with
        `feature_dir` only of pictures whose features are not there, and picture_keys of all, encoded_keys of those;
        row_ids, a string a row;
        num_pictures, of the rows that teach something, the blank one left out;
        reductions, what this batch lost: {"images": n, "turns": n} (a worker's own count never leaves the worker).
        """
        reductions_before = self.reductions.copy()
        samples = [self.sample(row) for row in rows]
        columns = [self._training_columns(sample, i) for i, sample in enumerate(samples)]
        if pack_tokens:
            packs = plan_packs([c["input_ids"] for c in columns], [self._may_share(s) for s in samples], pack_tokens)
            columns = [join([columns[i] for i in members], num_shared) for members, num_shared in packs]
            samples = [samples[i] for members, _ in packs for i in members]
        encoded = [sample.encoded for sample in samples]
        if always_runs_tower and not any(e.pictures for e in encoded):
            columns = [self._with_blank_token(columns[0]), *columns[1:]]
            pixels = self._patches([torch.zeros(3, self.geometry.token_px, self.geometry.token_px, dtype=torch.uint8)])
        else:
            pixels = self._pixels(encoded) if feature_dir is None else self._pixels_not_in(feature_dir, encoded)
        batch = self._tensors(columns) | pixels
        batch |= known_pictures(batch)
        batch["supervised"] = supervised_places(batch["labels"])
        if pack_tokens:
            batch["pack_sizes"] = [s[s != PADDING].bincount().tolist() for s in batch["segments"]]
        batch["row_ids"] = [row.id for row in rows]
        batch["num_pictures"] = sum(len(s.encoded.pictures) for s in samples if s.weights.any())
        batch["reductions"] = dict(self.reductions - reductions_before)
        return batch

    def encode_prompt(self, requests: Sequence[Request]) -> dict:
        """A generation batch, padded on the left: the same keys as a training batch, without labels and row ids."""
        encoded = [self.encode(request, None, f"request {i}") for i, request in enumerate(requests)]
        return self._tensors([self._columns(e) for e in encoded], left=True) | self._pixels(encoded)

    def sample(self, row: Row) -> Sample:
        """One training row with its labels; ValueError names its source."""
        encoded = self.encode(row.request, row.turn, row.source or row.id)
        labels, weights, parts = label_tokens(encoded.input_ids, encoded.offsets, encoded.spans, self.part_weights)
        return Sample(row, encoded, labels, weights * np.float32(row.weight), parts)

    def encode(self, request: Request, turn: Turn | None, source: str) -> Encoded:
        request = as_asked(request, self.prompt_cfg.ask_for_thought)
        try:
            return self._encode_within_budget(request, turn, source)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None

    def _encode_within_budget(self, request: Request, turn: Turn | None, source: str) -> Encoded:
        request, counts = reduce_request(request, self.vision_cfg, self.geometry)
        encoded = self._encode_text(request, turn, source)
        while len(encoded.input_ids) > self.vision_cfg.max_row_tokens:
            smaller = drop_oldest_step(request) if self.vision_cfg.reduce != "error" else None
            if smaller is None:
                raise ValueError(
                    f"{len(encoded.input_ids)} tokens, vision.max_row_tokens is {self.vision_cfg.max_row_tokens}: "
                    "nothing is cut, so the row cannot be used; raise the limit or leave the row out"
                )
            request = smaller
            counts["turns"] += 1
            encoded = self._encode_text(request, turn, source)
        self.reductions.update(counts)
        return encoded

    def _encode_text(self, request: Request, turn: Turn | None, source: str) -> Encoded:
        if turn is None:
            rendered = render_prompt(request, self.fmt)
        else:
            rendered = render_row(request, turn, self.fmt, self.prompt_cfg.supervise_history)
        sizes = tuple(fit_picture(picture, self.vision_cfg, self.geometry) for picture in rendered.pictures)
        token_area = self.geometry.token_px**2
        num_tokens = [height * width // token_area for height, width in sizes]
        image_pad = self.family.template.image_pad
        spans = expand_pads(rendered, num_tokens, image_pad)
        input_ids, offsets = self._ids_of(spans, rendered.num_prompt_spans)
        num_pads = int((input_ids == self.image_pad_id).sum())
        assert num_pads == sum(num_tokens), f"{num_pads} image tokens in the ids, {sum(num_tokens)} in the pictures"
        return Encoded(input_ids, offsets, spans, rendered.pictures, sizes, source, rendered.num_turns, image_pad)

    def _ids_of(self, spans: Sequence[Span], num_prompt: int) -> tuple[np.ndarray, np.ndarray]:
        """As one text; cut where the turn to learn begins if the prompt ends with an opening, whose last token could
        else join what follows, and then be no token of the prompt."""
        prompt, turn = ("".join(s.text for s in part) for part in (spans[:num_prompt], spans[num_prompt:]))
        if not self.fmt.opening or not turn:
            return self.pieces.encode(prompt + turn)
        (ids, offsets), (more, there) = self.pieces.encode(prompt), self.pieces.encode(turn)
        return np.concatenate([ids, more]), np.concatenate([offsets, there + len(prompt)])

    def _columns(self, encoded: Encoded) -> Columns:
        ids = encoded.input_ids
        is_image = ids == self.image_pad_id
        grids = [(h // self.geometry.token_px, w // self.geometry.token_px) for h, w in encoded.sizes]
        return {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "position_ids": self.family.positions(is_image, grids),
            "mm_token_type_ids": is_image.astype(np.int64),
        }

    def _training_columns(self, sample: Sample, index: int) -> Columns:
        return self._columns(sample.encoded) | {
            "labels": sample.labels.astype(np.int64),
            "loss_weights": sample.weights.astype(np.float32),
            "parts": sample.parts.astype(np.int8),
            "row_index": np.full(len(sample.labels), index),
        }

    def _with_blank_token(self, columns: Columns) -> Columns:
        """With an unsupervised image token behind all others: attention is causal, so that nothing else changes."""
        last: dict[str, Any] = {
            "input_ids": self.image_pad_id,
            "attention_mask": 1,
            "position_ids": columns["position_ids"][..., -1:] + 1,
            "mm_token_type_ids": 1,
            "labels": IGNORE_INDEX,
            "segments": PADDING,
        }
        return {
            key: np.concatenate([value, np.broadcast_to(last.get(key, 0), (*value.shape[:-1], 1))], axis=-1).astype(
                value.dtype
            )
            for key, value in columns.items()
        }

    def _may_share(self, sample: Sample) -> int:
        """First tokens that other rows may have in common: text, and not the one that predicts the first label."""
        is_own = (sample.encoded.input_ids == self.image_pad_id) | (sample.labels != IGNORE_INDEX)
        return max(0, int(is_own.argmax()) - 1)

    def _tensors(self, columns: Sequence[Columns], left: bool = False) -> dict:
        fill = {"input_ids": self.tokenizer.pad_token_id, "labels": IGNORE_INDEX, "segments": PADDING}
        return {key: torch.from_numpy(value) for key, value in pad(columns, fill, left).items()}

    def _pixels(self, encoded: Sequence[Encoded]) -> dict:
        return self._patches([image for e in encoded for image in e.load_pixels()])

    def _pixels_not_in(self, feature_dir: Path, encoded: Sequence[Encoded]) -> dict:
        """Pixels of the pictures without features, each once."""
        keys, images = [], {}
        for e in encoded:
            for i in range(len(e.pictures)):
                key = e.of_picture(picture_key, i)
                keys.append(key)
                if key not in images and not feature_path(feature_dir, key).exists():
                    images[key] = e.of_picture(load_pixels, i)
        names = {"picture_keys": keys, "encoded_keys": list(images)} if keys else {}
        return self._patches(list(images.values())) | names

    def _patches(self, images: Sequence[torch.Tensor]) -> dict:
        return patchify(images, self.image_processor) if images else {}


def expand_pads(rendered: Rendered, num_tokens: Sequence[int], image_pad: str) -> tuple[Span, ...]:
    """The spans with each picture's one pad repeated as often as it has tokens."""
    counts = iter(num_tokens)
    expanded = []
    for span in rendered.spans:
        first, *rest = span.text.split(image_pad) if span.part == "prompt" else [span.text]
        expanded.append(Span(span.part, first + "".join(image_pad * next(counts) + piece for piece in rest)))
    left_over = len(list(counts))
    assert not left_over, f"{left_over} of {len(num_tokens)} pictures have no place in the text"
    return tuple(expanded)
