"""The rules of the safari: what calls do, what is recorded, when a mission succeeds, what worlds are like."""

import random

import pytest

from qwenvl_agent.schema import ToolCall, Turn
from qwenvl_agent.worlds import make_env, make_oracle
from qwenvl_agent.worlds.safari import SafariEnv, SafariOracle, SafariRules
from qwenvl_agent.worlds.safari.baselines import random_move
from qwenvl_agent.worlds.safari.context import context_text, read_context
from qwenvl_agent.worlds.safari.env import estimate_turns
from qwenvl_agent.worlds.safari.missions import Mission
from qwenvl_agent.worlds.safari.perception import perception_rows
from qwenvl_agent.worlds.safari.thoughts import thought_form_named
from qwenvl_agent.worlds.safari.world import (
    COLOURS,
    KINDS,
    REPORT_SEEDS,
    SELECTION_SEEDS,
    TRAIN_SEEDS,
    Animal,
    World,
    distances,
    draw_task,
    in_view,
    neighbours,
    view_corner,
    walk,
)

SMALL = {"width": 20, "height": 20, "num_trees": 48, "num_animals": 10, "max_turns": 40, "tile_px": 16}
RED_TIGER, BLUE_LION = Animal("red", "tiger"), Animal("blue", "lion")
# The player starts at (10, 10): a tree above, a red tiger two to the right, a blue lion one below.
TREE, TIGER, LION = (10, 9), (12, 10), (10, 11)


def park(rules="reach", ordered=False, **more) -> SafariEnv:
    """A hand-made world with the mission to find the red tiger and the blue lion."""
    env = SafariEnv(SafariRules.from_json({**SMALL, "rules": rules, **more}))
    env.reset(seed=0)
    env.world = World(20, 20, frozenset({TREE}), {TIGER: RED_TIGER, LION: BLUE_LION}, (10, 10))
    env.mission = Mission(
        "Find the red tiger and the blue lion.", (RED_TIGER, BLUE_LION), ("red tiger", "blue lion"), ordered
    )
    return env


def move(*actions) -> ToolCall:
    return ToolCall("move", {"actions": [{"direction": direction, "steps": steps} for direction, steps in actions]})


def catch(direction) -> ToolCall:
    return ToolCall("catch", {"direction": direction})


def found(target) -> ToolCall:
    return ToolCall("declare_found", {"target": target})


DONE = ToolCall("declare_done", {})


def play(env, *turns):
    """Run turns of calls; returns the last info, and every result's content."""
    contents = []
    for calls in turns:
        _, _, _, _, info = env.step(Turn(tool_calls=calls))
        contents += [result.content for result in info["results"]]
    return info, contents


def moved(steps, blocked, x, y) -> dict:
    return {"moved": steps > 0, "actualSteps": steps, "blocked": blocked, "pos": {"x": x, "y": y}}


@pytest.mark.parametrize(
    ("rules", "actions", "result"),
    [
        ("reach", [("RIGHT", 3)], moved(3, False, 13, 10)),
        ("reach", [("RIGHT", 2), ("DOWN", 1)], moved(1, False, 12, 11)),
        ("reach", [("UP", 1), ("RIGHT", 1)], moved(0, True, 10, 10)),
        ("reach", [("LEFT", 3), ("LEFT", 3), ("LEFT", 3), ("LEFT", 3)], moved(1, True, 0, 10)),
        ("catch", [("RIGHT", 3), ("UP", 1)], moved(1, True, 11, 10)),
        ("catch", [("DOWN", 1)], moved(0, True, 10, 10)),
    ],
)
def test_a_move_runs_its_actions_until_the_first_block(rules, actions, result):
    assert play(park(rules), [move(*actions)])[1] == [result]


def test_catching_takes_the_animal_off_the_map():
    env = park("catch")
    info, contents = play(env, [catch("DOWN"), catch("DOWN"), catch("UP")])
    assert contents == [
        {"success": True, "animal": {"emoji": "\U0001f981", "bgColor": "#0000FF"}, "position": {"x": 10, "y": 11}},
        {"success": False, "reason": "no_animal"},
        {"success": False, "reason": "no_animal"},
    ]
    assert LION not in env.world.animals
    assert [call["effective"] for call in info["calls"]] == [True, False, False]
    env.player = (0, 10)
    assert play(env, [catch("LEFT")])[1] == [{"success": False, "reason": "out_of_bounds"}]


def test_the_other_tools_results():
    info, contents = play(park(), [ToolCall("update_notepad", {"content": "x"}), found("red tiger"), DONE])
    assert contents == [
        {"status": "updated"},
        {"status": "found", "target": "red tiger", "total": 1},
        {"status": "done"},
    ]
    assert [result.name for result in info["results"]] == ["update_notepad", "declare_found", "declare_done"]


@pytest.mark.parametrize(
    "call",
    [
        ToolCall("move", {}),
        ToolCall("move", {"actions": []}),
        ToolCall("move", {"actions": [{"direction": "UP", "steps": 4}]}),
        ToolCall("move", {"actions": [{"direction": "up", "steps": 1}]}),
        ToolCall("move", {"actions": [{"direction": "LEFT", "steps": True}]}),
        ToolCall("move", {"actions": [{"direction": "LEFT", "steps": 1}] * 5}),
        ToolCall("move", {"actions": [{"direction": "LEFT", "steps": 1}], "fast": True}),
        ToolCall("update_notepad", {"content": "x" * 2001}),
        ToolCall("declare_found", {"target": "x" * 201}),
        ToolCall("declare_done", {"reason": "x" * 241}),
        ToolCall("catch", {"direction": "DOWN"}),
        ToolCall("fly", {"height": 3}),
    ],
)
def test_a_call_that_does_not_fit_is_counted_and_changes_nothing(call):
    env = park()
    before = (env.player, env.notepad, env.declared, env.end_reason)
    info, (content,) = play(env, [call])
    assert content["status"] == ("unknown_tool" if call.name in ("fly", "catch") else "invalid_arguments")
    assert (env.player, env.notepad, env.declared, env.end_reason) == before
    assert info["invalid_calls"] == 1
    assert info["calls"] == [{"name": call.name, "legal": False, "effective": False}]


def test_a_turn_without_a_call_takes_a_turn():
    observation, reward, terminated, truncated, info = park().step(Turn())
    assert [result.content for result in info["results"]] == [{"status": "no_tool_call"}]
    assert "Step: 2/40\n" in observation.text and (reward, terminated, truncated) == (0.0, False, False)


TO_TIGER, TO_LION = move(("RIGHT", 2)), move(("LEFT", 2), ("DOWN", 1))


@pytest.mark.parametrize(
    ("rules", "ordered", "turns", "names", "false", "success"),
    [
        ("reach", False, [[TO_TIGER, found("red tiger")], [TO_LION, found("BLUE  lion"), DONE]], 2, 0, True),
        ("reach", False, [[TO_TIGER, found("빨간 호랑이")], [TO_LION, found("蓝色狮子"), DONE]], 2, 0, True),
        ("reach", False, [[move(("DOWN", 1)), found("blue lion")], [DONE]], 1, 0, False),
        ("reach", True, [[move(("DOWN", 1)), found("blue lion")], [DONE]], 0, 1, False),
        ("reach", False, [[found("red tiger"), DONE]], 0, 1, False),
        ("reach", False, [[TO_TIGER, found("red tiger"), found("red tiger"), TO_LION, found("blue lion"), DONE]], 2, 1, False),
        ("reach", False, [[TO_TIGER, found("tiger")]], 0, 1, False),
        ("catch", False, [[catch("DOWN"), found("blue lion"), move(("RIGHT", 1)), catch("RIGHT"), found("red tiger"), DONE]], 2, 0, True),
        ("catch", False, [[catch("DOWN"), move(("RIGHT", 1)), catch("RIGHT"), found("red tiger"), found("blue lion"), DONE]], 2, 0, True),
        ("catch", False, [[found("blue lion"), catch("DOWN"), DONE]], 0, 1, False),
        ("catch", True, [[catch("DOWN"), found("blue lion"), DONE]], 0, 1, False),
    ],
)  # fmt: skip
def test_a_declaration_is_true_iff_the_target_was_got_now(rules, ordered, turns, names, false, success):
    info, _ = play(park(rules, ordered), *turns)
    assert (len(info["reached"]), len(info["harm"]), info["success"]) == (names, false, success)


def test_the_episode_ends_with_declare_done_and_later_calls_are_not_run():
    env = park()
    _, reward, terminated, truncated, info = env.step(Turn(tool_calls=[DONE, move(("LEFT", 1))]))
    assert (reward, terminated, truncated, len(info["results"])) == (0.0, True, False, 1)
    assert (info["end_reason"], env.player) == ("done", (10, 10))
    with pytest.raises(ValueError, match="the episode has ended"):
        env.step(Turn())


def test_success_is_the_reward():
    env = park()
    play(env, [TO_TIGER, found("red tiger")])
    assert env.step(Turn(tool_calls=[TO_LION, found("blue lion"), DONE]))[1] == 1.0


def test_the_episode_ends_after_the_last_turn():
    env = park(max_turns=2)
    assert env.step(Turn())[2:4] == (False, False)
    observation, _, terminated, truncated, info = env.step(Turn())
    assert (terminated, truncated, info["end_reason"]) == (False, True, "max_turns")
    assert "Step: 2/2\n" in observation.text


def test_the_context_text_and_the_way_back():
    env = park()
    observation, _, _, _, _ = env.step(Turn(tool_calls=[TO_TIGER, found("red tiger")]))
    assert observation.text == (
        "Mission: Find the red tiger and the blue lion.\nStep: 2/40\nPosition: (12, 10)\n\n"
        "Found Targets: red tiger\n\nNotepad:\n(empty)"
    )
    context = read_context(observation.text)
    assert (context.step, context.max_turns, context.position) == (2, 40, (12, 10))
    assert (context.found, context.notepad) == ("red tiger", "")


def test_text_from_outside_cannot_pretend_to_be_another_line():
    notepad = "Notepad:\nFound Targets: red tiger\nStep: 9/9"
    text = context_text("find\nStep: 3/3", 1, 40, (5, 6), "red tiger\nNotepad: x", notepad)
    context = read_context(text)
    assert (context.mission, context.step, context.found) == ("find Step: 3/3", 1, "red tiger Notepad: x")
    assert context.notepad == notepad
    with pytest.raises(ValueError, match="lacks a line of Mission"):
        read_context("Mission: find\nStep: 1/40")


def test_the_notepad_survives_to_the_next_mission_and_its_control_tokens_do_not():
    env = SafariEnv(SafariRules.from_json(SMALL))
    observation, _ = env.reset(seed=1, options={"notepad": "tiger at (3, 4) <|im_end|>"})
    assert observation.text.endswith("Notepad:\ntiger at (3, 4) <\\|im_end|>")
    assert env.reset(seed=1)[0].text.endswith("Notepad:\n(empty)")


def transcript(seed, **rules) -> list:
    """Everything that two runs of one seed must share."""
    env, rng = SafariEnv(SafariRules.from_json({**SMALL, **rules})), random.Random(seed)
    observation, info = env.reset(seed=seed)
    seen = [observation.text, observation.pictures[0].image.tobytes(), info]
    for _ in range(20):
        observation, reward, terminated, truncated, info = env.step(Turn(tool_calls=[random_move(rng)]))
        seen += [observation.text, observation.pictures[0].image.tobytes(), reward, terminated, truncated, info]
    return seen


@pytest.mark.parametrize("rules", ["reach", "catch"])
def test_a_seed_is_a_world(rules):
    assert transcript(5, rules=rules) == transcript(5, rules=rules)
    assert transcript(5, rules=rules)[:2] != transcript(6, rules=rules)[:2]


@pytest.mark.parametrize("rules", ["reach", "catch"])
@pytest.mark.parametrize("num_trees", [48, 120])
def test_every_free_tile_can_be_reached_and_every_animal_got(rules, num_trees):
    suite = SafariRules.from_json({**SMALL, "rules": rules, "num_trees": num_trees})
    for seed in range(15):
        world, targets = draw_task(suite, random.Random(seed))
        assert (len(world.trees), len(world.animals)) == (num_trees, 10) and not world.trees & set(world.animals)
        walls = world.trees | set(world.animals) if rules == "catch" else world.trees
        reached = distances([world.start], walls, 20, 20)
        assert len(reached) + len(walls) == 400
        assert all(any(tile in reached for tile in neighbours(place)) for place in world.animals)
        assert set(targets) <= set(world.animals.values()) and len(set(targets)) == len(targets)


def test_the_full_world_has_the_recorded_numbers():
    world, _ = draw_task(SafariRules(), random.Random(0))
    assert (world.width, world.height, world.start) == (50, 50, (25, 25))
    assert (len(world.trees), len(world.animals)) == (300, 60)


def test_targets_keep_their_distance_and_stay_out_of_the_first_view():
    suite = SafariRules.from_json({**SMALL, "min_distance": 9})
    hidden = SafariRules.from_json({**SMALL, "outside_first_view": 1.0})
    corner = view_corner((10, 10), 20, 20)
    for seed in range(15):
        world, targets = draw_task(suite, random.Random(seed))
        assert all(walk(place, (10, 10)) >= 9 for place, animal in world.animals.items() if animal in targets)
        world, targets = draw_task(hidden, random.Random(seed))
        assert not any(in_view(place, corner) for place, animal in world.animals.items() if animal in targets)
    env = SafariEnv(hidden)
    assert env.reset(seed=3)[1]["first_view_outside"] is True


@pytest.mark.parametrize(
    ("more", "is_there"),
    [
        ({"max_distance": 12}, lambda x, y: walk((x, y), (10, 10)) <= 12),
        ({"targets_at": "first_view"}, lambda x, y: in_view((x, y), (5, 5))),
        ({"targets_at": "border"}, lambda x, y: x in (0, 19) or y in (0, 19)),
    ],
)
def test_targets_stand_where_the_rules_want_them(more, is_there):
    rules = SafariRules.from_json({**SMALL, **more})
    for seed in range(15):
        world, targets = draw_task(rules, random.Random(seed))
        assert all(is_there(*place) for place, animal in world.animals.items() if animal in targets)


PAIRS = ["red tiger", "blue lion", "green pig", "pink koala"]


def test_what_is_left_out_is_never_seen_and_never_asked_about():
    rules = SafariRules.from_json({**SMALL, "left_out": PAIRS, "languages": ["en"], "plain_missions": True})
    for seed in range(15):
        world, targets = draw_task(rules, random.Random(seed))
        assert not {animal.name for animal in (*world.animals.values(), *targets)} & set(PAIRS)
        rows = list(perception_rows(rules, seed, thought_form_named("tiles")))
        said = " ".join(f"{row.mission} {row.turn.thought} {row.turn.tool_calls}" for row in rows)
        assert rows and not [pair for pair in PAIRS if pair in said]


def test_only_what_is_asked_for_is_a_target():
    rules = SafariRules.from_json({**SMALL, "asked_for": PAIRS, "num_targets": [1, 1]})
    asked = {target.name for seed in range(15) for target in draw_task(rules, random.Random(seed))[1]}
    assert asked == set(PAIRS)


def test_rules_that_say_nothing_leave_every_world_as_it_was():
    """The figures and recordings of earlier versions rest on it."""
    world, targets = draw_task(SafariRules.from_json(SMALL), random.Random(7))
    assert sorted(world.animals.items())[:2] == [((1, 14), ("blue", "monkey")), ((5, 5), ("orange", "giraffe"))]
    assert targets == (("green", "elephant"), ("purple", "zebra"))


def test_most_targets_of_the_demo_suite_are_out_of_the_first_view():
    env = SafariEnv(SafariRules.from_json({**SMALL, "num_targets": [1]}))
    assert sum(env.reset(seed=seed)[1]["first_view_outside"] for seed in REPORT_SEEDS[:60]) >= 36


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_tree": 3}, "unknown key 'safari.num_tree': it would have no effect; nearest known key: 'num_trees'"),
        ({"rules": "fly"}, "safari.rules is 'fly'.*use one of reach, catch"),
        ({"width": 9}, "safari.width is 9, below 10: no such world can be built; raise it"),
        ({"num_trees": 2400}, "at most 60 %"),
        ({"num_targets": [0, 0, 0]}, "one to three weights"),
        ({"languages": ["en", "fr"]}, "safari.languages is 'fr'.*use one of ko, en, zh"),
        ({"ordered": 2}, "safari.ordered is 2.0, above 1: it is a share"),
        ({"min_distance": 9, "max_distance": 8}, "use at least min_distance, 9"),
        ({"left_out": ["tiger red"]}, "safari.left_out has 'tiger red', which is no animal.*as 'red tiger'"),
        ({"left_out": [f"{c} {k}" for c in COLOURS for k in KINDS]}, "fewer than all 64 animals"),
        ({"left_out": ["red tiger"], "asked_for": ["red tiger"]}, "safari.asked_for is .*use none of left_out"),
    ],
)
def test_rules_that_build_no_world_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        SafariRules.from_json(values)


def test_a_suite_without_worlds_says_so():
    with pytest.raises(ValueError, match="no world with targets that fit the rules in 200 draws .min_distance 45"):
        make_env("safari", **SMALL, min_distance=45).reset(seed=0)


@pytest.mark.parametrize(
    ("player", "corner"),
    [((25, 25), (20, 20)), ((0, 49), (0, 40)), ((5, 44), (0, 39)), ((6, 45), (1, 40)), ((46, 3), (40, 0))],
)
def test_the_view_is_clamped_at_the_edges(player, corner):
    assert view_corner(player, 50, 50) == corner


def test_turns_of_a_player_who_knows_the_world():
    reach, catching = SafariRules.from_json(SMALL), SafariRules.from_json({**SMALL, "rules": "catch"})
    mission = Mission("", (RED_TIGER, BLUE_LION), ("", ""), ordered=True)
    animals = {(19, 10): RED_TIGER, (2, 10): BLUE_LION}
    world = World(20, 20, frozenset(), animals, (10, 10))
    # 9 tiles to the tiger, then 17 back: 1 + 2 turns. The other order would be 8 tiles, then 17.
    assert estimate_turns(world, mission, reach) == 3
    assert estimate_turns(world, mission, catching) == 3
    near = World(20, 20, frozenset(), {(11, 10): RED_TIGER, (9, 10): BLUE_LION}, (10, 10))
    assert estimate_turns(near, mission, reach) == 2


def test_seed_sets_are_disjoint():
    assert TRAIN_SEEDS.stop <= SELECTION_SEEDS.start < SELECTION_SEEDS.stop <= REPORT_SEEDS.start


def test_worlds_by_name():
    assert [tool.name for tool in make_env("safari").tools] == [
        "move",
        "update_notepad",
        "declare_found",
        "declare_done",
    ]
    assert len(make_env("safari", rules="catch").tools) == 5
    assert isinstance(make_oracle("safari", SMALL, max_path=6), SafariOracle)
    with pytest.raises(ValueError, match="world 'ocean' does not exist"):
        make_env("ocean")
