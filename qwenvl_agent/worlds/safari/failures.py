"""How a mission was lost, from its record alone: each lost mission has one class.

A seed and the rules are the world, so a record is played again, without a model and without pictures, to see where the
targets were. A record that does not fit its world (of other rules, of another version) is told as far as it tells itself.
"""

import re
from collections.abc import Sequence

from qwenvl_agent.records import EpisodeRecord, StepRecord
from qwenvl_agent.schema import ToolCall
from qwenvl_agent.worlds.safari.env import SafariEnv
from qwenvl_agent.worlds.safari.missions import resolve_target
from qwenvl_agent.worlds.safari.states import current_targets
from qwenvl_agent.worlds.safari.world import Animal, SafariRules, Tile, in_view, view_corner, walk

LAST_TURNS = 10
STILL_TURNS = 3
"""So many turns in a row that change nothing are a stand-still: one blocked walk is a mistake, three are a habit."""
FALSE = {
    "false_after_block": "declared what was not reached: the walk was blocked",
    "false_beside": "declared what stood beside, and was not stepped on or caught",
    "false_2_tiles": "declared from 2 tiles away, too early",
    "false_3_tiles": "declared from 3 tiles away, too early",
    "false_4_tiles_up": "declared from 4 tiles away or more, too early",
    "false_out_of_view": "declared what was not in view",
    "false_out_of_turn": "declared before its turn in the order",
    "false_again": "declared a second time",
    "false_other": "declared what was not asked for",
}
"""Missions with a false declaration, by the first of them; tiles are those to the nearest such animal when the turn began."""
OUTCOMES = {
    **FALSE,
    "done_harm": "declared something falsely",
    "stands_blocked": f"out of turns: the last {LAST_TURNS} on one tile, walking into what blocks",
    "stands_still": f"out of turns: the last {LAST_TURNS} on one tile",
    "target_in_view": "out of turns: walked about with a target in view",
    "to_and_fro": f"out of turns: far from a target, the last {LAST_TURNS} on at most half as many tiles",
    "walks_about": "out of turns: far from a target, on ever new tiles",
}
POSITION = re.compile(r"^Position: (\(.*\))$", re.MULTILINE)


def false_declaration(rules: SafariRules, record: EpisodeRecord) -> str:
    """The key of FALSE of a mission's first false declaration; done_harm if it cannot be played again."""
    env = start_again(rules, record)
    if env is None:
        return "done_harm"
    for step in record.steps:
        if not is_where(env, step):
            break
        start, is_blocked = env.player, False
        for call in step.calls:
            num_false = len(env.false_declarations)
            result, _, _ = env.run_call(ToolCall(call.name, call.arguments))
            is_blocked |= result.get("blocked") is True
            if len(env.false_declarations) > num_false:
                return class_of(env, str(call.arguments["target"]), start, is_blocked)
    return "done_harm"


def class_of(env: SafariEnv, declared: str, start: Tile, is_blocked: bool) -> str:
    """Of a false declaration that was just made, in a turn that began on `start`."""
    animal = resolve_target(declared)
    if animal is None or animal not in env.mission.targets:
        return "false_other"
    if animal not in current_targets(env):
        return "false_again" if animal in env.found else "false_out_of_turn"
    places = places_of(env, [animal])
    if not any(in_view(place, view_of(env, start)) for place in places):
        return "false_out_of_view"
    if is_blocked:
        return "false_after_block"
    distance = min(walk(start, place) for place in places)
    return {0: "false_beside", 1: "false_beside", 2: "false_2_tiles", 3: "false_3_tiles"}.get(
        distance, "false_4_tiles_up"
    )


def way_lost(rules: SafariRules, record: EpisodeRecord) -> str:
    """How a mission ran out of turns; max_turns if its last contexts are not the safari's."""
    last = record.steps[-LAST_TURNS:]
    places = [POSITION.findall(step.context) for step in last]
    if not all(places):
        return "max_turns"
    num_places = len({found[0] for found in places})
    if num_places == 1:
        return "stands_blocked" if 2 * sum(map(is_blocked_turn, last)) > len(last) else "stands_still"
    if ends_in_view(rules, record):
        return "target_in_view"
    return "to_and_fro" if num_places <= LAST_TURNS // 2 else "walks_about"


def is_blocked_turn(step: StepRecord) -> bool:
    return any(result["content"].get("blocked") is True for result in step.results)


def ends_in_view(rules: SafariRules, record: EpisodeRecord) -> bool:
    """Whether a target that may be fetched is in view in the last turn; False if that cannot be known."""
    env = start_again(rules, record)
    if env is None:
        return False
    for call in (call for step in record.steps[:-1] for call in step.calls):
        env.run_call(ToolCall(call.name, call.arguments))
    corner = view_of(env, env.player)
    goals = places_of(env, current_targets(env))
    return is_where(env, record.steps[-1]) and any(in_view(place, corner) for place in goals)


def start_again(rules: SafariRules, record: EpisodeRecord) -> SafariEnv | None:
    """The game of a record's seed; None if the record is of another."""
    env = SafariEnv(rules)
    env.reset(seed=record.seed)
    is_same = env.mission.text == record.mission and [target.name for target in env.mission.targets] == record.goals
    return env if is_same else None


def is_where(env: SafariEnv, step: StepRecord) -> bool:
    """Whether the player stands where a turn's context says."""
    return POSITION.findall(step.context) == [str(env.player)]


def places_of(env: SafariEnv, animals: Sequence[Animal]) -> list[Tile]:
    return [place for place, animal in env.world.animals.items() if animal in animals]


def view_of(env: SafariEnv, player: Tile) -> Tile:
    return view_corner(player, env.rules.width, env.rules.height)


def has_stand_still(record: EpisodeRecord) -> bool:
    """Whether STILL_TURNS turns in a row changed nothing but the notepad."""
    num_still = 0
    for step in record.steps:
        is_still = not any(call.effective for call in step.calls if call.name != "update_notepad")
        num_still = num_still + 1 if is_still else 0
        if num_still == STILL_TURNS:
            return True
    return False
