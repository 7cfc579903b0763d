"""Questions about a view with exact answers: what stands where, before anything is done about it.

A question is a mission, its answer one call of update_notepad in a fixed form, so that perception data trains through
the same prompt, tools and formats as the agent's:

    list    Write down all animals.               red tiger h3, blue lion c7
    at      Write down what is at f5.             f5 tree
    where   Write down where the red tiger is.    red tiger h3
"""

import random
from collections.abc import Iterator

import numpy as np

from qwenvl_agent.schema import Observation, Picture, ToolCall, ToolResult, Turn
from qwenvl_agent.worlds.safari.context import NOTHING_YET, context_text
from qwenvl_agent.worlds.safari.env import system_prompt
from qwenvl_agent.worlds.safari.missions import with_particles, word_target
from qwenvl_agent.worlds.safari.render import GROUND, PLAYER, TREE, render_view, symbol_animal, view_symbols
from qwenvl_agent.worlds.safari.thoughts import ThoughtForm
from qwenvl_agent.worlds.safari.world import VIEW, Animal, SafariRules, Tile, draw_animal, draw_world, view_corner
from qwenvl_agent.worlds.world import RecordedTurn

QUESTIONS_PER_WORLD = 8
QUESTIONS = {
    "list": {"ko": "보이는 동물을 모두 적어줘", "en": "Write down all animals.", "zh": "写下所有动物"},
    "at": {"ko": "{}에 있는 것을 적어줘", "en": "Write down what is at {}.", "zh": "写下{}有什么"},
    "where": {"ko": "{}[이] 어디 있는지 적어줘", "en": "Write down where the {} is.", "zh": "写下{}在哪里"},
}


class View:
    """A view whose tiles are named in a thought's form."""

    def __init__(self, symbols: np.ndarray, player: Tile, corner: Tile, form: ThoughtForm):
        self.symbols, self.corner, self.form = symbols, corner, form
        self.me = (player[0] - corner[0], player[1] - corner[1])
        tiles = [(column, row) for row in range(VIEW) for column in range(VIEW)]
        self.animals = {tile: animal for tile in tiles if (animal := symbol_animal(self.symbol(tile)))}

    def symbol(self, tile: Tile) -> int:
        return int(self.symbols[tile[1], tile[0]])

    def name(self, tile: Tile) -> str:
        return self.form.tile(tile, (tile[0] + self.corner[0], tile[1] + self.corner[1]))

    def content(self, tile: Tile) -> str:
        """What stands on a tile, in a word or two."""
        if self.symbol(tile) >= PLAYER:
            return "me"
        animal = self.animals.get(tile)
        return animal.name if animal else {GROUND: "free", TREE: "tree"}[self.symbol(tile)]


def ask_list(view: View, language: str, rng: random.Random, rules: SafariRules) -> tuple[str, str, str]:
    """(question, what the thought says, answer); animals row by row."""
    answer = ", ".join(f"{animal.name} {view.name(tile)}" for tile, animal in view.animals.items()) or "none"
    return QUESTIONS["list"][language], "", answer


def ask_at(view: View, language: str, rng: random.Random, rules: SafariRules) -> tuple[str, str, str]:
    """Half of the time about an animal's tile."""
    anywhere = (rng.randrange(VIEW), rng.randrange(VIEW))
    tile = rng.choice(list(view.animals)) if view.animals and rng.random() < 0.5 else anywhere
    answer = f"{view.name(tile)} {view.content(tile)}"
    return QUESTIONS["at"][language].format(view.name(tile)), view.form.content.format(answer), answer


def ask_where(view: View, language: str, rng: random.Random, rules: SafariRules) -> tuple[str, str, str]:
    """Half of the time about an animal in view, else often about one that shares its colour or kind."""
    seen = list(view.animals.values())
    other = draw_animal(rules, rng)
    target = rng.choice(seen) if seen else other
    if rng.random() < 0.5:
        target = rng.choice((other, Animal(target.colour, other.kind), Animal(other.colour, target.kind)))
        target = other if target.name in rules.left_out else target
    places = [view.name(tile) for tile, animal in view.animals.items() if animal == target]
    answer = f"{target.name} {' '.join(places) or view.form.target_absent}"
    words = word_target(target, language, rng, rules.plain_missions, rules.phrasing)
    return with_particles(QUESTIONS["where"][language].format(words)), view.form.target.format(answer), answer


ASKS = (ask_list, ask_at, ask_where)


def perception_rows(rules: SafariRules, seed: int, form: ThoughtForm) -> Iterator[RecordedTurn]:
    """Questions from random places of one world."""
    rng = random.Random(f"perception {seed}")
    world = draw_world(rules, rng)
    blocked = world.trees | set(world.animals) if rules.rules == "catch" else world.trees
    free = [(x, y) for y in range(rules.height) for x in range(rules.width) if (x, y) not in blocked]
    last = NOTHING_YET if rules.tell_last else None
    for index in range(QUESTIONS_PER_WORLD):
        player = rng.choice(free)
        symbols = view_symbols(world, player)
        view = View(symbols, player, view_corner(player, rules.width, rules.height), form)
        question, said, answer = rng.choice(ASKS)(view, rng.choice(rules.languages), rng, rules)
        thought = " ".join(part for part in (form.me.format(view.name(view.me)), said) if part)
        picture = Picture.from_image(render_view(symbols, rules.tile_px, rules.sprites))
        yield RecordedTurn(
            episode_id=f"{seed:08x}",
            mission=question,
            turn_index=index,
            system_prompt=system_prompt(rules),
            observation=Observation(
                context_text(question, index + 1, rules.max_turns, player, "", "", last), (picture,)
            ),
            turn=Turn(thought, (ToolCall("update_notepad", {"content": answer}),)),
            results=(ToolResult("update_notepad", {"status": "updated"}),),
        )
