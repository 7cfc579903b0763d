"""Teach a tiny base to talk about pictures that it sees: one picture, then text in pieces, some of them supervised.

What a published checkpoint brings along; what a tiny base learns to say is in scripts/pretrain_tiny*.py.

Legend: B rows, T tokens, V tokens along a side of the picture, which is a square.
"""

import copy
import itertools
import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import nn
from torch.nn import functional

from qwenvl_agent.families import DEFAULT as FAMILY
from qwenvl_agent.model.kernels import keep_compiled_code_apart
from qwenvl_agent.model.precision import fast_autocast
from qwenvl_agent.model.tiny import save_tiny

console = Console()


class PictureRows(torch.utils.data.IterableDataset):
    """Endless rows of T tokens: (picture, ids (T,), groups (T,)); the picture's pads are in the ids.

    `draw` makes of random numbers and a row's number its picture, any array, and its text in pieces, each with the
    number of its group; group 0 is unsupervised. `side` is the picture's, in tokens.
    """

    def __init__(
        self,
        tokenizer,
        num_tokens: int,
        side: int,
        draw: Callable[[random.Random, int], tuple[np.ndarray, list[tuple[str, int]]]],
        seed: int | str,
    ):
        self.tokenizer, self.num_tokens, self.side, self.draw, self.seed = tokenizer, num_tokens, side, draw, seed

    def __iter__(self):
        rng = random.Random(self.seed)
        backend = self.tokenizer.backend_tokenizer
        marks = FAMILY.template
        head = backend.encode(marks.vision_start + marks.image_pad * self.side**2 + marks.vision_end).ids
        for row in itertools.count():
            picture, pieces = self.draw(rng, row)
            ends = np.cumsum([len(text) for text, _ in pieces])
            encoding = backend.encode("".join(text for text, _ in pieces))
            piece_of = np.searchsorted(ends, [start for start, _ in encoding.offsets], side="right")
            ids = (head + encoding.ids)[: self.num_tokens]
            groups = ([0] * len(head) + [pieces[i][1] for i in piece_of])[: self.num_tokens]
            missing = self.num_tokens - len(ids)
            yield (
                torch.from_numpy(picture),
                torch.tensor(ids + [self.tokenizer.pad_token_id] * missing),
                torch.tensor(groups + [0] * missing),
            )


def position_rows(num_tokens: int, side: int) -> torch.Tensor:
    """(4, 1, T) of a text that starts with one picture: text, t, h, w."""
    is_picture = np.zeros(num_tokens, dtype=bool)
    is_picture[1 : 1 + side**2] = True
    return torch.from_numpy(FAMILY.positions(is_picture, [(side, side)]))[:, None]


def init_attention(language: nn.Module, scale: float = 0.3) -> None:
    """Start every head as a look-up by likeness: equal query and key maps, and an output map that copies.

    Mimetic initialisation (Trockman and Kolter 2023, arXiv 2305.09828). From the usual random start the search for one
    token among a hundred had not begun after 16,000 pictures; from here it takes a few thousand (docs/LOG.md).
    """
    for layer in language.layers:
        attention = layer.self_attn
        with torch.no_grad():
            torch.nn.init.orthogonal_(attention.q_proj.weight)
            attention.k_proj.weight.copy_(attention.q_proj.weight)
            torch.nn.init.orthogonal_(attention.v_proj.weight).mul_(scale)
            attention.o_proj.weight.copy_(attention.v_proj.weight.T)


def train_language(
    model: nn.Module,
    rows: PictureRows,
    see: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
    figures_of: Callable[..., dict],
    save: Callable[[], None],
    *,
    num_steps: int,
    learning_rate: float,
    batch_size: int,
    compiled: bool = False,
) -> dict:
    """Teach the language model what is supervised, the tower frozen; the figures of the last step.

    `see` gives a batch of pictures as what the tower makes of them: its output and its deepstack features, both
    (B * V * V, hidden). `figures_of` gets of the N supervised tokens the ids before them, their own, whether each was
    predicted, and their groups.
    """
    model.model.visual.eval().requires_grad_(False)
    language = model.model.language_model
    loader = torch.utils.data.DataLoader(rows, batch_size=batch_size, num_workers=1)
    positions = position_rows(rows.num_tokens, rows.side).expand(4, batch_size, -1)
    is_picture = torch.zeros(batch_size, rows.num_tokens, dtype=torch.bool)
    is_picture[:, 1 : 1 + rows.side**2] = True

    # The same sum without indexing by a mask, which would break the compiled graph.
    language._deepstack_process = lambda hidden, is_picture, deepstack: hidden + deepstack

    def forward(embeds, deepstack):
        return language(
            inputs_embeds=embeds,
            position_ids=positions,
            visual_pos_masks=is_picture,
            deepstack_visual_embeds=[deepstack],
            use_cache=False,
        ).last_hidden_state

    if compiled:
        keep_compiled_code_apart()
        forward = torch.compile(forward, dynamic=False)
    optimizer = torch.optim.AdamW(language.parameters(), lr=learning_rate, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=num_steps, pct_start=0.02, final_div_factor=100
    )
    started, figures = time.time(), {}
    for step, (pictures, ids, groups) in enumerate(itertools.islice(loader, num_steps)):
        with torch.no_grad():
            output, deep = see(pictures)
        with fast_autocast("cpu"):
            embeds = language.embed_tokens(ids)
            embeds, deepstack = (
                start.masked_scatter(is_picture[..., None], features.to(embeds.dtype))
                for start, features in ((embeds, output), (torch.zeros_like(embeds), deep))
            )
            hidden = forward(embeds, deepstack)
            keep = groups[:, 1:] > 0
            logits = model.lm_head(hidden[:, :-1][keep]).float()
        targets = ids[:, 1:][keep]
        loss = functional.cross_entropy(logits, targets)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(language.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == num_steps - 1:
            is_right = logits.argmax(1) == targets
            figures = figures_of(ids[:, :-1][keep], targets, is_right, groups[:, 1:][keep])
            figures |= {"all": round(is_right.float().mean().item(), 4), "loss": round(loss.item(), 4)}
            console.print(f"language {step} {time.time() - started:.0f}s", figures)
        if (step + 1) % 100 == 0:
            save()
    return figures


def one_token(tokenizer, word: str) -> int:
    ids = tokenizer.encode(word, add_special_tokens=False)
    assert len(ids) == 1, f"{word!r} is {len(ids)} tokens: the tokenizer's corpus is too small"
    return ids[0]


def save_half(model: nn.Module, tokenizer, directory: Path) -> None:
    """In bfloat16: the package ships it."""
    save_tiny(directory, tokenizer, copy.deepcopy(model).bfloat16())


def load_stage(path: Path):
    """(tokenizer, float32 model) that `save_half` wrote."""
    from transformers import AutoTokenizer

    model = FAMILY.load_class("model").from_pretrained(
        path, dtype=torch.float32, use_safetensors=True, attn_implementation="eager"
    )
    return AutoTokenizer.from_pretrained(path, trust_remote_code=False), model
