"""A model as a policy: the training prompt, generation, the format's parser. The only file here that needs torch."""

from collections.abc import Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import torch
from PIL import Image
from torch.nn import functional
from transformers import GenerationConfig

from qwenvl_agent.config import EvalConfig
from qwenvl_agent.data.collator import Collator
from qwenvl_agent.data.masks import PARTS
from qwenvl_agent.formats import Format
from qwenvl_agent.model import Processor
from qwenvl_agent.prompt import END
from qwenvl_agent.schema import Answer, Observation, Picture, Request, Row, Turn
from qwenvl_agent.training.loss import MODEL_INPUTS, supervised_positions

TOKEN_INPUTS = ("input_ids", "attention_mask", "position_ids", "mm_token_type_ids")
GREEDY = {"temperature": 1.0, "top_k": 50, "top_p": 1.0}
"""transformers' defaults, which it ignores without sampling (and warns of any others)."""


class ModelPolicy:
    """Qwen3-VL with a format, greedy or sampled.

    An answer that does not end within `max_new_tokens` has the error `endless`. Sampling has a seed of its own: it is
    repeatable for the same requests in the same batches, and leaves the training's random state alone.
    `blank_pictures` shows white pictures of the same size: what a policy still achieves then, it reads from the text.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        processor: Processor,
        collator: Collator,
        fmt: Format,
        cfg: EvalConfig,
        *,
        blank_pictures: bool = False,
        seed: int = 0,
    ):
        self.model, self.collator, self.fmt, self.cfg = model, collator, fmt, cfg
        self.blank_pictures = blank_pictures
        self.tokenizer = processor.tokenizer
        self.end_id = self.tokenizer.convert_tokens_to_ids(END)
        self.sampling_seed = seed
        self.generation = GenerationConfig(
            max_new_tokens=cfg.max_new_tokens,
            eos_token_id=self.end_id,
            pad_token_id=self.end_id,
            use_cache=True,
            # Stated, because what is left out is taken from the checkpoint's generation_config.json.
            do_sample=cfg.temperature > 0,
            repetition_penalty=1.0,
            **({"temperature": cfg.temperature, "top_k": 0, "top_p": 1.0} if cfg.temperature > 0 else GREEDY),
        )

    def act(self, requests: Sequence[Request]) -> list[Answer]:
        """Answers in batches of `cfg.batch_size`."""
        size = self.cfg.batch_size
        written = [
            one for start in range(0, len(requests), size) for one in self._write(requests[start : start + size])
        ]
        return [self._read(*one, request) for one, request in zip(written, requests, strict=True)]

    def score(self, rows: Sequence[Row]) -> list[dict]:
        """Teacher-forced scores: {row_id, part, num_tokens, num_correct, loss_sum} for each part of each row."""
        size = self.cfg.batch_size
        return [score for start in range(0, len(rows), size) for score in self._score(rows[start : start + size])]

    def _write(self, requests: Sequence[Request]) -> list[tuple[str, bool]]:
        """For each request what the model writes, without the end token, and whether it came to that token."""
        if self.blank_pictures:
            requests = [blank(request) for request in requests]
        batch = self.collator.encode_prompt(requests)
        inputs = self._inputs(batch)
        with evaluating(self.model), self._seeded():
            inputs = share_prefix(self.model, inputs)
            ids = self.model.generate(**inputs, generation_config=self.generation)
        return [self._text_before_end(row) for row in ids[:, inputs["input_ids"].shape[1] :].tolist()]

    def _inputs(self, batch: dict) -> dict:
        return {key: batch[key].to(self.model.device) for key in MODEL_INPUTS if key in batch}

    def _text_before_end(self, ids: list[int]) -> tuple[str, bool]:
        ended = self.end_id in ids
        if ended:
            ids = ids[: ids.index(self.end_id)]
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False), ended

    def _read(self, text: str, ended: bool, request: Request) -> Answer:
        if not ended:
            return Answer(Turn(), text=text, error="endless")
        return self.fmt.parse(text, request.tools)

    def _seeded(self):
        """Sampling under its own seed; the global random state is put back afterwards."""
        if self.cfg.temperature == 0:
            return nullcontext()
        self.sampling_seed += 1
        return seeded(self.sampling_seed, self.model.device)

    def _score(self, rows: Sequence[Row]) -> list[dict]:
        batch = self.collator(rows)
        keep = supervised_positions(batch["labels"])  # (B, T)
        is_target = keep[:, :-1]
        with evaluating(self.model):
            inputs = self._inputs(batch)
            logits = self.model(**inputs, logits_to_keep=keep.to(self.model.device), use_cache=False).logits.float()
        targets = batch["labels"][:, 1:][is_target].to(logits.device)  # (N,)
        losses = functional.cross_entropy(logits, targets, reduction="none").tolist()
        correct = (logits.argmax(-1) == targets).tolist()
        row_of = is_target.nonzero()[:, 0].tolist()
        part_of = batch["parts"][:, 1:][is_target].tolist()
        scores: dict[tuple[int, int], dict] = {}
        for row, part, loss, right in zip(row_of, part_of, losses, correct, strict=True):
            empty = {"row_id": rows[row].id, "part": PARTS[part], "num_tokens": 0, "num_correct": 0, "loss_sum": 0.0}
            score = scores.setdefault((row, part), empty)
            score["num_tokens"] += 1
            score["num_correct"] += right
            score["loss_sum"] += loss
        return list(scores.values())


def share_prefix(model: torch.nn.Module, inputs: dict) -> dict:
    """Inputs of a left-padded batch (B, T) with the keys and values of its common beginning, computed once, not B times.

    System prompt and tools are most of a prompt and the same in every request. Padding goes behind them:

        pad  pad  sys  tools  a            sys  tools  pad  pad  a
        sys  tools  b  b  b         ->     sys  tools  b    b    b
    """
    num_shared = count_shared(inputs)
    if num_shared == 0:
        return inputs
    inputs = dict(inputs)
    num_pads = (inputs["attention_mask"] == 0).sum(1, keepdim=True)  # (B, 1)
    places = torch.arange(inputs["input_ids"].shape[1], device=num_pads.device)  # (T,)
    source = torch.where(places < num_shared + num_pads, places - num_shared, places)
    source = torch.where(places < num_shared, places + num_pads, source)  # (B, T)
    for key in TOKEN_INPUTS:
        inputs[key] = inputs[key].gather(-1, source.expand_as(inputs[key]))
    prefix = {key: inputs[key][..., :1, :num_shared] for key in TOKEN_INPUTS}
    cache = model(**prefix, use_cache=True, logits_to_keep=1).past_key_values
    cache.batch_repeat_interleave(len(inputs["input_ids"]))
    return inputs | {"past_key_values": cache}


def count_shared(inputs: dict) -> int:
    """How many text tokens all rows of a left-padded batch begin with; 0 for a batch of one, which shares nothing."""
    if len(inputs["input_ids"]) == 1:
        return 0
    rows = [ids[mask.bool()] for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)]
    kinds = [
        kind[mask.bool()] for kind, mask in zip(inputs["mm_token_type_ids"], inputs["attention_mask"], strict=True)
    ]
    length = min(map(len, rows)) - 1  # something must be left to compute the first new token from
    ids = torch.stack([row[:length] for row in rows])  # (B, length)
    is_text = torch.stack([kind[:length] for kind in kinds]) == 0
    is_shared = ((ids == ids[0]) & is_text).all(0)  # (length,)
    return int(is_shared.long().cumprod(0).sum())


def blank(request: Request) -> Request:
    """The request with white pictures of the same sizes."""

    def whiten(observation: Observation) -> Observation:
        white = [Picture.from_image(Image.new("RGB", (p.width, p.height), "white")) for p in observation.pictures]
        return replace(observation, pictures=tuple(white))

    history = tuple(replace(step, observation=whiten(step.observation)) for step in request.history)
    return replace(request, history=history, observation=whiten(request.observation))


@contextmanager
def evaluating(model: torch.nn.Module):
    """Eval mode without gradients; every module's own mode is put back (a frozen tower stays in eval mode)."""
    was_training = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in was_training:
            module.training = mode


@contextmanager
def seeded(seed: int, device: torch.device):
    """Torch's random state set to `seed` inside, and put back after."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
