"""Notepads that the oracle would not have written: nothing, an older way's, or what another player left in another world.

The game's notepad survives from one mission to the next, and a model's own notes may be wrong. Each kind is a share of the
states that `states.draw_state` draws (`record --resets 0.4 --state notes.prose=0.1`).
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from math import gcd
from typing import Annotated

from qwenvl_agent.settings import Range, check_values
from qwenvl_agent.worlds.safari.missions import with_particles, word_target
from qwenvl_agent.worlds.safari.notepad import Notes, write_notes, zone_counts
from qwenvl_agent.worlds.safari.sweep import zones_to_and_fro
from qwenvl_agent.worlds.safari.world import COLOURS, KINDS, VIEW, Animal, SafariRules, Tile

Share = Annotated[float, Range(0, 1, "it is a share")]
UNIT = 10_000
"""Shares are drawn in ten-thousandths."""
MAX_ZONES = 6
"""A side of another world, in zones."""
FAR_SIDE = 50
"""Places of another world are below it."""


@dataclass(frozen=True, kw_only=True)
class NotesShares:
    """Shares of the drawn states whose notepad is not the one that was written on the way, by kind."""

    none: Share = 0.05
    """Nothing stands in it."""
    stale: Share = 0.05
    """In the oracle's form, from another way: zones are marked as seen that were not."""
    wrong: Share = 0.05
    """The same, and a target's place, which is a wrong one."""
    other_size: Share = 0.0
    """In the oracle's form, of a world with another map."""
    prose: Share = 0.0
    """Free sentences about another world, in a language of the missions."""
    upstream: Share = 0.0
    """The template of the published agents: a map of zones, sightings with coordinates, ! on targets, a plan."""

    def __post_init__(self):
        check_values(self, "notes")
        total = sum(getattr(self, field.name) for field in fields(self))
        if total > 1 + 1e-9:
            raise ValueError(
                f"notes: the shares add up to {total:g}: more than all states; lower some to at most 1 in all"
            )


@cache
def kinds_by_share(shares: NotesShares) -> tuple[float, tuple[str, ...]]:
    """The share of all kinds together, and the kinds, each as often as its share asks."""
    wholes = {field.name: round(UNIT * getattr(shares, field.name)) for field in fields(shares)}
    unit = gcd(*wholes.values()) or 1
    return sum(wholes.values()) / UNIT, tuple(kind for kind, n in wholes.items() for _ in range(n // unit))


def draw_notes(
    shares: NotesShares, own: str, rules: SafariRules, wanted: Sequence[Animal], rng: random.Random
) -> tuple[str, str]:
    """A notepad and its kind: `own`, or one of the kinds by their shares. `wanted`: the targets not yet found."""
    total, kinds = kinds_by_share(shares)
    if rng.random() >= total:
        return own, "own_notes"
    kind = rng.choice(kinds)
    if kind == "none":
        return "", "no_notes"
    return WRITERS[kind](rules, wanted, rng), f"{kind}_notes"


def stale_notes(rules: SafariRules, wanted: Sequence[Animal], rng: random.Random) -> str:
    return write_notes(_another_way(rules, rng), rules.width, rules.height)


def wrong_notes(rules: SafariRules, wanted: Sequence[Animal], rng: random.Random) -> str:
    way = _another_way(rules, rng)
    seen = ((rng.choice(wanted), (rng.randrange(rules.width), rng.randrange(rules.height))),)
    return write_notes(Notes(way.swept, way.go, seen=seen), rules.width, rules.height)


def _another_way(rules: SafariRules, rng: random.Random) -> Notes:
    zones = zones_to_and_fro(rules)
    first, num_swept = rng.randrange(len(zones)), rng.randrange(len(zones))
    *swept, go = [*zones, *zones][first : first + num_swept + 1]
    return Notes(frozenset(swept), go)


def notes_of_other_size(rules: SafariRules, wanted: Sequence[Animal], rng: random.Random) -> str:
    """Of a world whose map has other rows or columns."""
    own = zone_counts(rules.width, rules.height)
    sizes = [(x, y) for x in range(1, MAX_ZONES + 1) for y in range(1, MAX_ZONES + 1) if (x, y) != own]
    columns, rows = rng.choice(sizes)
    zones = [(x, y) for x in range(columns) for y in range(rows)]
    swept, go = frozenset(rng.sample(zones, rng.randrange(len(zones)))), rng.choice(zones)
    return write_notes(Notes(swept, go), columns * VIEW, rows * VIEW)


PROSE: Mapping[str, tuple[str, ...]] = {
    "ko": (
        "({x}, {y})에 {animal} 있음!",
        "{animal}[은] {direction}에서 봤다.",
        "{direction}[은] 나무로 막혀 있음.",
        "{direction}부터 찾아볼 것.",
        "({x}, {y})까지 확인했고 {animal}[은] 없었다.",
    ),
    "en": (
        "{animal} at ({x}, {y})!",
        "Saw the {animal} in the {direction}.",
        "The {direction} is blocked by trees.",
        "Next I search the {direction}.",
        "I have been at ({x}, {y}), no {animal} there.",
    ),
    "zh": (
        "({x}, {y})有{animal}！",
        "在{direction}看到了{animal}。",
        "{direction}被树挡住了。",
        "下一步去{direction}找。",
        "({x}, {y})已经看过，没有{animal}。",
    ),
}
SIDES: Mapping[str, tuple[str, ...]] = {
    "ko": ("북쪽", "남쪽", "동쪽", "서쪽"),
    "en": ("north", "south", "east", "west"),
    "zh": ("北边", "南边", "东边", "西边"),
}


def prose_notes(rules: SafariRules, wanted: Sequence[Animal], rng: random.Random) -> str:
    """One to three sentences; half of the animals are wanted ones."""
    language = rng.choice(rules.languages)

    def sentence(form: str) -> str:
        x, y = _place(rng)
        words = word_target(_animal(wanted, rng), language, rng)
        return with_particles(form.format(animal=words, x=x, y=y, direction=rng.choice(SIDES[language])))

    return " ".join(map(sentence, rng.sample(PROSE[language], rng.randint(1, 3))))


def upstream_notes(rules: SafariRules, wanted: Sequence[Animal], rng: random.Random) -> str:
    columns, rows = zone_counts(rules.width, rules.height)
    drawn = [["V" if rng.random() < 0.4 else "." for _ in range(columns)] for _ in range(rows)]
    animals = [_animal(wanted, rng) for _ in range(rng.randint(0, 3))]
    seen = ", ".join(f"{animal.name} {_place(rng)}{'!' if animal in wanted else ''}" for animal in animals)
    zone = (rng.randrange(columns), rng.randrange(rows))
    return "\n".join(["[Map]", *map("".join, drawn), f"[Seen] {seen or '-'}", f"[Plan] go to zone {zone}"])


def _animal(wanted: Sequence[Animal], rng: random.Random) -> Animal:
    other = Animal(rng.choice(list(COLOURS)), rng.choice(KINDS))
    return rng.choice(wanted) if wanted and rng.random() < 0.5 else other


def _place(rng: random.Random) -> Tile:
    return rng.randrange(FAR_SIDE), rng.randrange(FAR_SIDE)


WRITERS: Mapping[str, Callable[[SafariRules, Sequence[Animal], random.Random], str]] = {
    "stale": stale_notes,
    "wrong": wrong_notes,
    "other_size": notes_of_other_size,
    "prose": prose_notes,
    "upstream": upstream_notes,
}
