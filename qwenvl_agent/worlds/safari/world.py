"""The safari world: what stands where, how it is drawn from a seed, and distances on its grid.

x grows to the right, y downward. A seed and a `SafariRules` are a world: all randomness is one `random.Random(seed)`.
"""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Literal, NamedTuple

from qwenvl_agent.settings import Range, build, check_values
from qwenvl_agent.worlds.safari.sprites import USUAL_SHEET, load_sheet

VIEW = 10
"""The player sees VIEW x VIEW tiles."""

KINDS = ("tiger", "elephant", "giraffe", "monkey", "zebra", "lion", "pig", "koala")
COLOURS = {
    "red": "#FF0000",
    "green": "#00FF00",
    "blue": "#0000FF",
    "yellow": "#FFFF00",
    "pink": "#FF00FF",
    "cyan": "#00FFFF",
    "orange": "#FFA500",
    "purple": "#800080",
}
SPRITES = {
    "tree": "\U0001f332",
    "tiger": "\U0001f42f",
    "elephant": "\U0001f418",
    "giraffe": "\U0001f992",
    "monkey": "\U0001f412",
    "zebra": "\U0001f993",
    "lion": "\U0001f981",
    "pig": "\U0001f437",
    "koala": "\U0001f428",
}
DIRECTIONS = {"RIGHT": (1, 0), "LEFT": (-1, 0), "UP": (0, -1), "DOWN": (0, 1)}
"""Also the order in which equal ways are tried."""

Tile = tuple[int, int]
"""(x, y) in the world, or (column, row) in a view."""

# Training data, selection of the best checkpoint and reports must never share a world.
TRAIN_SEEDS = range(0, 1_000_000)
SELECTION_SEEDS = range(1_000_000, 2_000_000)
REPORT_SEEDS = range(2_000_000, 3_000_000)

FAR = 10**6
"""Steps to what cannot be reached."""
MAX_DRAWS = 200
"""Worlds drawn from one seed before its rules are called impossible."""
MAX_MOVES = 400
"""Trees moved to connect a world before another one is drawn."""


NO_WORLD = "no such world can be built"


class Animal(NamedTuple):
    """Colour of the background and kind, both canonical English."""

    colour: str
    kind: str

    @property
    def name(self) -> str:
        return f"{self.colour} {self.kind}"


@dataclass(frozen=True, kw_only=True)
class SafariRules:
    """What a suite of worlds is like. The defaults are the full game."""

    width: Annotated[int, Range(VIEW, 1000, NO_WORLD)] = 50
    """Tiles from left to right."""
    height: Annotated[int, Range(VIEW, 1000, NO_WORLD)] = 50
    """Tiles from top to bottom."""
    num_trees: Annotated[int, Range(0, 10**6, NO_WORLD)] = 300
    """Nothing walks through a tree."""
    num_animals: Annotated[int, Range(1, 10**6, NO_WORLD)] = 60
    """Targets included."""
    max_turns: Annotated[int, Range(1, 10**6, "no episode has so many")] = 180
    """Then an episode is truncated."""
    tell_last: bool = False
    """The context says what the turn before did, and moves say what blocked them; the published recordings do not."""
    rules: Literal["reach", "catch"] = "reach"
    """reach: animals do not block, stand on the target. catch: animals block, catch the target from beside it."""
    languages: tuple[Literal["ko", "en", "zh"], ...] = ("ko", "en", "zh")
    """Of the missions."""
    plain_missions: bool = False
    """Only each language's first words, and of the usual phrasing its first sentence: for models that start from random
    weights."""
    phrasing: Literal["usual", "more", "held_out"] = "usual"
    """Which sentences: usual; more, which has them and others; held_out, which shares none with these, to evaluate on."""
    typos: Annotated[float, Range(0, 0.5, "no mission could be read")] = 0.0
    """Share of a mission's letters that are swapped, dropped or doubled, as far as it can still mean one thing only."""
    num_targets: Annotated[tuple[float, ...], Range(0, 1e9, "missions are drawn by it")] = (0.6, 0.25, 0.15)
    """Weights of missions with 1, 2, 3 targets."""
    ordered: Annotated[float, Range(0, 1, "it is a share")] = 0.5
    """Share of the missions with several targets in which the order is given."""
    tile_px: Annotated[int, Range(8, 1024, "no picture has such tiles")] = 48
    """Side of a tile in the picture."""
    sprites: str = USUAL_SHEET
    """Whose emoji are drawn: noto, noto_mono, twemoji, fluent, or the path of a sheet (scripts/build_sprites.py)."""
    connected: bool = True
    """Every free tile can be reached from the start."""
    min_distance: Annotated[int, Range(0, 10**6, "no way has that length")] = 0
    """Every animal that would do stands at least this many tiles (dx + dy) from the start."""
    max_distance: Annotated[int, Range(1, 10**6, "no way has that length")] = 10**6
    """Every animal that would do stands at most this many tiles (dx + dy) from the start."""
    outside_first_view: Annotated[float, Range(0, 1, "it is a share")] = 0.0
    """At least this share of worlds has no animal that would do in the first view."""
    targets_at: Literal["anywhere", "first_view", "border"] = "anywhere"
    """Where every animal that would do stands: anywhere, in the first view, or on the outermost tiles of the world."""
    left_out: tuple[str, ...] = ()
    """Animals that no world holds, as "red tiger": a recording shows none of them, so that others can be unseen."""
    asked_for: tuple[str, ...] = ()
    """Animals that alone are asked for; none: all."""

    def __post_init__(self):
        object.__setattr__(self, "languages", tuple(self.languages))
        object.__setattr__(self, "num_targets", tuple(self.num_targets))
        object.__setattr__(self, "left_out", tuple(self.left_out))
        object.__setattr__(self, "asked_for", tuple(self.asked_for))
        check_values(self, "safari")
        for name in ("left_out", "asked_for"):
            check_animals(f"safari.{name}", getattr(self, name))
        if self.sprites != USUAL_SHEET:
            load_sheet(self.sprites, tuple(SPRITES))
        free = self.width * self.height - 1
        checks = (
            (self.num_trees + self.num_animals <= free * 0.6, "num_trees", "at most 60 % of the tiles occupied"),
            (self.languages, "languages", "some of ko, en, zh"),
            (1 <= len(self.num_targets) <= 3 and sum(self.num_targets) > 0, "num_targets", "one to three weights"),
            (self.min_distance <= self.max_distance, "max_distance", f"at least min_distance, {self.min_distance}"),
            (len(set(self.left_out)) < NUM_ANIMALS, "left_out", f"fewer than all {NUM_ANIMALS} animals"),
            (not set(self.asked_for) & set(self.left_out), "asked_for", "none of left_out"),
        )
        for holds, name, wanted in checks:
            if not holds:
                raise ValueError(f"safari.{name} is {getattr(self, name)!r}: {NO_WORLD}; use {wanted}")

    @property
    def start(self) -> Tile:
        return self.width // 2, self.height // 2

    @classmethod
    def from_json(cls, values: dict) -> "SafariRules":
        """Rules from JSON values; ValueError naming the nearest key for one that does not exist."""
        return build(cls, values, "safari")


NUM_ANIMALS = len(COLOURS) * len(KINDS)


def check_animals(path: str, names: Iterable[str]) -> None:
    """ValueError for a name that is none of an animal's."""
    for name in names:
        colour, _, kind = name.partition(" ")
        if colour not in COLOURS or kind not in KINDS:
            raise ValueError(
                f"{path} has {name!r}, which is no animal: nothing would be left out or asked for; write a colour and a "
                f"kind, as 'red tiger' ({', '.join(COLOURS)}; {', '.join(KINDS)})"
            )


@dataclass
class World:
    """The things on the grid; animals leave it when they are caught."""

    width: int
    height: int
    trees: frozenset[Tile]
    animals: dict[Tile, Animal]
    start: Tile


def view_corner(player: Tile, width: int, height: int) -> Tile:
    """World place of the view's top left tile."""
    half = VIEW // 2
    return (
        min(max(player[0] - half, 0), width - VIEW),
        min(max(player[1] - half, 0), height - VIEW),
    )


def in_view(tile: Tile, corner: Tile) -> bool:
    return 0 <= tile[0] - corner[0] < VIEW and 0 <= tile[1] - corner[1] < VIEW


@cache
def _grid(width: int, height: int) -> tuple[list[Tile], list[tuple[int, ...]]]:
    """Tiles by index (y * width + x), and the indices beside each."""
    tiles = [(x, y) for y in range(height) for x in range(width)]
    beside = [
        tuple(ny * width + nx for nx, ny in neighbours(tile) if 0 <= nx < width and 0 <= ny < height) for tile in tiles
    ]
    return tiles, beside


def distances(
    goals: Iterable[Tile], blocked: Iterable[Tile], width: int, height: int, *, until: Iterable[Tile] = ()
) -> dict[Tile, int]:
    """Steps from every tile to the nearest goal, walking round `blocked`; unreachable tiles are missing.

    A goal may itself be blocked: it can be walked onto, never through. With `until`, tiles farther than all of these
    may be missing too.
    """
    tiles, beside = _grid(width, height)
    is_open = bytearray(b"\x01") * len(tiles)
    frontier = [y * width + x for x, y in goals]
    for x, y in blocked:
        is_open[y * width + x] = 0
    for cell in frontier:
        is_open[cell] = 0
    steps, count = {}, 0
    missing = set(until)
    while frontier and (missing or not until):
        following = []
        for cell in frontier:
            steps[tiles[cell]] = count
            for ahead in beside[cell]:
                if is_open[ahead]:
                    is_open[ahead] = 0
                    following.append(ahead)
        missing.difference_update(map(tiles.__getitem__, frontier))
        frontier = following
        count += 1
    return steps


def neighbours(tile: Tile) -> list[Tile]:
    return [(tile[0] + dx, tile[1] + dy) for dx, dy in DIRECTIONS.values()]


def draw_world(rules: SafariRules, rng: random.Random) -> World:
    """Trees and animals on distinct tiles, none on the start."""
    tiles = [(x, y) for y in range(rules.height) for x in range(rules.width) if (x, y) != rules.start]
    for _ in range(MAX_DRAWS):
        things = rng.sample(tiles, rules.num_trees + rules.num_animals)
        free = (things[: rules.num_trees], things[rules.num_trees :])
        drawn = connect(rules, *free, rng) if rules.connected else free
        if drawn:
            trees, places = drawn
            animals = {place: draw_animal(rules, rng) for place in places}
            return World(rules.width, rules.height, frozenset(trees), animals, rules.start)
    raise ValueError(
        f"{rules.num_trees} trees and {rules.num_animals} animals leave no connected {rules.width}x{rules.height} "
        "world: it cannot be built; use fewer, or connected=false"
    )


def draw_animal(rules: SafariRules, rng: random.Random) -> Animal:
    """Any that the rules do not leave out."""
    while True:
        animal = Animal(rng.choice(list(COLOURS)), rng.choice(KINDS))
        if animal.name not in rules.left_out:
            return animal


def connect(
    rules: SafariRules, trees: list[Tile], places: list[Tile], rng: random.Random
) -> tuple[list[Tile], list[Tile]] | None:
    """Move trees that close off a pocket until everything can be reached; None if that does not succeed.

    Animals count as walls under catch.
    """
    reached, pockets = closed_off(rules, trees, places)
    for _ in range(MAX_MOVES):
        if not pockets:
            return trees, places
        walls = [i for i, tree in enumerate(trees) if any(tile in pockets for tile in neighbours(tree))]
        doors = [i for i in walls if any(tile in reached for tile in neighbours(trees[i]))]
        free = [tile for tile in reached if tile not in places and tile != rules.start]
        if not free:
            return None
        moved, stayed = list(trees), places
        if walls:
            moved[rng.choice(doors or walls)] = rng.choice(free)
        else:
            stayed = rng.sample([*free, *places], len(places))
        others = closed_off(rules, moved, stayed)
        if len(others[1]) <= len(pockets) or not doors:
            trees, places, (reached, pockets) = moved, stayed, others
    return None


def closed_off(rules: SafariRules, trees: list[Tile], places: list[Tile]) -> tuple[dict[Tile, int], set[Tile]]:
    """Distances from the start, and what cannot be reached: free tiles, and under catch animals with none beside."""
    walls = {*trees, *places} if rules.rules == "catch" else set(trees)
    reached = distances([rules.start], walls, rules.width, rules.height)
    pockets = {place for place in places if place in walls and not any(tile in reached for tile in neighbours(place))}
    if len(walls) + len(reached) < rules.width * rules.height:
        tiles = {(x, y) for y in range(rules.height) for x in range(rules.width)}
        pockets |= tiles - walls - reached.keys()
    return reached, pockets


def walk(a: Tile, b: Tile) -> int:
    """Steps between two tiles when nothing is in the way."""
    return abs(a[0] - b[0]) + abs(a[1] - b[1])


def draw_task(rules: SafariRules, rng: random.Random) -> tuple[World, tuple[Animal, ...]]:
    """A world and its targets that keep the rules."""
    wish = None
    for _ in range(MAX_DRAWS):
        world = draw_world(rules, rng)
        # wished for once: a world that cannot serve is drawn again, not asked for something easier
        wish = wish or (rng.choices((1, 2, 3)[: len(rules.num_targets)], rules.num_targets)[0], rng.random())
        candidates = possible_targets(rules, world, is_outside=wish[1] < rules.outside_first_view)
        if len(candidates) >= wish[0]:
            return world, tuple(rng.sample(candidates, wish[0]))
    raise ValueError(
        f"no world with targets that fit the rules in {MAX_DRAWS} draws (min_distance {rules.min_distance}, max_distance "
        f"{rules.max_distance}, targets_at {rules.targets_at}, {len(rules.asked_for) or NUM_ANIMALS} animals to ask for): the "
        "suite would be empty; use more animals, a larger world, weaker rules or fewer targets"
    )


def possible_targets(rules: SafariRules, world: World, is_outside: bool) -> list[Animal]:
    """What a mission may ask for: all that stand where the rules want them and, if asked, out of the first view."""
    corner = view_corner(world.start, world.width, world.height)
    is_there = TARGET_PLACES[rules.targets_at]

    def would_do(place: Tile) -> bool:
        is_as_far = rules.min_distance <= walk(place, world.start) <= rules.max_distance
        return is_as_far and is_there(world, place) and not (is_outside and in_view(place, corner))

    unfit = {animal for place, animal in world.animals.items() if not would_do(place)}
    asked_for = set(rules.asked_for)
    return [
        animal
        for animal in dict.fromkeys(world.animals.values())
        if animal not in unfit and (not asked_for or animal.name in asked_for)
    ]


def in_first_view(world: World, place: Tile) -> bool:
    return in_view(place, view_corner(world.start, world.width, world.height))


def on_border(world: World, place: Tile) -> bool:
    return place[0] in (0, world.width - 1) or place[1] in (0, world.height - 1)


TARGET_PLACES: dict[str, Callable[[World, Tile], bool]] = {
    "anywhere": lambda world, place: True,
    "first_view": in_first_view,
    "border": on_border,
}
"""By `SafariRules.targets_at`."""
