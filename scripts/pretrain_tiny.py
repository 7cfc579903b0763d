"""Rebuild the tiny base that the package ships: tokenizer, vision, perception, calls, ways, and looking where one walks.

    python scripts/pretrain_tiny.py --out generated/tiny --compile

The base brings what a pre-trained Qwen3-VL brings along and random weights learn late (docs/LOG.md): it sees what
stands where, compares it with a name in three languages, finds its way around trees in a view, and writes a plan that it
has made as calls. It has never played: where to go is random in its rows and never supervised. `make demo` teaches that.

Vision stage: the tower's output for a tile must name it through the language model's own embedding table (the tile's
place, what stands on it, which neighbours are free), so that a vision token reads like a bag of words. Then the tower is
frozen, and the language model learns short statements about pictures (perception), then exchanges in which a mission, a
notepad and a plan become calls, in every format (calls), then ways among many trees (ways), what stands on a tile that
is named (contents), ways with what stands on them, so that one that is blocked is seen to be (looks), and missions of
several targets: which are left, and whether one of them stands where a way ends (missions). Last the tower learns to see
three emoji fonts alike (fonts). Only what a reader of the row could know is supervised, never the random choice of what
to ask or where to go.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch.nn import functional

from qwenvl_agent.command import command
from qwenvl_agent.formats import FORMATS, Format
from qwenvl_agent.model.kernels import PatchProjection
from qwenvl_agent.model.tiny import build_tiny_model, build_tiny_tokenizer
from qwenvl_agent.prompt import render_row
from qwenvl_agent.schema import Request, Tool, ToolCall, Turn
from qwenvl_agent.training.pretraining import (
    PictureRows,
    init_attention,
    load_stage,
    one_token,
    save_half,
    train_language,
)
from qwenvl_agent.worlds import make_env
from qwenvl_agent.worlds.safari.missions import KIND_WORDS, Mission, write_mission
from qwenvl_agent.worlds.safari.notepad import Notes, tile_name, write_notes
from qwenvl_agent.worlds.safari.oracle import SafariOracle
from qwenvl_agent.worlds.safari.paths import (
    actions_of,
    directions_of,
    first_part,
    shortest_way,
    straight_ways,
    upto_first,
)
from qwenvl_agent.worlds.safari.render import (
    FIRST_ANIMAL,
    GROUND,
    NUM_SYMBOLS,
    PLAYER,
    TREE,
    animal_symbol,
    symbol_animal,
    tile_pictures,
)
from qwenvl_agent.worlds.safari.sprites import SHEETS, USUAL_SHEET
from qwenvl_agent.worlds.safari.thoughts import Plan
from qwenvl_agent.worlds.safari.world import COLOURS, DIRECTIONS, KINDS, VIEW, Animal, Tile

console = Console()
TILE_PX = 16
FEATURE_POWER = 0.05
"""Mean square of a vision feature's entries up to which it is not held back."""
MAX_PATH = 6
STAGES = ("vision", "perception", "calls", "ways", "contents", "looks", "missions", "fonts")
FONTS = (USUAL_SHEET, "twemoji", "noto_mono")
"""Sprite sheets that the tower sees; one, fluent, is kept for the suite of an unseen font."""
FORMATS_WITH_THOUGHT = ("plain", "native", "hybrid")
LANGUAGES = tuple(KIND_WORDS)
RULES = ("reach", "catch")
ANIMALS = [Animal(colour, kind) for kind in KINDS for colour in COLOURS]
TILES = [(column, row) for row in range(VIEW) for column in range(VIEW)]
ZONES = [(x, y) for y in range(2) for x in range(2)]
DEMO_WORLD = {"width": 20, "height": 20, "num_trees": 48, "num_animals": 10, "max_turns": 40, "tile_px": TILE_PX}


class Piece(NamedTuple):
    """A text and whether its tokens are supervised."""

    text: str
    supervised: bool


# Pre-tokens of the tiny tokenizer. Sentences that every prompt has become one token each when they are learned, and so
# does the scaffolding between the values of a JSON call; names of animals and of tiles, numbers and words are one each.
PRE_TOKENS = "|".join(
    (
        r'(?:You |For each |Write |Answer |Call |Then call |\{"type": "function")(?:[^\n<]|</?tools>)+',
        r'# Tools|</?tools>| XML tags:|\{"name": <function-name>[^\n]*',
        r'(?:[{}\[\],": ]*"[a-z_]+":(?: [\[{]+)?)+(?: ")?',
        r"\\n",
        r" [V.]{2,5}(?!\p{L})",
        rf" ?(?:{'|'.join(COLOURS)}) (?:{'|'.join(KINDS)})(?!\p{{L}})",
        r" ?[a-j][0-9](?![0-9\p{L}])",
        r" ?[0-9]{1,2}",
        r" ?\p{Han}",
        r" ?[\p{L}_]+",
        r" ?[^\s\p{L}0-9<\\]+",
        r"\n+",
        r"\s",
        r".",
    )
)


def corpus(num_episodes: int) -> Iterator[str]:
    """Texts for the tokenizer: the oracle's turns in every format and rule set, and the statements about pictures."""
    for seed in range(num_episodes):
        full = {"tile_px": TILE_PX} if seed % 4 == 0 else DEMO_WORLD
        world = {**full, "rules": RULES[seed // 2 % 2], "plain_missions": seed % 3 > 0}
        env = make_env("safari", **world)
        oracle = SafariOracle(env.rules, max_path=MAX_PATH, max_final_path=3)
        observation, _ = env.reset(seed=900_000 + seed)
        for _ in range(6):
            request = Request(env.system_prompt, env.tools, (), observation)
            turn = oracle.act([request])[0].turn
            for fmt in FORMATS.values():
                yield render_row(request, turn, fmt).text
            observation, _, terminated, truncated, _ = env.step(turn)
            if terminated or truncated:
                break
    rng = random.Random(0)
    for _ in range(num_episodes * 10):
        scene = Scene.of(random_board(rng))
        yield "".join(piece.text for piece in statements(scene, rng) + exchanges(scene, rng))


def random_board(rng: random.Random, densities: Sequence[float] = (0.05, 0.12, 0.12, 0.2)) -> np.ndarray:
    """(10, 10) symbols: some trees, 1 to 20 animals, one player."""
    board = np.full(VIEW * VIEW, GROUND, dtype=np.int64)
    density = rng.choice(densities)
    for i in range(VIEW * VIEW):
        if rng.random() < density:
            board[i] = TREE
    places = rng.sample(range(VIEW * VIEW), rng.randint(2, 21))
    for place in places[1:]:
        board[place] = animal_symbol(rng.choice(ANIMALS))
    board[places[0]] = PLAYER
    return board.reshape(VIEW, VIEW)


@dataclass(frozen=True)
class Scene:
    """A board as statements need it."""

    me: Tile
    places: dict[Animal, list[Tile]]
    blocked: frozenset[Tile]
    symbols: np.ndarray

    @classmethod
    def of(cls, board: np.ndarray) -> "Scene":
        (row, column), places = np.argwhere(board >= PLAYER)[0], {}
        for tile in TILES:
            if animal := symbol_animal(int(board[tile[1], tile[0]])):
                places.setdefault(animal, []).append(tile)
        blocked = frozenset((int(c), int(r)) for r, c in np.argwhere(board == TREE))
        return cls((int(column), int(row)), places, blocked, board)

    def animal(self, tile: Tile) -> Animal | None:
        return symbol_animal(int(self.symbols[tile[1], tile[0]]))

    def content(self, tile: Tile) -> str:
        """What stands on a tile, as the oracle's thoughts say it."""
        symbol, animal = int(self.symbols[tile[1], tile[0]]), self.animal(tile)
        return animal.name if animal else {GROUND: "free", TREE: "tree"}.get(symbol, "Me")

    def nearest(self, animal: Animal) -> str:
        """The nearest tile of that animal by name, or none."""
        tiles = self.places.get(animal)
        if not tiles:
            return "none"
        return tile_name(min(tiles, key=lambda tile: abs(tile[0] - self.me[0]) + abs(tile[1] - self.me[1])))


def statements(scene: Scene, rng: random.Random, ramp: float = 1.0) -> list[Piece]:
    """Text about a board in pieces, and whether each piece is supervised: what is asked is not, what is seen is.

    `ramp` from 0 to 1: at first every animal asked for is in view and no way is asked for. With all of it from the
    start "none" and the ways are learned, and looking an animal up never is.
    """
    num_ways = round(4 * ramp)
    target = partial(target_statement, absent=0.5 * ramp)
    kinds = [tile_statement] * 2 + [target] * (15 - 2 * num_ways) + [way_statement] * num_ways
    rng.shuffle(kinds)
    return [Piece("Me", False), me_piece(scene), *(piece for kind in kinds for piece in kind(scene, rng))]


def me_piece(scene: Scene) -> Piece:
    return Piece(f" {tile_name(scene.me)}.", True)


def tile_statement(scene: Scene, rng: random.Random) -> list[Piece]:
    """What stands on one tile."""
    tiles = list(scene.places.values())
    tile = rng.choice(TILES) if rng.random() < 0.3 or not tiles else rng.choice(rng.choice(tiles))
    return [Piece(f" Tile {tile_name(tile)}", False), Piece(f" {scene.content(tile)}.", True)]


def target_statement(scene: Scene, rng: random.Random, absent: float) -> list[Piece]:
    """Where one animal is, or none."""
    animal = asked_animal(scene, rng, absent)
    answer = Piece(f" {scene.nearest(animal)}.", True)
    if rng.random() < 0.5:
        return [Piece(f" Target {animal.name}", False), answer]
    mission = write_mission((animal,), False, rng.choice(LANGUAGES), rng, plain=rng.random() < 0.7)
    return [Piece(f" Mission: {mission.text}\n Target", False), Piece(f" {animal.name}", True), answer]


def asked_animal(scene: Scene, rng: random.Random, absent: float) -> Animal:
    """One in view, or with probability `absent` perhaps not; most of those share the colour or the kind with one."""
    present = rng.choice(list(scene.places)) if scene.places else None
    if present and rng.random() >= absent:
        return present
    other = rng.choice(ANIMALS)
    if present and rng.random() < 0.7:
        near = [Animal(present.colour, other.kind), Animal(other.colour, present.kind)]
        return rng.choice(near)
    return other


def way_statement(scene: Scene, rng: random.Random) -> list[Piece]:
    """The tiles and the moves towards one tile."""
    way = random_way(scene, rng)
    if not way:
        return []
    goal, part, plan = way
    asked = rng.choice((f" Go {tile_name(goal)}.", f" Zone {tile_name(rng.choice(TILES))}, go {tile_name(goal)}."))
    return [Piece(asked, False), Piece(f" Path {tile_names(part)}. Plan {plan.text()}.", True)]


def content_statement(scene: Scene, rng: random.Random) -> list[Piece]:
    """What stands on one tile: mostly an animal or a tree, so that it has to be looked up."""
    animals = [tile for tiles in scene.places.values() for tile in tiles]
    tile = rng.choice(rng.choice([among for among in (animals, animals, sorted(scene.blocked), TILES) if among]))
    return [Piece(f" Tile {tile_name(tile)}", False), Piece(f" {scene.content(tile)}.", True)]


def look_statement(scene: Scene, rng: random.Random) -> list[Piece]:
    """A way to a tile with what stands on it, perhaps after others that are blocked."""
    way = random_way(scene, rng, rng.random() < 0.4)
    if not way:
        return []
    goal, part, plan = way
    asked = rng.choice((f" Go {tile_name(goal)}.", f" Zone {tile_name(rng.choice(TILES))}, go {tile_name(goal)}."))
    return [
        Piece(asked, False),
        *false_starts(scene, rng, goal),
        *looked_pieces(scene, part, True),
        Piece(f" Plan {plan.text()}.", True),
    ]


def false_starts(scene: Scene, rng: random.Random, goal: Tile) -> list[Piece]:
    """Straight ways that are blocked: they are not learned, but what stands on them is. The same one may be said again
    and again, as an agent does that gets stuck in its thought; what is learned is how to leave it."""
    straight = [upto_first(way[:MAX_PATH], scene.blocked) for way in straight_ways(scene.me, goal)]
    blocked = [way for way in straight if way]
    ways = rng.choices(blocked, k=rng.choice((0, 0, 1, 1, 2, 3))) if blocked else []
    return [piece for way in ways for piece in looked_pieces(scene, way, False)]


def looked_pieces(scene: Scene, way: Sequence[Tile], is_learned: bool, task: "Task | None" = None) -> list[Piece]:
    """The steps of a way, each with what stands where it leads; the steps are learned or not. With a task it is said
    where the way ends on a target."""
    pieces = [Piece(" Path", is_learned)]
    for direction, tile in zip(directions_of(scene.me, way), way, strict=True):
        pieces += [Piece(f" {direction} {tile_name(tile)}", is_learned), Piece(f" {scene.content(tile)}", True)]
    mark = " target" if task and scene.animal(way[-1]) in task.current else ""
    return [*pieces, Piece(f"{mark}.", True)]


def walk_statement(scene: Scene, rng: random.Random) -> list[Piece]:
    """A way that leads nowhere, with many bends: what stands on it and its moves."""
    way = [scene.me]
    for _ in range(rng.randint(2, MAX_PATH)):
        column, row = way[-1]
        ahead = [(column + dx, row + dy) for dx, dy in DIRECTIONS.values()]
        free = [tile for tile in ahead if tile in TILES and tile not in scene.blocked and tile not in way]
        if not free:
            break
        way.append(rng.choice(free))
    part = first_part(scene.me, way[1:], MAX_PATH)
    if not part:
        return []
    plan = Plan(tuple(actions_of(scene.me, part)))
    return [*looked_pieces(scene, part, False), Piece(f" Plan {plan.text()}.", True)]


@dataclass(frozen=True)
class Task:
    """A mission and which of its targets are not yet found."""

    mission: Mission
    wanted: tuple[Animal, ...]

    @classmethod
    def of_one(cls, scene: Scene, rng: random.Random) -> "Task":
        """With one target."""
        animal = asked_animal(scene, rng, absent=0.5)
        mission = write_mission((animal,), False, rng.choice(LANGUAGES), rng, plain=rng.random() < 0.7)
        return cls(mission, mission.targets)

    @classmethod
    def of_several(cls, scene: Scene, rng: random.Random, next_one: Animal | None = None) -> "Task":
        """With one to three, in order or not, some of them found; `next_one` may be fetched now."""
        num_targets = rng.choice((1, 2, 2, 3, 3, 3))
        drawn = [next_one or asked_animal(scene, rng, absent=0.5)]
        drawn += [asked_animal(scene, rng, absent=0.5) for _ in range(num_targets - 1)]
        wanted_first, *others = dict.fromkeys(drawn)
        num_found = rng.randint(0, len(others)) if rng.random() < 0.5 else 0
        found, left = others[:num_found], others[num_found:]
        if ordered := rng.random() < 0.4:
            targets = [*found, wanted_first, *left]
        else:
            targets = rng.sample([wanted_first, *others], len(others) + 1)
        mission = write_mission(tuple(targets), ordered, rng.choice(LANGUAGES), rng, plain=rng.random() < 0.7)
        return cls(mission, tuple(target for target in targets if target not in found))

    @property
    def found_line(self) -> str:
        """As a context says what is found."""
        words = zip(self.mission.targets, self.mission.wordings, strict=True)
        return f"Found Targets: {', '.join(text for target, text in words if target not in self.wanted) or '(none)'}"

    @property
    def current(self) -> tuple[Animal, ...]:
        """Those that may be fetched now."""
        return self.wanted[:1] if self.mission.ordered else self.wanted

    def where(self, scene: Scene) -> str:
        """The nearest tile of each that may be fetched now, as the oracle's thoughts say it."""
        return ", ".join(f"{animal.name} {scene.nearest(animal)}" for animal in self.current)

    def plan(self, scene: Scene, way: Sequence[Tile]) -> Plan:
        """To walk it, and to declare what stands at its end if it is a target."""
        is_found = scene.animal(way[-1]) in self.current
        return Plan(tuple(actions_of(scene.me, way)), found=is_found, done=is_found and len(self.wanted) == 1)


def task_way(scene: Scene, rng: random.Random) -> tuple[Task, Tile, list[Tile]] | None:
    """A task, and a way that mostly ends on an animal, half of the time on one that may be fetched."""
    way = random_way(scene, rng, to_animal=rng.random() < 0.7)
    if not way:
        return None
    goal, part, _ = way
    end = scene.animal(part[-1])
    return Task.of_several(scene, rng, end if rng.random() < 0.5 else None), goal, part


def list_statement(scene: Scene, rng: random.Random) -> list[Piece]:
    """Where each target of a mission is that may be fetched now, and perhaps a way that ends on one or on something else."""
    found = task_way(scene, rng)
    if not found:
        return []
    task, goal, part = found
    told = f" Mission: {task.mission.text}\n{task.found_line}\n Target"
    listed = [Piece(told, False), Piece(f" {task.where(scene)}.", True)]
    if rng.random() < 0.3:
        return listed
    plan = Piece(f" Plan {task.plan(scene, part).text()}.", True)
    go = Piece(f" Go {tile_name(goal)}.", False)
    return [*listed, go, *false_starts(scene, rng, goal), *looked_pieces(scene, part, True, task), plan]


def free_statement(scene: Scene, rng: random.Random) -> list[Piece]:
    """The directions from one tile, mostly a near one, in which no tree and no edge of the view is next to it."""
    near = [tile for tile in TILES if abs(tile[0] - scene.me[0]) + abs(tile[1] - scene.me[1]) <= 4]
    tile = rng.choice(near if rng.random() < 0.7 else TILES)
    ahead = {name: (tile[0] + dx, tile[1] + dy) for name, (dx, dy) in DIRECTIONS.items()}
    free = [name for name, place in ahead.items() if place in TILES and place not in scene.blocked]
    return [Piece(f" free {tile_name(tile)}", False), Piece(f" {' '.join(free) or 'none'}.", True)]


def random_way(scene: Scene, rng: random.Random, to_animal: bool = False) -> tuple[Tile, list[Tile], Plan] | None:
    """A tile, an animal's if asked, the first tiles towards it and the moves; None if a few tries find nothing in reach."""
    animals = [tile for tiles in scene.places.values() for tile in tiles]
    for _ in range(10):
        goal = rng.choice(animals if to_animal and animals else TILES)
        way = shortest_way(scene.me, goal, scene.blocked) if goal not in scene.blocked and goal != scene.me else None
        if way:
            part = first_part(scene.me, way, MAX_PATH)
            return goal, part, Plan(tuple(actions_of(scene.me, part)))
    return None


def bare_path(way: Sequence[Tile]) -> Piece:
    return Piece(f" Path {tile_names(way)}.", True)


def tile_names(tiles: Sequence[Tile]) -> str:
    return " ".join(map(tile_name, tiles))


def exchanges(
    scene: Scene, rng: random.Random, num: int = 2, looks: bool = False, several: bool = False
) -> list[Piece]:
    """Chat in one format: what must be done stands in a notepad and a thought, and the calls that do it follow."""
    fmt = FORMATS[rng.choice(FORMATS_WITH_THOUGHT)]
    pieces = [Piece(f"\n\n{fmt.instructions(env_tools(rng.choice(RULES)))}<|im_end|>\n", False)]
    return pieces + [piece for _ in range(num) for piece in exchange(scene, rng, fmt, looks, several)]


@cache
def env_tools(rules: str) -> tuple[Tool, ...]:
    return tuple(make_env("safari", rules=rules).tools)


def last_line(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """What a context says of the turn before, and what a thought says of it."""
    trees = sorted(scene.blocked)
    if not trees or rng.random() < 0.5:
        return f"Last: {rng.choice(('(none)', 'moved', 'moved, noted', 'stood'))}\n", ""
    tile = tile_name(rng.choice(trees))
    moved = rng.choice(("", "moved, ", "moved, noted, ", "noted, "))
    return f"Last: {moved}blocked by tree {tile}\n", f" Blocked {tile}."


def exchange(scene: Scene, rng: random.Random, fmt: Format, looks: bool = False, several: bool = False) -> list[Piece]:
    """Where to go, which zones are swept and whether something is found or done is asked; the rest follows from it.

    With missions of several targets something is found where the way ends on one, so that follows, too, and whether
    the mission is done.
    """
    if several:
        drawn = task_way(scene, rng)
    else:
        way = random_way(scene, rng)
        drawn = (Task.of_one(scene, rng), *way[:2]) if way else None
    if not drawn:
        return []
    task, goal, part = drawn
    walk = Plan(tuple(actions_of(scene.me, part)))
    plan = task.plan(scene, part) if several else replace(walk, found=rng.random() < 0.4, done=rng.random() < 0.3)
    old, swept = Notes(), []
    if rng.random() < 0.8:
        old = Notes(frozenset(zone for zone in ZONES if rng.random() < 0.4), go=rng.choice(ZONES))
        swept = [zone for zone in ZONES if zone not in old.swept and rng.random() < 0.3]
    new, asked = old, f" Go {tile_name(goal)}."
    if rng.random() < 0.7:
        new = Notes(old.swept.union(swept), go=rng.choice(ZONES)) if swept or not old.go else old
        asked = "".join(f" Done {tile_name(zone)}." for zone in swept)
        asked += f" Zone {tile_name(new.go)}, go {tile_name(goal)}."
    told, blocked = last_line(scene, rng) if looks else ("", "")
    told += f"\n{task.found_line}\n" if several else ""
    thought = [
        Piece("Me", True),
        me_piece(scene),
        Piece(blocked, True),
        Piece(f" Target {task.where(scene)}.", True),
        Piece(asked, False),
        *(false_starts(scene, rng, goal) if several else []),
        *(looked_pieces(scene, part, True, task if several else None) if looks else [bare_path(part)]),
        Piece(f" Plan {walk.text()}", True),
        Piece(plan.text().removeprefix(walk.text()) + ".", several),
    ]
    end = scene.animal(part[-1])
    words = task.mission.wording(end if several and plan.found else task.wanted[0])
    turn = Turn("".join(piece.text for piece in thought), tuple(calls_of(plan, old, new, words)))
    before, after = "".join(span.text for span in fmt.render(turn)).split(turn.thought)
    notepad = write_notes(old, 2 * VIEW, 2 * VIEW) or "(empty)"
    said = f"Mission: {task.mission.text}\n{told}\nNotepad:\n{notepad}"
    user = f"<|im_start|>user\n{said}<|im_end|>\n<|im_start|>assistant\n"
    return [Piece(user, False), Piece(before, True), *thought, Piece(f"{after}<|im_end|>", True), Piece("\n", False)]


def calls_of(plan: Plan, old: Notes, new: Notes, wording: str) -> Iterator[ToolCall]:
    """A note if it changes, then the plan."""
    if new != old:
        yield ToolCall("update_notepad", {"content": write_notes(new, 2 * VIEW, 2 * VIEW)})
    yield ToolCall("move", {"actions": [{"direction": where, "steps": steps} for where, steps in plan.moves]})
    if plan.found:
        yield ToolCall("declare_found", {"target": wording})
    if plan.done:
        yield ToolCall("declare_done", {})


def patches_of_symbols(sheet: str = USUAL_SHEET) -> torch.Tensor:
    """(symbols, 1536): the processor's patch of every tile picture (channel, time, y, x; scaled to -1..1)."""
    tiles = torch.from_numpy(tile_pictures(TILE_PX, sheet).copy()).permute(0, 3, 1, 2).float() / 127.5 - 1
    return torch.stack([tiles, tiles], dim=2).flatten(1)


def train_vision(model, tokenizer, num_steps: int, batch_size: int = 16) -> dict:
    """Teach the tower to name each tile through the embedding table; returns the last accuracies."""
    word = {w: one_token(tokenizer, w) for w in ["Me", " tree", " free", " none"]}
    places = torch.tensor([one_token(tokenizer, f" {tile_name(tile)}") for tile in TILES])
    animals = torch.tensor([one_token(tokenizer, f" {animal.name}") for animal in ANIMALS])  # in the order of symbols
    types = torch.tensor([word[" free"], word[" tree"], word[" none"], word["Me"]])
    directions = torch.tensor([one_token(tokenizer, f" {name}") for name in DIRECTIONS])
    tower, table = model.model.visual, model.model.language_model.embed_tokens.weight
    with torch.no_grad():
        tower.pos_embed.weight.normal_(0, 0.5)
    parameters = [*tower.parameters(), table]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.0, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=num_steps, pct_start=0.05)
    patches, rng = patches_of_symbols(), np.random.default_rng(1)
    python_rng = random.Random(1)
    grid = torch.tensor([[1, VIEW, VIEW]] * batch_size)
    place_targets = torch.arange(VIEW * VIEW).repeat(batch_size)
    started = time.time()
    for step in range(num_steps):
        boards = np.stack([crowded_board(python_rng, rng) for _ in range(batch_size)])
        symbols = torch.from_numpy(boards).flatten()
        pixels = patches[symbols]
        output = tower(pixels + 0.05 * torch.randn_like(pixels), grid)
        is_animal = (symbols >= FIRST_ANIMAL) & (symbols < PLAYER)
        animal = symbols - FIRST_ANIMAL
        type_targets = torch.where(is_animal, 2, torch.where(symbols >= PLAYER, 3, symbols))
        free = free_neighbours(torch.from_numpy(boards))
        losses = {"type": 0.0, "animal": 0.0, "place": 0.0, "free": 0.0, "size": 0.0}
        # The language model reads the output alone in its first layer, and with the deepstack features after it.
        for seen in (output.pooler_output, output.pooler_output + output.deepstack_features[0]):
            features = functional.rms_norm(seen, seen.shape[-1:])  # (tiles, H), as every layer sees them
            losses["type"] += functional.cross_entropy(features @ table[types].T, type_targets)
            losses["animal"] += functional.cross_entropy((features @ table[animals].T)[is_animal], animal[is_animal])
            losses["place"] += functional.cross_entropy(features @ table[places].T, place_targets)
            losses["free"] += 2 * functional.binary_cross_entropy_with_logits(features @ table[directions].T, free)
            # A vision token weighs about as much as a word: features that drown every word cannot be changed by layers.
            losses["size"] += (seen.pow(2).mean() - FEATURE_POWER).clamp(min=0)
        # What stands on a tile first: learned together from the start, place and neighbours drown it.
        use = ("type", "animal", "size") if step < num_steps // 10 else tuple(losses)
        optimizer.zero_grad()
        sum(losses[name] for name in use).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == num_steps - 1:
            accuracy = {
                "animal": ((features @ table[animals].T).argmax(1) == animal)[is_animal].float().mean().item(),
                "place": ((features @ table[places].T).argmax(1) == place_targets).float().mean().item(),
                "free": ((features @ table[directions].T > 0) == (free > 0)).float().mean().item(),
            }
            console.print(f"vision {step} {time.time() - started:.0f}s", {k: round(v, 4) for k, v in accuracy.items()})
    return accuracy


def crowded_board(rng: random.Random, numpy_rng: np.random.Generator) -> np.ndarray:
    """A board on which four tiles of ten are animals."""
    board = random_board(rng)
    crowd = (numpy_rng.random(board.shape) < 0.4) & (board < PLAYER)
    board[crowd] = numpy_rng.integers(FIRST_ANIMAL, PLAYER, crowd.sum())
    if numpy_rng.random() < 0.5:
        board[board >= PLAYER] = numpy_rng.integers(PLAYER, NUM_SYMBOLS)
    return board


def train_fonts(model, tokenizer, num_steps: int, batch_size: int = 16) -> dict:
    """Teach the tower to see in other fonts what it sees in the usual one, so that the language model need learn nothing;
    returns the share of animals that it names right, by font."""
    tower, teacher = model.model.visual, deepcopy(model.model.visual)
    usual, fonts = patches_of_symbols(), torch.stack([patches_of_symbols(sheet) for sheet in FONTS])
    optimizer = torch.optim.AdamW(tower.parameters(), lr=1e-3, weight_decay=0.0, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=num_steps, pct_start=0.05)
    rng, numpy_rng = random.Random(1), np.random.default_rng(1)
    for _ in track(range(num_steps), "fonts"):
        symbols = torch.from_numpy(np.stack([crowded_board(rng, numpy_rng) for _ in range(batch_size)])).flatten(1)
        font = torch.from_numpy(numpy_rng.integers(0, len(FONTS), batch_size))[:, None].expand_as(symbols)
        pixels = fonts[font.flatten(), symbols.flatten()]
        wanted = features_of(teacher, usual[symbols.flatten()]).detach()
        errors = (features_of(tower, pixels + 0.05 * torch.randn_like(pixels)) - wanted).pow(2).mean(0) / wanted.var(0)
        optimizer.zero_grad()
        errors.mean().backward()
        torch.nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return animals_named(model, tokenizer)


@torch.no_grad()
def animals_named(model, tokenizer, num_boards: int = 40) -> dict:
    """Share of the animals on crowded boards whose colour and kind a tile's feature names best, by font."""
    tower, table = model.model.visual, model.model.language_model.embed_tokens.weight
    names = table[[one_token(tokenizer, f" {animal.name}") for animal in ANIMALS]]  # in the order of symbols
    rng, numpy_rng = random.Random(2), np.random.default_rng(2)
    symbols = torch.from_numpy(np.stack([crowded_board(rng, numpy_rng) for _ in range(num_boards)])).flatten()
    is_animal = (symbols >= FIRST_ANIMAL) & (symbols < PLAYER)
    shares = {}
    for sheet in SHEETS:
        seen = features_of(tower, patches_of_symbols(sheet)[symbols])[is_animal, : names.shape[1]]
        named = (functional.rms_norm(seen, seen.shape[-1:]) @ names.T).argmax(1) + FIRST_ANIMAL
        shares[sheet] = round((named == symbols[is_animal]).float().mean().item(), 3)
    return shares


def features_of(tower, pixels: torch.Tensor) -> torch.Tensor:
    """(tiles, 2 H): what the language model's first layer reads, and what its second is given beside."""
    output = tower(pixels, torch.tensor([[1, VIEW, VIEW]] * (len(pixels) // VIEW**2)))
    return torch.cat([output.pooler_output, output.deepstack_features[0]], dim=-1)


def free_neighbours(boards: torch.Tensor) -> torch.Tensor:
    """(tiles, 4) float: for each direction of DIRECTIONS, whether the next tile is in the view and no tree."""
    blocked = functional.pad(boards == TREE, (1, 1, 1, 1), value=True)  # (B, 12, 12)
    shifted = [blocked[:, 1 + dy : 11 + dy, 1 + dx : 11 + dx] for dx, dy in DIRECTIONS.values()]
    return (~torch.stack(shifted, dim=-1)).reshape(-1, len(DIRECTIONS)).float()


def see_boards(tower) -> Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """(B, 10, 10) symbols to the tower's output and its deepstack features."""
    tower.patch_embed.proj.__class__ = PatchProjection
    patches = patches_of_symbols()

    def see(boards: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen = tower(patches[boards.flatten()], torch.tensor([[1, VIEW, VIEW]] * len(boards)))
        return seen.pooler_output, seen.deepstack_features[0]

    return see


def statement_figures(tokenizer, before, targets, is_right, groups) -> dict:
    """Accuracy by what is asked."""
    none = one_token(tokenizer, " none")
    path, me = one_token(tokenizer, " Path"), one_token(tokenizer, "Me")
    animals = torch.tensor([one_token(tokenizer, f" {animal.name}") for animal in ANIMALS])
    tiles = torch.tensor([one_token(tokenizer, f" {tile_name(tile)}") for tile in TILES])
    steps = torch.tensor([one_token(tokenizer, f" {n}") for n in (1, 2, 3)])
    directions = torch.tensor([one_token(tokenizer, f" {name}") for name in DIRECTIONS])
    contents = torch.tensor([one_token(tokenizer, word) for word in (" free", " tree")] + animals.tolist())
    groups = {
        "me": before == me,
        "animal": torch.isin(targets, animals),
        "none": torch.isin(before, animals) & (targets == none),
        "at": torch.isin(before, animals) & torch.isin(targets, tiles),
        "path_first": before == path,
        "path": torch.isin(before, torch.cat([tiles, contents])) & torch.isin(targets, tiles),
        "steps": torch.isin(targets, steps),
        "content": torch.isin(before, tiles) & torch.isin(targets, contents),
        "tree": torch.isin(before, tiles) & (targets == one_token(tokenizer, " tree")),
        "content_animal": torch.isin(before, tiles) & torch.isin(targets, animals),
        "first_free": torch.isin(before, tiles) & torch.isin(targets, directions),
    }
    return {name: round(is_right[group].float().mean().item(), 3) for name, group in groups.items() if group.any()}


@command("the stages before this one are kept; --start goes on from them")
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write; a checkpoint after every stage")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--start", type=Path, help="folder to go on from (default: a new tokenizer and random weights)")
    parser.add_argument("--vocab-size", type=int, default=3072)
    parser.add_argument("--vision-steps", type=int, default=600)
    parser.add_argument("--perception-steps", type=int, default=3000)
    parser.add_argument("--calls-steps", type=int, default=1500)
    parser.add_argument("--ways-steps", type=int, default=1200)
    parser.add_argument("--contents-steps", type=int, default=500)
    parser.add_argument("--looks-steps", type=int, default=700)
    parser.add_argument("--missions-steps", type=int, default=2200)
    parser.add_argument("--fonts-steps", type=int, default=500)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--ramp-rows", type=int, default=20_000, help="rows until perception asks for everything")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="compile the language model (needs a C++ compiler)")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    tokenizer, model = load_stage(args.start) if args.start else new_base(args)
    figures = {}
    for stage in args.stages:
        figures[stage] = run_stage(stage, model, tokenizer, args)
        save_half(model, tokenizer, args.out)
        (args.out / f"{stage}.json").write_text(json.dumps(figures[stage], indent=2) + "\n", encoding="utf-8")
    console.print(figures)
    return 0


def run_stage(stage: str, model, tokenizer, args) -> dict:
    """Train one stage; returns its last figures."""
    if stage == "vision":
        return train_vision(model, tokenizer, args.vision_steps)
    if stage == "fonts":
        return train_fonts(model, tokenizer, args.fonts_steps)
    if stage == "perception":
        init_attention(model.model.language_model)
    num_tokens, num_steps, learning_rate, pieces_of, board_of = {
        "perception": (272, args.perception_steps, 1.5e-3, partial(perception_row, args.ramp_rows), random_board),
        "calls": (416, args.calls_steps, 1e-3, calls_row, random_board),
        "ways": (352, args.ways_steps, 1e-3, ways_row, partial(random_board, densities=(0.1, 0.2, 0.3, 0.35))),
        "contents": (248, args.contents_steps, 1e-3, contents_row, random_board),
        "looks": (416, args.looks_steps, 1e-3, looks_row, partial(random_board, densities=(0.1, 0.12, 0.2, 0.3))),
        "missions": (
            416,
            args.missions_steps,
            1e-3,
            missions_row,
            partial(random_board, densities=(0.1, 0.12, 0.2, 0.3)),
        ),
    }[stage]

    def draw(rng: random.Random, row: int) -> tuple[np.ndarray, list[tuple[str, int]]]:
        board = board_of(rng)
        return board, [(text, int(supervised)) for text, supervised in pieces_of(Scene.of(board), rng, row)]

    return train_language(
        model,
        PictureRows(tokenizer, num_tokens, VIEW, draw, (args.seed + STAGES.index(stage) - 1) * 1000),
        see_boards(model.model.visual),
        partial(statement_figures, tokenizer),
        partial(save_half, model, tokenizer, args.out),
        num_steps=num_steps,
        learning_rate=learning_rate,
        batch_size=args.batch_size,
        compiled=args.compile,
    )


def perception_row(ramp_rows: int, scene: Scene, rng: random.Random, row: int) -> list[Piece]:
    return statements(scene, rng, ramp=min(1.0, row / ramp_rows))


def calls_row(scene: Scene, rng: random.Random, row: int) -> list[Piece]:
    """A few statements, so that nothing is forgotten, and two exchanges."""
    target = partial(target_statement, absent=0.5)
    kinds = [tile_statement, target, target, way_statement]
    rng.shuffle(kinds)
    return [piece for kind in kinds for piece in kind(scene, rng)] + exchanges(scene, rng)


def ways_row(scene: Scene, rng: random.Random, row: int) -> list[Piece]:
    """What blocks, and ways among many trees, which cannot be guessed; now and then all that was learned before."""
    target = partial(target_statement, absent=0.5)
    kinds = [tile_statement, target] + [free_statement] * 6 + [way_statement] * (3 if row % 3 == 0 else 7)
    rng.shuffle(kinds)
    pieces = [piece for kind in kinds for piece in kind(scene, rng)]
    return pieces + exchanges(scene, rng) if row % 3 == 0 else pieces


def contents_row(scene: Scene, rng: random.Random, row: int) -> list[Piece]:
    """What stands where, asked so often that looking a tile up is found: a few of them in a row never were (docs/LOG.md)."""
    target = partial(target_statement, absent=0.5)
    kinds = [content_statement] * 26 + [target] * 3 + [free_statement]
    rng.shuffle(kinds)
    return [Piece("Me", False), me_piece(scene), *(piece for kind in kinds for piece in kind(scene, rng))]


def looks_row(scene: Scene, rng: random.Random, row: int) -> list[Piece]:
    """What stands where, ways with what stands on them, and now and then what happened before and calls."""
    target = partial(target_statement, absent=0.5)
    has_calls = row % 2 == 0
    kinds = [content_statement] * 7 + [target] * 2 + [look_statement] * (1 if has_calls else 5)
    rng.shuffle(kinds)
    pieces = [Piece("Me", False), me_piece(scene), *(piece for kind in kinds for piece in kind(scene, rng))]
    return pieces + exchanges(scene, rng, 1, looks=True) if has_calls else pieces


def missions_row(scene: Scene, rng: random.Random, row: int) -> list[Piece]:
    """Missions of several targets, ways with what stands on them, and every other time a turn of one."""
    has_calls = row % 2 == 0
    few, many = (1, 0) if has_calls else (3, 1)
    kinds = [content_statement] * 2 + [look_statement] * few + [list_statement] * few + [walk_statement] * many
    rng.shuffle(kinds)
    pieces = [Piece("Me", False), me_piece(scene), *(piece for kind in kinds for piece in kind(scene, rng))]
    return pieces + exchanges(scene, rng, 1, looks=True, several=True) if has_calls else pieces


def new_base(args):
    texts = track(list(corpus(300)), "tokenizer")
    tokenizer = build_tiny_tokenizer(texts, args.vocab_size, pre_tokens=PRE_TOKENS)
    console.print(f"{len(tokenizer)} tokens")
    return tokenizer, build_tiny_model(tokenizer, "tiny", args.seed)


if __name__ == "__main__":
    sys.exit(main())
