"""What the oracle makes of a picture and a context: one object that answers its questions.

`place`s are (x, y) in the world, `tile`s (column, row) in the view.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from qwenvl_agent.worlds.safari.context import Context, read_context
from qwenvl_agent.worlds.safari.missions import Mission, find_targets, read_mission
from qwenvl_agent.worlds.safari.notepad import Notes, read_notes
from qwenvl_agent.worlds.safari.render import PLAYER, TREE, player_colour, symbol_animal
from qwenvl_agent.worlds.safari.world import Animal, SafariRules, Tile, in_view, view_corner


@dataclass(frozen=True)
class Scene:
    """A picture and a context, read."""

    rules: SafariRules
    symbols: np.ndarray
    context: Context
    mission: Mission
    notes: Notes
    waypoints: str = "centres"
    """Where zones are looked at from: `sweep.py`."""
    ends_on_animals: bool = False
    """Whether a walk may end on an animal that is no target of the mission, which the disc then hides."""

    @cached_property
    def me(self) -> Tile:
        row, column = np.argwhere(self.symbols >= PLAYER)[0]
        return int(column), int(row)

    @cached_property
    def corner(self) -> Tile:
        """Place of the view's top left tile."""
        return self.context.position[0] - self.me[0], self.context.position[1] - self.me[1]

    @cached_property
    def animals(self) -> dict[Tile, Animal]:
        """By tile; the one under the player's disc is not seen."""
        symbols = {(column, row): int(symbol) for (row, column), symbol in np.ndenumerate(self.symbols)}
        return {tile: animal for tile, symbol in symbols.items() if (animal := symbol_animal(symbol))}

    @cached_property
    def colour_under_me(self) -> str:
        return player_colour(int(self.symbols[self.me[1], self.me[0]]))

    @cached_property
    def blocked(self) -> frozenset[Tile]:
        """Tiles that block: those that look like it, and the one that blocked the last walk, whatever it looks like."""
        trees = {(int(column), int(row)) for row, column in np.argwhere(self.symbols == TREE)}
        if self.context.blocked:
            trees.add(self.context.blocked)
        return frozenset(trees | set(self.animals) if self.rules.rules == "catch" else trees)

    @cached_property
    def no_ends(self) -> frozenset[Tile]:
        """Tiles that are walked over but not stopped on."""
        return frozenset(
            tile for tile, animal in self.animals.items() if animal in self.wanted or not self.ends_on_animals
        )

    def content(self, tile: Tile) -> str:
        """What stands on a tile, in words: its animal, tree where something blocks, or free."""
        return self.animals[tile].name if tile in self.animals else "tree" if tile in self.blocked else "free"

    @cached_property
    def walls(self) -> frozenset[Tile]:
        """Blocked places, in view and remembered."""
        remembered = {place for place in self.notes.walls if not in_view(place, self.corner)}
        return frozenset(remembered | {self.place(tile) for tile in self.blocked})

    @cached_property
    def wanted(self) -> list[Animal]:
        """Targets not yet declared, in the mission's order."""
        found = {animal for _, animal in find_targets(self.context.found)}
        return [animal for animal in self.mission.targets if animal not in found]

    @cached_property
    def current(self) -> list[Animal]:
        """Targets that may be fetched now."""
        return self.wanted[:1] if self.mission.ordered else self.wanted

    def place(self, tile: Tile) -> Tile:
        return tile[0] + self.corner[0], tile[1] + self.corner[1]

    def tile(self, place: Tile) -> Tile | None:
        """The view tile that shows a place; None if it is out of view."""
        if not in_view(place, self.corner):
            return None
        return place[0] - self.corner[0], place[1] - self.corner[1]

    def corner_at(self, tile: Tile) -> Tile:
        """The view's corner once the player stands on `tile`."""
        return view_corner(self.place(tile), self.rules.width, self.rules.height)

    def is_standing_room(self, place: Tile) -> bool:
        """In the world, not blocked and not an animal's, as far as is known."""
        inside = 0 <= place[0] < self.rules.width and 0 <= place[1] < self.rules.height
        return inside and place not in self.walls and self.tile(place) not in self.animals


def read_scene(rules: SafariRules, symbols: np.ndarray, text: str) -> tuple[Scene, Notes | None]:
    """The scene, and the notes that the notepad holds (None if they are not the oracle's).

    The scene's notes are those that still hold: none in the first step, as a notepad from before the mission may be of
    another world, and no target that is found or seen to be gone.
    """
    context = read_context(text)
    written = read_notes(context.notepad, rules.width, rules.height)
    notes = written if written is not None and context.step > 1 else Notes()
    scene = Scene(rules, symbols, context, read_mission(context.mission), notes)
    seen = tuple((animal, place) for animal, place in notes.seen if _may_stand(scene, animal, place))
    return replace(scene, notes=replace(notes, seen=seen)), written


def _may_stand(scene: Scene, animal: Animal, place: Tile) -> bool:
    """Whether a noted target is still wanted and may still be there: out of view, under the player, or seen."""
    tile = scene.tile(place)
    return animal in scene.wanted and (tile in (None, scene.me) or scene.animals.get(tile) == animal)
