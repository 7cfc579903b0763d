"""A model as a policy: the training prompt, generation, the format's parser."""

import copy
from collections.abc import Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import torch
from PIL import Image
from torch.nn import functional

from qwenvl_agent.config import EvalConfig
from qwenvl_agent.data.collator import Collator
from qwenvl_agent.data.masks import PARTS
from qwenvl_agent.formats import Format
from qwenvl_agent.inference.constraint import Grammars
from qwenvl_agent.inference.decoding import decode
from qwenvl_agent.inference.thought_budget import ThoughtBudget
from qwenvl_agent.model.build import Processor
from qwenvl_agent.model.call import model_inputs, supervised_positions
from qwenvl_agent.schema import Answer, Observation, Picture, Request, Row, Turn


class ModelPolicy:
    """Qwen3-VL with a format, greedy or sampled, free or (`cfg.constrained`) inside the format's grammar.

    An answer that does not end within `max_new_tokens` has the error `endless`. Sampling has a seed of its own: it is
    repeatable for the same requests in the same batches, and leaves the training's random state alone. With
    `draws_each` every answer is drawn by its request's `draw` and the seed, whatever else is in the batch.
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
        draws_each: bool = False,
    ):
        self.model, self.collator, self.fmt, self.cfg = model, collator, fmt, cfg
        self.blank_pictures = blank_pictures
        self.tokenizer = processor.tokenizer
        self.end_id = self.tokenizer.convert_tokens_to_ids(fmt.family.template.turn_end)
        self.sampling_seed, self.draws_each = seed, draws_each
        self.grammars = None
        if cfg.constrained:
            vocab_size = model.config.get_text_config().vocab_size
            self.grammars = Grammars(fmt, self.tokenizer, self.end_id, vocab_size)

    def with_seed(self, seed: int) -> "ModelPolicy":
        """The same model, whose answers are drawn by another seed."""
        other = copy.copy(self)
        other.sampling_seed = seed
        return other

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

    def _write(self, requests: Sequence[Request]) -> list[tuple[str, bool, bool]]:
        """For each request what the model writes, without the end token, whether it came to that token, and whether its
        thought was ended for it."""
        if self.blank_pictures:
            requests = [blank(request) for request in requests]
        inputs = self._inputs(self.collator.encode_prompt(requests))
        cfg = self.cfg
        constraint = self.grammars and self.grammars.start([request.tools for request in requests])
        budget = self._thought_budget(len(requests), constraint) if cfg.max_thought_tokens else None
        with evaluating(self.model), self._seeded():
            ids = decode(
                self.model,
                inputs,
                end_id=self.end_id,
                max_new_tokens=cfg.max_new_tokens,
                temperature=cfg.temperature,
                constraint=budget or constraint,
                draws=[request.draw_number(self.sampling_seed) for request in requests] if self.draws_each else None,
            )
        return [(*self._text_before_end(row), budget is not None and i in budget.cut) for i, row in enumerate(ids)]

    def _thought_budget(self, num_rows: int, constraint) -> ThoughtBudget:
        closing, template = self.fmt.closing, self.fmt.family.template
        ids = self.tokenizer.encode(closing, add_special_tokens=False)
        end_id = self.tokenizer.convert_tokens_to_ids(template.think_end)
        return ThoughtBudget(num_rows, self.cfg.max_thought_tokens, ids, end_id, constraint)

    def _inputs(self, batch: dict) -> dict:
        device = self.model.device
        return model_inputs({k: v.to(device) for k, v in batch.items() if isinstance(v, torch.Tensor)})

    def _text_before_end(self, ids: list[int]) -> tuple[str, bool]:
        ended = self.end_id in ids
        if ended:
            ids = ids[: ids.index(self.end_id)]
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False), ended

    def _read(self, text: str, ended: bool, is_cut: bool, request: Request) -> Answer:
        if not ended:
            return Answer(Turn(), text=text, error="endless")
        answer = self.fmt.parse(text, request.tools)
        return replace(answer, repairs=("thought_cut", *answer.repairs)) if is_cut and not answer.error else answer

    def _seeded(self):
        """Sampling under its own seed; the global random state is put back afterwards."""
        if self.cfg.temperature == 0 or self.draws_each:
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


def blank(request: Request) -> Request:
    """The request with white pictures of the same sizes."""

    def whiten(observation: Observation) -> Observation:
        white = [Picture.from_image(Image.new("RGB", (p.width, p.height), "white")) for p in observation.pictures]
        return replace(observation, pictures=tuple(white))

    history = tuple(replace(step, observation=whiten(step.observation)) for step in request.history)
    return replace(request, history=history, observation=whiten(request.observation))


@contextmanager
def evaluating(model: torch.nn.Module):
    """Eval mode without gradients, uncompiled; every module's own mode is put back (a frozen tower stays in eval mode).

    A cache that grows by a token a call would be compiled again and again.
    """
    was_training = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
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
