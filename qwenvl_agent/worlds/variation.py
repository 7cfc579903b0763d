"""What differs from episode to episode of a recording: distributions over a world's rules, drawn from an episode's seed.

    width=15..30                                        a whole number from 15 to 30 (0.0..0.3: any number)
    tile_px=16,24,32                                    one of these
    sprites={"noto": 3, "twemoji": 1}                   the same, three times as often the first
    languages=[["ko"], ["en", "zh"]]                    one of a JSON list's values
    width+height+num_trees=[[15, 15, 27], [30, 30, 108]]    rules that are drawn together

A rule's draws are the same whatever else is varied.
"""

import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qwenvl_agent.config import VisionConfig
from qwenvl_agent.settings import nearest, parse, read_values
from qwenvl_agent.vision import tokens_a_tile
from qwenvl_agent.worlds.registry import make_world
from qwenvl_agent.worlds.world import World

RANGE = re.compile(r"(-?\d+(?:\.\d+)?)\.\.(-?\d+(?:\.\d+)?)")
MAX_COUNTED = 40
"""Values of a rule that are counted one by one; more, and any number of a span, are counted by tenths of what they span."""
TOGETHER = "+"


@dataclass(frozen=True)
class Variation:
    """Rules that are drawn together, and what from: `values` with `weights` (none: all alike), or any number of `span`."""

    rules: tuple[str, ...]
    values: Sequence[object] = ()
    weights: tuple[float, ...] | None = None
    span: tuple[float, float] | None = None

    @property
    def name(self) -> str:
        return TOGETHER.join(self.rules)

    def draw(self, seed: int) -> object:
        """The value of an episode, a list of several rules'."""
        rng = random.Random(f"vary {self.name} {seed}")
        return rng.uniform(*self.span) if self.span else rng.choices(self.values, self.weights)[0]

    def rules_of(self, value: object) -> dict[str, object]:
        if len(self.rules) == 1:
            return {self.rules[0]: value}
        assert isinstance(value, list), value
        return dict(zip(self.rules, value, strict=True))

    def to_json(self) -> object:
        """In the form that is read."""
        if self.span:
            return f"{self.span[0]}..{self.span[1]}"
        if isinstance(self.values, range):
            return f"{self.values[0]}..{self.values[-1]}"
        if self.weights is None:
            return list(self.values)
        return {label(value): weight for value, weight in zip(self.values, self.weights, strict=True)}

    def count(self, values: Iterable) -> dict[str, int]:
        """How often each was drawn, in the order in which they are declared."""
        limits = self.span
        if isinstance(self.values, range) and len(self.values) > MAX_COUNTED:
            limits = (self.values[0], self.values[-1])
        if limits is None:
            counts = Counter(map(label, values))
            return {label(value): counts[label(value)] for value in self.values}
        least, most = limits
        edges = [least + (most - least) * tenth / 10 for tenth in range(11)]
        tenths = Counter(min(9, int(10 * (value - least) / (most - least))) for value in values)
        return {f"{edges[i]:g}..{edges[i + 1]:g}": tenths[i] for i in range(10)}


def label(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def read_variations(options: Sequence[str]) -> tuple[Variation, ...]:
    """Of `RULE=DISTRIBUTION` each, or the path of a JSON file {RULE: DISTRIBUTION}; ValueError for what is neither."""
    found: list[Variation] = []
    for option in options:
        rule, equals, text = option.partition("=")
        if not equals and not option.endswith(".json"):
            raise ValueError(
                f"--vary {option!r} has no '=': nothing would vary; write RULE=15..30, RULE=a,b,c or name a .json file"
            )
        declared = {rule.strip(): _value(text)} if equals else read_values(Path(option), what="file of distributions")
        found += [read_variation(name, value) for name, value in declared.items()]
    rules = [rule for variation in found for rule in variation.rules]
    for rule in rules:
        if rules.count(rule) > 1:
            raise ValueError(f"--vary {rule} is given twice: one would be lost; vary it once")
    return tuple(found)


def read_variation(name: str, value: object) -> Variation:
    """What a declaration of one rule, or of several `a+b`, says."""
    rules = tuple(name.split(TOGETHER))
    bounds = RANGE.fullmatch(value.strip()) if isinstance(value, str) else None
    if bounds:
        return _range(rules, bounds[1], bounds[2])
    if isinstance(value, Mapping):
        values, weights = [_value(key) for key in value], tuple(value.values())
        good = all(isinstance(w, int | float) and not isinstance(w, bool) and w >= 0 for w in weights)
        if not good or not any(weights):
            raise ValueError(f"--vary {name}: weights {list(weights)} cannot be drawn by; write numbers above 0")
    else:
        values = [_value(part) for part in value.split(",")] if isinstance(value, str) else _listed(value)
        weights = None
    if not values or (len(rules) > 1 and any(not isinstance(v, list) or len(v) != len(rules) for v in values)):
        wanted = (
            f"lists of {len(rules)} values, one for each of {', '.join(rules)}" if len(rules) > 1 else "some values"
        )
        raise ValueError(f"--vary {name}={label(value)}: nothing can be drawn from it; write {wanted}")
    return Variation(rules, values, weights)


def _range(rules: tuple[str, ...], least: str, most: str) -> Variation:
    name = TOGETHER.join(rules)
    if len(rules) > 1:
        raise ValueError(f"--vary {name}={least}..{most}: a range is of one rule; write a list of lists")
    if float(least) >= float(most):
        raise ValueError(
            f"--vary {name}={least}..{most}: no range, nothing could be drawn; write the lesser number first"
        )
    if "." in least + most:
        return Variation(rules, span=(float(least), float(most)))
    return Variation(rules, range(int(least), int(most) + 1))


def _value(text: str) -> object:
    """JSON, or a text if it is none."""
    try:
        return parse(text)
    except json.JSONDecodeError:
        return text.strip()


def _listed(value: object) -> list:
    return list(value) if isinstance(value, list) else [value]


def draw_rules(variations: Iterable[Variation], seed: int) -> dict[str, object]:
    """The varied rules of an episode."""
    return {rule: v for variation in variations for rule, v in variation.rules_of(variation.draw(seed)).items()}


def check_variations(
    variations: tuple[Variation, ...],
    name: str,
    rules: Mapping[str, object],
    seeds: Iterable[int],
    fixed: Iterable[str] = (),
    vision: VisionConfig | None = None,
) -> None:
    """ValueError, before anything is recorded, for a rule that the world of that name does not have or that is also
    `fixed`, for an episode's rules that the world refuses, and for a board whose tiles `vision` would cut."""
    known: set[str] = set()
    for seed in seeds if variations else ():
        own = draw_rules(variations, seed)
        if (key := json.dumps(own)) in known:
            continue
        try:
            world = make_world(name, {**rules, **own})
            if vision:
                check_tiles(world, vision)
        except ValueError as error:
            raise ValueError(f"{error} (--vary draws {key} for seed {seed})") from None
        if not known:
            check_names(variations, world.rules, fixed)
        known.add(key)


def check_names(variations: Iterable[Variation], rules: Mapping[str, object], fixed: Iterable[str]) -> None:
    for rule in (rule for variation in variations for rule in variation.rules):
        if rule in fixed:
            raise ValueError(f"--vary {rule}: it is set too, and one of both would be lost; leave one out")
        if rule not in rules:
            raise ValueError(
                f"--vary {rule}: the world has no such rule, so nothing would vary; {nearest(rule, list(rules))}"
            )


def check_tiles(world: World, vision: VisionConfig) -> None:
    """ValueError unless the tiles of the world's pictures are whole tokens for the model."""
    if world.board is None:
        return
    tiles, tile_px = world.board
    tokens = tokens_a_tile(tiles, tile_px, vision)
    if tokens % 1:
        raise ValueError(
            f"a tile of {tile_px} px would be {tokens:g} tokens wide at vision.tiles={vision.tiles}: tokens would cut tiles; "
            f"set vision.tiles={tiles} in the config, or draw other sizes"
        )


def varied_manifest(variations: tuple[Variation, ...], rules: Mapping[str, object], seeds: Sequence[int]) -> dict:
    """What a manifest says of varied episodes: `rules` without those that vary, what was declared, and how often each value
    was drawn; nothing if none vary."""
    if not variations:
        return {}
    varied = {rule for variation in variations for rule in variation.rules}
    return {
        "rules": {rule: value for rule, value in rules.items() if rule not in varied},
        "vary": {variation.name: variation.to_json() for variation in variations},
        "varied": {v.name: v.count([v.draw(seed) for seed in seeds]) for v in variations},
    }
