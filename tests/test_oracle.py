"""The oracle wins every world from what the agent sees, says what it does, and its data are its own decisions."""

import hashlib
import io
import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from source_rows import read_safari

from qwenvl_agent.json_input import Reject
from qwenvl_agent.schema import Picture, Request, Turn
from qwenvl_agent.worlds.recording import png_bytes
from qwenvl_agent.worlds.safari import NoisyOracle, RandomAgent, SafariEnv, SafariOracle, SafariRules
from qwenvl_agent.worlds.safari.baselines import random_move
from qwenvl_agent.worlds.safari.context import context_text
from qwenvl_agent.worlds.safari.judge import agrees
from qwenvl_agent.worlds.safari.notepad import Notes, read_notes, write_notes
from qwenvl_agent.worlds.safari.paths import actions_of, first_part, last_run, shortest_way
from qwenvl_agent.worlds.safari.render import animal_symbol, read_view, view_symbols
from qwenvl_agent.worlds.safari.scene import read_scene
from qwenvl_agent.worlds.safari.sweep import waypoint_goals, zone_place
from qwenvl_agent.worlds.safari.world import REPORT_SEEDS, VIEW, Animal, World, in_view, view_corner

SMALL = {"width": 20, "height": 20, "num_trees": 48, "num_animals": 10, "max_turns": 40, "tile_px": 16}
FULL = {"tile_px": 16}
TINY = {"max_path": 6, "max_final_path": 3}
HARD = {"num_targets": [1, 1, 1]}
RED_TIGER, BLUE_LION = Animal("red", "tiger"), Animal("blue", "lion")


def play(world: dict, seed: int, noise: float = 0.0, **settings):
    """Every (observation, turn) of an episode, with random moves between as `noise` asks, and the last info."""
    env, rng = SafariEnv(SafariRules.from_json(world)), random.Random(seed)
    oracle = SafariOracle(env.rules, **settings)
    observation, info = env.reset(seed=seed)
    steps = []
    while not info["end_reason"]:
        if rng.random() < noise:
            turn = Turn(tool_calls=[random_move(rng)])
        else:
            turn = oracle.turn(env.view(), observation.text)
            steps.append((observation, turn))
        observation, _, _, _, info = env.step(turn)
    return steps, info


def lost(world: dict, seeds, **settings) -> list[int]:
    return [seed for seed in seeds if not play(world, seed, **settings)[1]["success"]]


@pytest.mark.parametrize("rules", ["reach", "catch"])
@pytest.mark.parametrize(
    "settings",
    [{}, TINY, {**TINY, "waypoints": "borders"}, {**TINY, "waypoints": "regions", "thought_form": "looking"}],
)
def test_the_oracle_wins_every_small_world(rules, settings):
    assert lost({**SMALL, **HARD, "rules": rules}, REPORT_SEEDS[:25], **settings) == []


@pytest.mark.parametrize("rules", ["reach", "catch"])
def test_the_oracle_wins_full_worlds(rules):
    assert lost({**FULL, **HARD, "rules": rules}, REPORT_SEEDS[:2], **TINY) == []
    assert lost({**FULL, **HARD, "rules": rules}, REPORT_SEEDS[:2], **TINY, waypoints="regions") == []


@pytest.mark.slow
@pytest.mark.parametrize("rules", ["reach", "catch"])
@pytest.mark.parametrize("settings", [{}, TINY])
@pytest.mark.parametrize("world", [{**SMALL, "num_targets": [1]}, {**SMALL, **HARD}, {**FULL, **HARD}])
def test_the_oracle_wins_200_of_200_worlds(world, rules, settings):
    assert lost({**world, "rules": rules}, REPORT_SEEDS[:200], **settings) == []


def test_what_blocks_is_remembered_behind_a_long_detour():
    """Without its notes of walls the oracle walks to and fro in this world until the turns are used up."""
    steps, info = play({**SMALL, **HARD, "rules": "catch"}, 2_000_128)
    assert info["success"] and any("Walls" in observation.text for observation, _ in steps)


@pytest.mark.parametrize(("rules", "settings"), [("reach", TINY), ("catch", {})])
def test_decisions_follow_from_the_recorded_picture_and_context_alone(rules, settings):
    """Each turn again, by a fresh oracle, from a PNG file's bytes and the text, in another order of turns."""
    world = {**SMALL, **HARD, "rules": rules, "tile_px": 32}
    steps = [step for seed in range(4) for step in play(world, seed, noise=0.2, **settings)[0]]
    random.Random(0).shuffle(steps)
    for observation, turn in steps:
        with Image.open(io.BytesIO(png_bytes(observation.pictures[0].open()))) as picture:
            oracle = SafariOracle(SafariRules.from_json(world), **settings)
            assert oracle.turn(read_view(picture), observation.text) == turn


def test_what_is_out_of_view_changes_nothing():
    env = SafariEnv(SafariRules.from_json({**SMALL, **HARD}))
    oracle = SafariOracle(env.rules)
    for seed in range(20):
        observation, _ = env.reset(seed=seed)
        turn = oracle.turn_on(request(env, observation))
        corner = view_corner(env.player, 20, 20)
        env.world.trees = frozenset(tree for tree in env.world.trees if in_view(tree, corner))
        env.world.animals = {place: a for place, a in env.world.animals.items() if in_view(place, corner)}
        assert oracle.turn_on(request(env, env.observation())) == turn


def request(env, observation) -> Request:
    return Request(env.system_prompt, env.tools, (), observation)


def decide(
    animals, *, trees=(), player=(10, 10), mission="Find the red tiger.", step=2, notepad="", rules="reach", **more
):
    """(thought, {tool: arguments}) in a hand-made 20x20 world."""
    world = World(20, 20, frozenset(trees), animals, (10, 10))
    oracle = SafariOracle(SafariRules.from_json({**SMALL, "rules": rules}), **more)
    turn = oracle.turn(view_symbols(world, player), context_text(mission, step, 40, player, "", notepad))
    return turn.thought, {call.name: call.arguments for call in turn.tool_calls}


def moves(*actions) -> dict:
    return {"actions": [{"direction": direction, "steps": steps} for direction, steps in actions]}


def test_a_target_in_view_is_fetched_and_declared_in_one_turn():
    assert decide({(12, 8): RED_TIGER}) == (
        "Me f5. Target red tiger h3. Path g5 h5 h4 h3. Plan RIGHT 2 UP 2, found, done.",
        {"move": moves(("RIGHT", 2), ("UP", 2)), "declare_found": {"target": "red tiger"}, "declare_done": {}},
    )


def test_catching_stops_beside_the_target():
    assert decide({(12, 8): RED_TIGER}, rules="catch") == (
        "Me f5. Target red tiger h3. Path g5 h5 h4 h3. Plan RIGHT 2 UP 1, catch UP, found, done.",
        {
            "move": moves(("RIGHT", 2), ("UP", 1)),
            "catch": {"direction": "UP"},
            "declare_found": {"target": "red tiger"},
            "declare_done": {},
        },
    )
    thought, calls = decide({(11, 10): RED_TIGER}, rules="catch")
    assert thought == "Me f5. Target red tiger g5. Path g5. Plan catch RIGHT, found, done." and "move" not in calls


def test_a_short_final_path_is_walked_to_first():
    thought, calls = decide({(12, 8): RED_TIGER}, **TINY)
    assert thought == "Me f5. Target red tiger h3. Path g5 h5. Plan RIGHT 2."
    assert list(calls) == ["move"]
    thought, _ = decide({(12, 8): RED_TIGER}, player=(12, 10), **TINY)
    assert thought == "Me f5. Target red tiger f3. Path f4 f3. Plan UP 2, found, done."


def test_the_target_is_declared_in_the_missions_words():
    _, calls = decide({(12, 10): RED_TIGER}, mission="빨간 배경의 호랑이를 찾아줘")
    assert calls["declare_found"] == {"target": "빨간 배경의 호랑이"}


def test_a_target_out_of_view_is_searched_zone_by_zone():
    thought, calls = decide({}, step=1)
    assert thought == "Me f5. Target red tiger none. Zone a0, go a0. Path e5 d5 c5 b5 a5 a4 a3 a2 a1 a0. " \
        "Plan LEFT 3 LEFT 2 UP 3 UP 2."  # fmt: skip
    assert calls == {"update_notepad": {"content": "Map .. ..\nGo a0"}, "move": moves(("LEFT", 3), ("LEFT", 2), ("UP", 3), ("UP", 2))}  # fmt: skip
    thought, calls = decide({}, player=(5, 5), notepad="Map .. ..\nGo a0", **TINY)
    assert thought == "Me f5. Target red tiger none. Done a0. Zone b0, go j5. Path g5 h5 i5 j5. Plan RIGHT 3 RIGHT 1."
    assert calls["update_notepad"] == {"content": "Map V. ..\nGo b0"}


@pytest.mark.parametrize(
    ("player", "zone", "said"),
    [
        ((10, 10), "a0", "Me f5. Target red tiger none. Zone a0, go a0."),
        ((8, 14), "a0", "Me f5. Target red tiger none. Zone a0, go a0."),
        ((4, 14), "a0", "Me e5. Target red tiger none. Zone a0, go e0."),
        ((5, 4), "a0", "Me f4. Target red tiger none. Zone a0, go a4."),
        ((15, 16), "b1", "Me f6. Target red tiger none. Zone b1, go j6."),
        ((4, 4), "a0", "Me e4. Target red tiger none. Done a0. Zone b0, go j4."),
        ((16, 16), "b1", "Me g6. Target red tiger none. Done b1. Zone a1, go a6."),
    ],
)
def test_towards_borders_the_players_tile_alone_says_where_to_go(player, zone, said):
    notepad = f"Map .. ..\nGo {zone}"
    thought, _ = decide({}, player=player, notepad=notepad, waypoints="borders", max_path=4)
    assert thought.split(" Path")[0] == said


def test_zones_are_gone_to_in_a_round_that_the_last_one_tells():
    for swept, zone, following, player in (
        (". ..", "a0", "b0", (2, 2)),
        ("V. ..", "b0", "b1", (17, 2)),
        ("VV ..", "b1", "a1", (17, 17)),
        ("VV .V", "a1", "a0", (2, 17)),  # then a second round begins
        ("V. .V", "a1", "b0", (2, 17)),  # what was seen is left out
    ):
        notepad = f"Map {'.' * (swept == '. ..')}{swept}\nGo {zone}"
        thought, calls = decide({}, player=player, notepad=notepad, waypoints="borders")
        assert f" Done {zone}. Zone {following}, go " in thought
        assert f"\nGo {following}" in calls["update_notepad"]["content"]


def test_zones_inside_of_a_large_world_are_looked_at_from_their_centres():
    rules = SafariRules.from_json({**FULL, "num_trees": 0, "num_animals": 1})
    scene, _ = read_scene(
        rules,
        view_symbols(World(50, 50, frozenset(), {}, (25, 25)), (25, 25)),
        context_text("Find the red tiger.", 2, 40, (25, 25), "", "Map ..... ..... ..... ..... .....\nGo b4"),
    )
    assert zone_place(replace(scene, waypoints="borders")) == (15, 49)
    assert zone_place(scene) == (15, 45)


def test_a_region_is_left_as_soon_as_the_view_ends_with_its_zone():
    """Coming from above or from the left the first place of a region shows the whole zone; at the border it is told by
    the player's tile, which is off the view's middle."""
    rules = SafariRules.from_json({**FULL, "num_trees": 0, "num_animals": 1})

    def goals(zone: str) -> list:
        rows = " ".join(["....."] * 5)
        text = context_text("Find the red tiger.", 2, 40, (25, 25), "", f"Map {rows}\nGo {zone}")
        scene, _ = read_scene(rules, view_symbols(World(50, 50, frozenset(), {}, (25, 25)), (25, 25)), text)
        return waypoint_goals(replace(scene, waypoints="regions"))

    assert goals("b2") == [(x, y) for y in (25, 26, 27) for x in (15, 16, 17)]
    assert goals("a0") == [(x, y) for y in range(5) for x in range(5)]
    assert goals("e4") == [(x, y) for y in range(46, 50) for x in range(46, 50)]
    for places in (goals("a0"), goals("e4")):
        for place in places:
            corner = view_corner(place, 50, 50)
            assert all(at - edge != VIEW // 2 for at, edge in zip(place, corner, strict=True))


def test_the_zone_to_go_to_is_kept_without_writing():
    thought, calls = decide({}, player=(9, 5), notepad="Map V. ..\nGo b0")
    assert "Zone b0, go j5" in thought and list(calls) == ["move"]


def test_after_the_last_zone_another_sweep_begins_from_other_places():
    thought, calls = decide({}, player=(15, 15), notepad="Map VV V.\nGo b1")
    assert "Done b1. Zone b1, go" in thought
    assert calls["update_notepad"] == {"content": "Map .. ..\nGo b1\nSweep 1"}


def test_a_target_that_will_be_out_of_view_is_noted_and_gone_back_to():
    ordered = "Find first the red tiger, then the blue lion."
    _, calls = decide({(6, 6): BLUE_LION, (14, 10): RED_TIGER}, mission=ordered)
    assert calls["update_notepad"] == {"content": "Seen blue lion (6, 6)"}
    assert calls["declare_found"] == {"target": "red tiger"} and "declare_done" not in calls
    thought, calls = decide({}, mission="Find the blue lion.", player=(14, 10), notepad="Seen blue lion (6, 6)")
    assert "Target blue lion none. Known (6, 6), go a1." in thought and list(calls) == ["move"]
    thought, calls = decide({}, mission="Find the blue lion.", notepad="Seen blue lion (6, 6)")
    assert "Zone a0" in thought and "Seen" not in calls["update_notepad"]["content"]


def test_what_stands_under_the_disc_is_stepped_off_to_look():
    thought, _ = decide({(10, 10): RED_TIGER}, notepad="Map .. ..\nGo a0")
    assert thought == "Me f5. Target red tiger none. Path g5. Plan RIGHT 1."
    assert "Zone a0" in decide({(10, 10): BLUE_LION}, notepad="Map .. ..\nGo a0")[0]


def test_a_walk_does_not_stop_on_an_animal():
    assert "Path e5 d5 c5 b5 a5 a4. Plan" in decide({}, **TINY)[0]
    assert "Path e5 d5 c5 b5 a5. Plan" in decide({(5, 9): BLUE_LION}, **TINY)[0]
    looking = {**TINY, "thought_form": "looking"}
    over = "Path LEFT e5 free LEFT d5 free LEFT c5 free LEFT b5 free LEFT a5 free UP a4 "
    assert f"{over}blue lion. Plan" in decide({(5, 9): BLUE_LION}, **looking)[0]  # no target: it may be hidden
    wanted = decide({(5, 9): BLUE_LION}, mission="Find first the red tiger, then the blue lion.", **looking)[0]
    assert f"{over}blue" not in wanted and f"{over.removesuffix(' UP a4 ')}. Plan" in wanted


def test_a_zone_whose_waypoint_is_blocked_is_seen_whole_from_beside():
    notepad = "Map .. ..\nGo a0"
    assert "Done" not in decide({}, trees=[(5, 5)], player=(6, 6), notepad=notepad)[0]
    assert "Done a0" in decide({}, trees=[(5, 5)], player=(4, 5), notepad=notepad)[0]


def test_world_form_names_places():
    assert decide({(12, 8): RED_TIGER}, thought_form="world")[0] == (
        "At (10, 10). Target red tiger (12, 8). Path (11, 10) (12, 10) (12, 9) (12, 8). Plan RIGHT 2 UP 2, found, done."
    )


def test_looking_form_says_what_stands_on_each_tile_of_the_way():
    animals = {(12, 8): RED_TIGER, (12, 10): BLUE_LION}
    assert decide(animals, thought_form="looking")[0] == (
        "Me f5. Target red tiger h3. Path RIGHT g5 free RIGHT h5 blue lion UP h4 free UP h3 red tiger target. "
        "Plan RIGHT 2 UP 2, found, done."
    )
    first = "Find first the red tiger, then the blue lion."
    assert decide({(10, 8): RED_TIGER}, mission=first, thought_form="looking")[0] == (
        "Me f5. Target red tiger f3. Path UP f4 free UP f3 red tiger target. Plan UP 2, found."
    )
    plain, calls = decide({}, trees={(9, 10)}, max_path=2)
    thought, same = decide({}, trees={(9, 10)}, max_path=2, thought_form="looking")
    assert (thought, calls) == (plain.replace("Path f4 f3.", "Path UP f4 free UP f3 free."), same) and thought != plain


def test_a_false_start_is_a_straight_way_up_to_what_blocks():
    trees, looking = {(11, 10), (10, 8)}, {"thought_form": "looking", "max_path": 4, "max_final_path": 4}
    shown = {
        decide({(12, 8): RED_TIGER}, trees=trees, step=step, false_starts=1.0, **looking)[0] for step in range(1, 9)
    }
    row, column = "Path RIGHT g5 tree. ", "Path UP f4 free UP f3 tree. "
    rest = "Path UP f4 free RIGHT g4 free RIGHT h4 free UP h3 red tiger target. Plan UP 1 RIGHT 2 UP 1, found, done."
    start = "Me f5. Target red tiger h3. "
    assert shown == {start + row + rest, start + column + rest}  # one at most: which were said is hard to keep
    assert decide({(12, 8): RED_TIGER}, trees=trees, **looking)[0] == start + rest
    free = decide({(12, 8): RED_TIGER}, false_starts=1.0, **looking)[0]
    assert free == (
        f"{start}Path RIGHT g5 free RIGHT h5 free UP h4 free UP h3 red tiger target. Plan RIGHT 2 UP 2, found, done."
    )
    short = decide({(12, 8): RED_TIGER}, trees={(12, 9)}, false_starts=1.0, **{**looking, "max_path": 2})[0]
    assert "tree" not in short  # what blocks is further away than one turn walks


def test_the_target_that_is_caught_is_no_false_start():
    thought = decide({(12, 10): RED_TIGER}, rules="catch", thought_form="looking", false_starts=1.0)[0]
    assert thought == (
        "Me f5. Target red tiger h5. Path RIGHT g5 free RIGHT h5 red tiger target. Plan RIGHT 1, catch RIGHT, found, done."
    )


def test_false_starts_are_refused_where_nothing_is_looked_at():
    for false_starts, form in ((0.5, "tiles"), (1.5, "looking"), (-0.1, "looking")):
        with pytest.raises(ValueError, match=rf"false_starts {false_starts} with thought_form '{form}'.*use 0 to 1"):
            SafariOracle(SafariRules(), thought_form=form, false_starts=false_starts)


def test_a_notepad_from_before_the_mission_is_replaced():
    _, calls = decide({}, step=1, notepad="Map VV VV\nGo b1")
    assert calls["update_notepad"] == {"content": "Map .. ..\nGo a0"}


@pytest.mark.parametrize(
    "notepad",
    [
        "hello",
        "Go z99",
        "Map VVVVV",
        "Map .. ..\nGo c0",
        "Walls (99, 99)",
        "Sweep -1",
        "Seen red cow (1, 1)",
        "x " * 900,
    ],
)
def test_a_notepad_by_someone_else_is_replaced(notepad):
    assert decide({}, notepad=notepad) == decide({}, notepad=notepad, step=1)
    assert decide({}, notepad=notepad)[1]["update_notepad"] == {"content": "Map .. ..\nGo a0"}


def test_notes_are_read_as_they_were_written():
    rng = random.Random(0)
    for _ in range(200):
        zones = [(x, y) for x in range(5) for y in range(4)]
        notes = Notes(
            swept=frozenset(rng.sample(zones, rng.randint(0, 20))),
            go=rng.choice(zones),
            sweep=rng.choice((0, 1, 12)),
            seen=tuple(rng.sample([(RED_TIGER, (0, 7)), (BLUE_LION, (49, 31))], rng.randint(0, 2))),
            walls=tuple((rng.randrange(50), rng.randrange(40)) for _ in range(rng.randint(0, 3))),
        )
        assert read_notes(write_notes(notes, 50, 40), 50, 40) == notes
    assert read_notes("", 50, 40) == Notes()


def test_thoughts_announce_exactly_what_the_calls_do():
    for rules, settings in (
        ("reach", TINY),
        ("catch", {}),
        ("catch", {"thought_form": "world"}),
        ("reach", {"thought_form": "looking", "max_path": 4, "max_final_path": 4, "false_starts": 0.5}),
        ("catch", {"thought_form": "looking", "false_starts": 0.5}),
    ):
        for seed in range(6):
            steps, _ = play({**SMALL, **HARD, "rules": rules}, seed, noise=0.2, **settings)
            for _, turn in steps:
                calls = [{"name": call.name, "arguments": call.arguments} for call in turn.tool_calls]
                assert agrees(turn.thought, calls) is True, (turn.thought, calls)


def test_no_turn_ends_on_a_target_without_declaring_it():
    env = SafariEnv(SafariRules.from_json({**SMALL, **HARD}))
    oracle = SafariOracle(env.rules, **TINY)
    for seed in range(15):
        observation, info = env.reset(seed=seed)
        while not info["end_reason"]:
            wanted = env.wanted()
            turn = oracle.turn(env.view(), observation.text)
            observation, _, _, _, info = env.step(turn)
            has_declared = any(call.name == "declare_found" for call in turn.tool_calls)
            assert has_declared or env.world.animals.get(env.player) not in wanted


@pytest.mark.parametrize(
    ("start", "goal", "blocked", "way"),
    [
        ((5, 5), (7, 3), (), ["g5", "h5", "h4", "h3"]),
        ((5, 5), (7, 3), ["g5"], ["f4", "f3", "g3", "h3"]),
        ((0, 0), (0, 2), ["a1"], ["b0", "b1", "b2", "a2"]),
        ((0, 0), (1, 1), ["b1"], ["b0", "b1"]),
        ((0, 0), (3, 3), ["a1", "b0"], None),
    ],
)
def test_shortest_ways_turn_as_seldom_as_they_can(start, goal, blocked, way):
    found = shortest_way(start, goal, frozenset(tile(name) for name in blocked))
    assert found == (way and [tile(name) for name in way])


def tile(name: str) -> tuple[int, int]:
    return ord(name[0]) - ord("a"), int(name[1:])


def test_a_move_walks_at_most_four_actions_of_three_steps():
    straight = [(column, 0) for column in range(1, 10)]
    assert actions_of((0, 0), straight[:4]) == [("RIGHT", 3), ("RIGHT", 1)]
    zigzag = [(1, 0), (1, 1), (2, 1), (2, 2), (3, 2), (3, 3)]
    assert first_part((0, 0), zigzag, 12) == zigzag[:4]
    assert first_part((0, 0), straight, 6) == straight[:6]
    assert (last_run((0, 0), straight), last_run((0, 0), zigzag)) == (9, 1)


def test_a_noisy_oracle_is_late_but_never_wrong():
    env = SafariEnv(SafariRules.from_json({**SMALL, "num_targets": [1]}))
    policy = NoisyOracle(SafariOracle(env.rules), noise=0.3)
    num_turns = {"noisy": 0, "oracle": 0}
    for seed in range(12):
        num_turns["oracle"] += len(play({**SMALL, "num_targets": [1]}, seed)[0])
        observation, info = env.reset(seed=seed)
        while not info["end_reason"]:
            (answer,) = policy.act([request(env, observation)])
            assert policy.act([request(env, observation)]) == [answer]
            observation, _, _, _, info = env.step(answer.turn)
            num_turns["noisy"] += 1
        assert info["success"]
    assert num_turns["noisy"] > num_turns["oracle"]


@pytest.mark.parametrize("rules", ["reach", "catch"])
def test_a_random_agent_makes_legal_calls_and_hardly_wins(rules):
    env = SafariEnv(SafariRules.from_json({**SMALL, "rules": rules}))
    policy, wins = RandomAgent(env.rules), 0
    for seed in range(12):
        observation, info = env.reset(seed=seed)
        while not info["end_reason"]:
            (answer,) = policy.act([request(env, observation)])
            observation, _, _, _, info = env.step(answer.turn)
        assert info["invalid_calls"] == 0
        wins += info["success"]
    assert wins <= 2


def test_settings_that_no_turn_could_follow_are_refused():
    with pytest.raises(ValueError, match="max_path 13"):
        SafariOracle(SafariRules(), max_path=13)
    with pytest.raises(ValueError, match="thought form 'prose' does not exist"):
        SafariOracle(SafariRules(), thought_form="prose")
    with pytest.raises(ValueError, match="use centres, borders, regions"):
        SafariOracle(SafariRules(), waypoints="edges")


def generate(folder: Path, *args: str) -> subprocess.CompletedProcess:
    script = Path(__file__).parents[1] / "scripts" / "generate_oracle.py"
    rules = [f"--rules={json.dumps({**SMALL, **HARD})}"]
    command = [sys.executable, str(script), f"--out={folder}", "--json", *rules, *args]
    return subprocess.run(command, capture_output=True, text=True)


def test_generated_data_are_the_oracles_decisions(tmp_path):
    done = generate(
        tmp_path, "--episodes=4", "--noise=0.3", "--oracle=max_path=6", "--oracle=max_final_path=3", "--seed-start=7"
    )
    manifest = json.loads(done.stdout)
    assert manifest == json.loads((tmp_path / "manifest.json").read_text())
    assert (manifest["episodes"], manifest["solved"], manifest["seeds"], manifest["seed_set"]) == (
        4,
        4,
        [7, 10],
        "training",
    )
    assert manifest["sha256"] == hashlib.sha256((tmp_path / "dataset.jsonl").read_bytes()).hexdigest()
    oracle = SafariOracle(SafariRules.from_json(manifest["rules"]), **manifest["oracle"])
    rows = read_safari(tmp_path)
    assert len(rows) == manifest["rows"] and not any(isinstance(row, Reject) for row in rows)
    for row in rows:
        assert isinstance(row.step.observation.pictures[0], Picture) and not row.thought_derived
        assert oracle.turn_on(Request("", row.tools, (), row.step.observation)) == row.step.turn
    # random moves lie between the turns of an episode
    turns = [row.turn_index for row in rows if row.episode_id == rows[-1].episode_id]
    assert turns == sorted(turns) and len(turns) < turns[-1] + 1


def test_generated_questions_have_exact_answers(tmp_path):
    generate(tmp_path, "--episodes=8", "--task=perception", '--set=languages=["en"]')
    kinds = set()
    for row in read_safari(tmp_path):
        symbols = read_view(row.step.observation.pictures[0].open())
        (call,) = row.step.turn.tool_calls
        words, answer = row.mission.rstrip(".").split(), call.arguments["content"]
        shown = {name_of(column, r): int(symbols[r, column]) for r, column in np.ndindex(10, 10)}
        if "all" in words:
            parts = [part.rsplit(" ", 1) for part in answer.split(", ")] if answer != "none" else []
            assert {name: animal_symbol(Animal(*animal.split())) for animal, name in parts} == {
                name: symbol for name, symbol in shown.items() if 2 <= symbol < 66
            }
        elif "what" in words:
            name, _, content = answer.partition(" ")
            assert name == words[-1] and row.step.turn.thought.endswith(f"Tile {answer}.")
            expected = {"free": 0, "tree": 1}.get(content, 66)
            symbol = animal_symbol(Animal(*content.split())) if " " in content else expected
            assert shown[name] == symbol or (content == "me" and shown[name] >= 66)
        else:
            colour, kind, *names = answer.split()
            symbol = animal_symbol(Animal(colour, kind))
            assert [n for n in names if n != "none"] == [name for name, s in shown.items() if s == symbol]
            kinds.add("none" in names)
        kinds.add(words[-1] if "all" in words else words[2])
    assert kinds == {"animals", "what", "where", True, False}


def name_of(column: int, row: int) -> str:
    return f"{'abcdefghij'[column]}{row}"


def test_data_are_not_lost_and_seed_sets_not_mixed(tmp_path):
    (tmp_path / "dataset.jsonl").write_text("mine")
    assert "would be lost" in generate(tmp_path, "--episodes=1").stderr
    assert (tmp_path / "dataset.jsonl").read_text() == "mine"
    assert "not all of one seed set" in generate(tmp_path / "new", "--episodes=2", "--seed-start=999999").stderr
