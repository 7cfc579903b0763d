"""Rebuild the tiny base for screens that the package ships: tokenizer, vision, then perception of boards.

    python scripts/pretrain_tiny_screens.py --out generated/tiny_screens --compile

The base brings what a pre-trained Qwen3-VL brings along and random weights learn late (docs/LOG.md): it reads the words,
pictures and colours of a board (the family `simple` of qwenvl_agent/worlds/browser/pages.py), in three languages, and
says where they are. It has never seen a request to click, a tool or a call: configs/computer_use_tiny.json teaches that.

Vision stage: the tower's output for a token must name the element that it is a part of through the language model's own
embedding table: its word or picture, its colour, its middle, its place among the others. Then the tower is frozen, and
the language model learns short statements about boards: where something is that a phrase means, what that phrase means,
what is at a point; at last the same as
questions and answers of a chat. The phrases are those of qwenvl_agent/worlds/browser/instructions.py; what is asked is not supervised,
only what can be seen. Boards are pasted from pictures that Chromium took once (qwenvl_agent/worlds/browser/boards.py), so
Chromium is needed: apt-get install chromium fonts-noto-color-emoji fonts-noto-cjk.
"""

import argparse
import itertools
import json
import random
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch.nn import functional

from qwenvl_agent.command import command
from qwenvl_agent.computer import Action, build_tool, to_turn
from qwenvl_agent.computer.context import SYSTEM_PROMPT, observation
from qwenvl_agent.coordinates import Screen
from qwenvl_agent.formats import FORMATS
from qwenvl_agent.model.precision import fast_autocast
from qwenvl_agent.model.tiny import build_tiny_model, build_tiny_tokenizer
from qwenvl_agent.prompt import render_row
from qwenvl_agent.schema import Picture, Request
from qwenvl_agent.training.pretraining import (
    PictureRows,
    init_attention,
    load_stage,
    one_token,
    save_half,
    train_language,
)
from qwenvl_agent.worlds.browser.boards import Sprites, draw_board, layout_of, paint, take_sprites
from qwenvl_agent.worlds.browser.camera import Camera
from qwenvl_agent.worlds.browser.chromium import open_browser
from qwenvl_agent.worlds.browser.elements import Element, Layout
from qwenvl_agent.worlds.browser.instructions import (
    PHRASES,
    Scene,
    Speaker,
    call_it,
    centre,
    ninth,
    write_instructions,
)
from qwenvl_agent.worlds.browser.pages import FAMILIES, PALETTES
from qwenvl_agent.worlds.browser.words import LANGUAGES, picture_word, words

console = Console()
FAMILY = FAMILIES["simple"]
SIDE_PX = FAMILY.screens[0][0]
PATCH_PX = 16
GRID = SIDE_PX // PATCH_PX
MERGE = 2
VIEW = GRID // MERGE
NUM_IMAGE_TOKENS = VIEW * VIEW
FEATURE_POWER = 0.05
"""Mean square of a vision feature's entries up to which it is not held back."""
STAGES = ("vision", "perception", "questions")
SCREEN = Screen(SIDE_PX, SIDE_PX)
LINES = [SCREEN.to_norm(PATCH_PX * i + PATCH_PX // 2, 0)[0] for i in range(GRID)]
"""The middles of an element's sides, on the model's grid: it has an odd number of cells, so they are a cell's."""
LABELS = [label for key in FAMILY.actions for entry in words()["actions"][key][0] for label in entry.split("|")]
COLOURS = list(PALETTES[FAMILY.palette])
EXTREMES = list(words()["extremes"])
FIRST_X, FIRST_Y = (min(cells[axis] for cells in FAMILY.item_cells) // 2 for axis in (0, 1))
"""The outermost cells that can be an element's middle."""
X_WORDS = [f"[{value}," for value in LINES[FIRST_X : GRID - FIRST_X]]
Y_WORDS = [f" {value}]" for value in LINES[FIRST_Y : GRID - FIRST_Y]]


def named_things() -> list[str]:
    """Words of the boards and of the instructions about them that are one token each."""
    table = words()
    entries = [table["pictures"][key][1 : 1 + len(LANGUAGES)] for key in FAMILY.pictures]
    entries += [*table["colours"].values(), *table["places"], *table["extremes"].values(), table["roles"]["button"]]
    return LABELS + [word for entry in entries for word in entry]


# Pre-tokens of the tokenizer. The sentences that every prompt has become one token each when they are learned, and so
# does the scaffolding of a JSON call; words of the boards, places and either coordinate are one each.
PRE_TOKENS = "|".join(
    (
        r'(?:You |For each |Write |Answer |Call |Then call |\{"type": "function")(?:[^\n<]|</?tools>)+',
        r'# Tools|</?tools>| XML tags:|\{"name": <function-name>[^\n]*',
        r'\{"name": "computer_use", "arguments": \{"action": "[a-z_]+", "coordinate": ',
        rf"(?:{'|'.join(re.escape(word) for word in sorted(named_things(), key=len, reverse=True))})(?![a-z])",
        r"\[[0-9]{1,4},",
        r" [0-9]{1,4}\]",
        r"[0-9]{1,4}",
        r"\p{Han}",
        r"[\p{L}_]+ ?",
        r" ?[^\s\p{L}0-9<\\\[]+",
        r"\n+",
        r"\s",
        r".",
    )
)


class Piece(NamedTuple):
    """A text, and what its tokens are counted as; empty: they are not supervised."""

    text: str
    group: str = ""


def corpus(num_boards: int) -> Iterator[str]:
    """Texts for the tokenizer: instructions and their clicks in every format, and the statements about boards."""
    rng = random.Random(0)
    picture = Picture(SIDE_PX, SIDE_PX, "board.png")
    for _ in range(num_boards):
        layout = layout_of(draw_board("simple", rng))
        for one in write_instructions(layout, LANGUAGES, 3, rng):
            x, y = layout.elements[one.element].point
            turn = to_turn((Action("left_click", x_px=x, y_px=y),), SCREEN, one.reasoning)
            request = Request(SYSTEM_PROMPT, (build_tool(("left_click",)),), (), observation(picture, one.text))
            yield from (render_row(request, turn, fmt).text for fmt in FORMATS.values())
        yield "".join(piece.text for piece in statements(layout, rng))


# Statements about a board: what is asked is unsupervised, what can be seen is supervised.

WAYS = {"name": 3, "picture": 3, "colour": 3, "place": 2, "extreme": 2, "neighbour": 1}
"""How often each way of meaning an element is drawn."""


def statements(layout: Layout, rng: random.Random, number: int = 9, ramp: float = 1.0) -> list[Piece]:
    """`ramp` from 0 to 1: at first elements are meant by what stands on them, later by place and relation, too."""
    scene = Scene(layout)
    weights = {way: weight * (1 if way in ("name", "picture", "colour") else ramp) for way, weight in WAYS.items()}
    made: list[list[Piece]] = []
    for kind in rng.choices(list(weights), list(weights.values()), k=4 * number):  # not every way means every element
        speaker, element = Speaker(rng.choice(LANGUAGES), rng), rng.choice(layout.elements)
        is_at = rng.random() < 0.15
        found = at_statement(scene, element, speaker) if is_at else meant_statement(scene, element, speaker, kind)
        made += [found] if found else []
        if len(made) == number:
            break
    return [piece for pieces in made for piece in pieces]


def meant_statement(scene: Scene, element: Element, speaker: Speaker, kind: str) -> list[Piece]:
    """A phrase that means the element; then what that is, where it is, or both. Nothing if no phrase does."""
    phrases = list(PHRASES[kind](scene, element, speaker))
    if not phrases:
        return []
    asked = Piece(speaker.rng.choice(phrases))
    is_named = kind in ("name", "picture")
    if is_named and speaker.rng.random() < 0.5:
        return [asked, *spot(element), Piece("\n")]
    name = [] if is_named and speaker.rng.random() < 0.5 else [Piece(":"), Piece(call_it(element, speaker), kind)]
    place = [Piece(" "), *placed(element, speaker)] if speaker.rng.random() < 0.5 else []
    return [asked, *name, *place, *spot(element), Piece("\n")]


def questions(layout: Layout, rng: random.Random, number: int = 5) -> list[Piece]:
    """Where something is, asked and answered as in a chat: between the phrase and what it means lies the answer's head."""
    scene, made = Scene(layout), []
    for kind in rng.choices(list(WAYS), list(WAYS.values()), k=4 * number):
        speaker, element = Speaker(rng.choice(LANGUAGES), rng), rng.choice(layout.elements)
        phrases = list(PHRASES[kind](scene, element, speaker))
        if phrases:
            made.append(exchange(element, speaker, rng.choice(phrases), kind))
        if len(made) == number:
            break
    return [piece for pieces in made for piece in pieces]


def exchange(element: Element, speaker: Speaker, phrase: str, kind: str) -> list[Piece]:
    return [
        Piece(f"<|im_start|>user\n{phrase}?<|im_end|>\n<|im_start|>assistant\n"),
        Piece(call_it(element, speaker), kind),
        Piece(" "),
        *placed(element, speaker),
        Piece("\n"),
        *spot(element),
        Piece("<|im_end|>\n"),
    ]


def at_statement(scene: Scene, element: Element, speaker: Speaker) -> list[Piece]:
    """What is at a point."""
    x, y = SCREEN.to_norm(*element.point)
    colour = next(name for name in COLOURS if rgb_of(name) == element.background)
    answer = [Piece(speaker.word("colours", colour), "at_colour"), Piece(" "), Piece(call_it(element, speaker), "at")]
    return [Piece(f"[{x}, {y}]: "), *answer, Piece("\n")]


def rgb_of(colour: str) -> tuple[int, ...]:
    value = PALETTES[FAMILY.palette][colour]
    return tuple(int(value[i : i + 2], 16) for i in (1, 3, 5))


def spot(element: Element) -> list[Piece]:
    x, y = SCREEN.to_norm(*element.point)
    return [Piece(f"[{x},", "x"), Piece(f" {y}]", "y")]


def placed(element: Element, speaker: Speaker) -> list[Piece]:
    return [Piece(speaker.word("places", place_of(element)), "placed")]


def place_of(element: Element) -> int:
    return ninth(*centre(element), SIDE_PX, SIDE_PX)


# Pictures.


def patches_of(pixels: torch.Tensor) -> torch.Tensor:
    """(B, H, W, 3) uint8 -> (B * GRID * GRID, 768), as the processor cuts them: merged neighbours follow each other.

    Of the two frames that the processor makes of a picture one is enough: they are equal.
    """
    num = pixels.shape[0]
    values = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
    values = values.reshape(num, 3, VIEW, MERGE, PATCH_PX, VIEW, MERGE, PATCH_PX)
    values = values.permute(0, 2, 5, 3, 6, 1, 4, 7)  # B, rows, columns, row of a token, column of it, channel, y, x
    return values.reshape(num * GRID * GRID, -1)


def batched_tower(tower) -> Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """The tower on pictures of one size, without its loop over pictures: patches -> (output, deepstack features)."""
    from transformers.models.qwen3_vl.modeling_qwen3_vl import apply_rotary_pos_emb_vision
    from transformers.vision_utils import get_vision_position_ids

    projection = tower.patch_embed.proj
    order = torch.arange(GRID * GRID).reshape(VIEW, MERGE, VIEW, MERGE).transpose(1, 2).flatten()
    positions = get_vision_position_ids(torch.tensor([[1, GRID, GRID]]), MERGE)
    with torch.no_grad():
        cos, sin = tower.rotary_pos_emb(tower.pos_embed.weight[order], positions)

    def forward(patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = functional.linear(patches, projection.weight.sum(2).flatten(1), projection.bias)
        hidden = hidden.unflatten(0, (-1, GRID * GRID)) + tower.pos_embed.weight[order]
        for i, block in enumerate(tower.blocks):
            attention = block.attn
            q, k, v = attention.qkv(block.norm1(hidden)).unflatten(-1, (3, attention.num_heads, -1)).unbind(2)
            q, k = apply_rotary_pos_emb_vision(q, k, cos, sin)
            likeness = torch.einsum("bqhd,bkhd->bhqk", q, k) * attention.scaling
            mixed = torch.einsum("bhqk,bkhd->bqhd", likeness.float().softmax(-1).to(v.dtype), v)
            hidden = hidden + attention.proj(mixed.flatten(2))
            hidden = hidden + block.mlp(block.norm2(hidden))
            if i in tower.deepstack_visual_indexes:
                (merger,) = tower.deepstack_merger_list
                deep = merger(hidden.flatten(0, 1))
        return tower.merger(hidden.flatten(0, 1)), deep

    return forward


def token_targets(layout: Layout) -> np.ndarray:
    """(tokens, 10) what each token shows: name, colour, x, y, place, 4 extremes, whether it shows anything; else -1 and 0.

    Tokens with an element's picture or the start of its word speak for it, the rest of it is silent. Name: index in
    LABELS + the family's pictures. x, y: of the element's middle. No token has parts of two elements: they keep a cell
    of distance.
    """
    targets = np.full((VIEW, VIEW, 10), -1, np.int64)
    targets[..., 5:] = 0
    scene, speaker = Scene(layout), Speaker("en", random.Random(0))
    for element in layout.elements:
        token_px, is_label, (x, y) = PATCH_PX * MERGE, element.text != "", element.point
        left = element.box[0] if is_label else x - PATCH_PX - PATCH_PX // 2
        where = np.s_[y // token_px, left // token_px : (left + 2 * PATCH_PX) // token_px + 1]
        name = LABELS.index(element.text) if is_label else len(LABELS) + FAMILY.pictures.index(element.picture)
        colour = next(i for i, known in enumerate(COLOURS) if rgb_of(known) == element.background)
        said = "".join(PHRASES["extreme"](scene, element, speaker))
        extremes = [words()["extremes"][side][0] in said for side in EXTREMES]
        targets[where] = [
            name,
            colour,
            x // PATCH_PX - FIRST_X,
            y // PATCH_PX - FIRST_Y,
            place_of(element),
            *extremes,
            1,
        ]
    return targets.reshape(-1, 10)


class BoardPictures(torch.utils.data.IterableDataset):
    """Endless (pixels, targets) of boards, in batches; the first `num_crowded` of crowded boards."""

    def __init__(self, sprites: Sprites, seed: int, batch_size: int, num_crowded: int):
        self.sprites, self.seed, self.batch_size, self.num_crowded = sprites, seed, batch_size, num_crowded

    def __iter__(self):
        rng = random.Random(f"vision {self.seed}")
        for batch in itertools.count():
            num_items = (7, 8) if batch < self.num_crowded else FAMILY.num_items
            boards = [draw_board("simple", rng, num_items=num_items) for _ in range(self.batch_size)]
            pixels = np.stack([paint(board, self.sprites) for board in boards])
            targets = np.concatenate([token_targets(layout_of(board)) for board in boards])
            yield torch.from_numpy(pixels), torch.from_numpy(targets)


class Table(NamedTuple):
    """Rows of the embedding table by what they name; the first axis of what is said in words is the language."""

    names: torch.Tensor  # (L, labels + pictures)
    colours: torch.Tensor  # (L, 8)
    places: torch.Tensor  # (L, 9)
    extremes: torch.Tensor  # (L, 4)
    xs: torch.Tensor  # (12,)
    ys: torch.Tensor  # (14,)
    roles: torch.Tensor  # (L, 1)


def build_table(tokenizer) -> Table:
    def ids(texts: Sequence[str]) -> list[int]:
        return [one_token(tokenizer, text) for text in texts]

    def by_language(entries: Sequence[Sequence[str]]) -> torch.Tensor:
        return torch.tensor([ids([entry[i] for entry in entries]) for i in range(len(LANGUAGES))])

    table = words()
    pictures = [[picture_word(key, language) for language in LANGUAGES] for key in FAMILY.pictures]
    return Table(
        names=by_language([[label] * len(LANGUAGES) for label in LABELS] + pictures),
        colours=by_language([table["colours"][colour] for colour in COLOURS]),
        places=by_language(table["places"]),
        extremes=by_language(list(table["extremes"].values())),
        xs=torch.tensor(ids(X_WORDS)),
        ys=torch.tensor(ids(Y_WORDS)),
        roles=by_language([table["roles"]["button"]]),
    )


def align_translations(weight: torch.Tensor, table: Table) -> None:
    """Words of one meaning start at nearly one vector: that they mean the same is known, it need not be discovered."""
    with torch.no_grad():
        for rows in (table.names, table.colours, table.places, table.extremes, table.roles):
            weight[rows[1:]] = weight[rows[0]] + 0.3 * weight[rows[1:]]


def train_vision(model, tokenizer, sprites: Sprites, args) -> dict:
    """Teach the tower to name each token's element through the embedding table; returns the last accuracies."""
    table, tower = build_table(tokenizer), model.model.visual
    weight = model.model.language_model.embed_tokens.weight
    align_translations(weight, table)
    with torch.no_grad():
        tower.pos_embed.weight.normal_(0, 0.5)
    see = batched_tower(tower)
    parameters = [*tower.parameters(), weight]
    optimizer = torch.optim.AdamW(parameters, lr=args.vision_rate, weight_decay=0.0, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.vision_rate, total_steps=args.vision_steps, pct_start=0.05
    )
    batch_size = args.vision_batch
    num_reading = args.reading_steps
    boards = BoardPictures(sprites, args.seed, batch_size, num_reading)
    loader = torch.utils.data.DataLoader(boards, batch_size=None, num_workers=1)
    started, figures = time.time(), {}
    for step, (pixels, targets) in enumerate(itertools.islice(loader, args.vision_steps)):
        patches = patches_of(pixels)
        with fast_autocast("cpu"):
            output, deep = see(patches + 0.05 * torch.randn_like(patches))
        output, deep = output.float(), deep.float()
        losses, accuracy = {}, {}
        # The language model reads the output alone in its first layer, and with the deepstack features after it.
        for seen in (output, output + deep):
            features = functional.rms_norm(seen, seen.shape[-1:])  # (tokens, H), as every layer sees them
            accuracy = add_losses(losses, features, weight, table, targets, step < num_reading)
            losses["size"] = losses.get("size", 0) + (seen.pow(2).mean() - FEATURE_POWER).clamp(min=0)
        loss = sum(losses.values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == args.vision_steps - 1:
            figures = {name: round(value.item(), 3) for name, value in accuracy.items()}
            size = round(losses["size"].item(), 3)
            print(
                f"vision {step} {time.process_time():.0f}s {time.time() - started:.0f}s {figures} size {size}",
                flush=True,
            )
    return figures


def add_losses(losses: dict, features, weight, table: Table, targets, is_reading: bool) -> dict:
    """Add to `losses` by what is named; returns accuracies on the tokens that show something.

    Reading comes first: learned together from the start, places drown it.
    """
    is_part = targets[:, 9] == 1
    part, of = features[is_part], targets[is_part]
    accuracy = {}

    def name(key: str, logits: torch.Tensor, target: torch.Tensor) -> None:
        losses[key] = losses.get(key, 0) + functional.cross_entropy(logits, target)
        accuracy[key] = (logits.argmax(1) == target).float().mean()

    for language in range(len(LANGUAGES)):
        name("name", part @ weight[table.names[language]].T, of[:, 0])
        name("colour", part @ weight[table.colours[language]].T, of[:, 1])
        if is_reading:
            continue
        name("place", part @ weight[table.places[language]].T, of[:, 4])
        sides = part @ weight[table.extremes[language]].T
        truth = of[:, 5:9].float()
        losses["extreme"] = losses.get("extreme", 0) + 2 * functional.binary_cross_entropy_with_logits(sides, truth)
        accuracy["extreme"] = ((sides > 0) == (truth > 0)).all(1).float().mean()
        role = (features @ weight[table.roles[language]].T).squeeze(1)
        losses["part"] = losses.get("part", 0) + functional.binary_cross_entropy_with_logits(role, is_part.float())
        accuracy["part"] = ((role > 0) == is_part).float().mean()
    if not is_reading:
        name("x", part @ weight[table.xs].T, of[:, 2])
        name("y", part @ weight[table.ys].T, of[:, 3])
    return accuracy


# The language model.


GROUPS = ("", *WAYS, "at", "at_colour", "placed", "x", "y")


def group_figures(before, targets, is_right, groups) -> dict:
    """Accuracy of the tokens by what they answer."""
    return {name: round(is_right[groups == i].float().mean().item(), 3) for i, name in enumerate(GROUPS) if i}


def perception_row(ramp_rows: int, layout: Layout, rng: random.Random, row: int) -> list[Piece]:
    return statements(layout, rng, ramp=min(1.0, row / ramp_rows))


def questions_row(layout: Layout, rng: random.Random, row: int) -> list[Piece]:
    """Every third row is as before, so that nothing is forgotten."""
    return statements(layout, rng) if row % 3 == 0 else questions(layout, rng)


@command("the stages before this one are kept; --start goes on from them")
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write; a checkpoint after every stage")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--start", type=Path, help="folder to go on from (default: a new tokenizer and random weights)")
    parser.add_argument("--vocab-size", type=int, default=3072)
    parser.add_argument("--vision-steps", type=int, default=900)
    parser.add_argument("--reading-steps", type=int, default=300, help="of them, those that only read")
    parser.add_argument("--vision-batch", type=int, default=16)
    parser.add_argument("--vision-rate", type=float, default=3e-3)
    parser.add_argument("--perception-steps", type=int, default=700)
    parser.add_argument("--questions-steps", type=int, default=500)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--ramp-rows", type=int, default=5_000, help="rows until perception asks for everything")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="compile the language model (needs a C++ compiler)")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    with open_browser(reach="own") as browser:
        sprites = take_sprites(Camera(browser), "simple")
    tokenizer, model = load_stage(args.start) if args.start else new_base(args)
    figures = {}
    for stage in args.stages:
        figures[stage] = run_stage(stage, model, tokenizer, sprites, args)
        save_half(model, tokenizer, args.out)
        (args.out / f"{stage}.json").write_text(json.dumps(figures[stage], indent=2) + "\n", encoding="utf-8")
    console.print(figures)
    return 0


def run_stage(stage: str, model, tokenizer, sprites: Sprites, args) -> dict:
    """Train one stage; returns its last figures."""
    if stage == "vision":
        return train_vision(model, tokenizer, sprites, args)
    if stage == "perception":
        init_attention(model.model.language_model)
    seed, num_steps, learning_rate, pieces_of = {
        "perception": (args.seed, args.perception_steps, 1.5e-3, partial(perception_row, args.ramp_rows)),
        "questions": (args.seed + 1, args.questions_steps, 1e-3, questions_row),
    }[stage]

    def draw(rng: random.Random, row: int) -> tuple[np.ndarray, list[tuple[str, int]]]:
        board = draw_board("simple", rng)
        pieces = pieces_of(layout_of(board), rng, row)
        return paint(board, sprites), [(text, GROUPS.index(group)) for text, group in pieces]

    tower = batched_tower(model.model.visual)

    @fast_autocast("cpu")
    def see(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return tower(patches_of(pixels))

    return train_language(
        model,
        PictureRows(tokenizer, 152, VIEW, draw, f"rows {seed}"),
        see,
        group_figures,
        partial(save_half, model, tokenizer, args.out),
        num_steps=num_steps,
        learning_rate=learning_rate,
        batch_size=args.batch_size,
        compiled=args.compile,
    )


def new_base(args):
    texts = track(list(corpus(300)), "tokenizer")
    tokenizer = build_tiny_tokenizer(texts, args.vocab_size, pre_tokens=PRE_TOKENS)
    console.print(f"{len(tokenizer)} tokens")
    return tokenizer, build_tiny_model(tokenizer, "tiny_screens", args.seed)


if __name__ == "__main__":
    sys.exit(main())
