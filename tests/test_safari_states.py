"""What the context tells of the turn before, and other states for the oracle to be recorded in."""

import hashlib
import json
import random
from collections import Counter
from dataclasses import fields, replace

import pytest

from qwenvl_agent.cli import record
from qwenvl_agent.schema import ToolCall, ToolResult, Turn
from qwenvl_agent.worlds import make_world
from qwenvl_agent.worlds.recording import encode, record_episode
from qwenvl_agent.worlds.safari import SafariEnv, SafariOracle, SafariRules
from qwenvl_agent.worlds.safari.baselines import random_move
from qwenvl_agent.worlds.safari.context import context_text, last_turn, read_context
from qwenvl_agent.worlds.safari.counterfactuals import swap_mission
from qwenvl_agent.worlds.safari.foreign_notes import NotesShares, draw_notes
from qwenvl_agent.worlds.safari.missions import Mission
from qwenvl_agent.worlds.safari.notepad import read_notes, tile_name
from qwenvl_agent.worlds.safari.render import TREE as TREE_SYMBOL
from qwenvl_agent.worlds.safari.states import NEAR, places_at
from qwenvl_agent.worlds.safari.tools import argument_error
from qwenvl_agent.worlds.safari.world import Animal, World, view_corner, walk

SMALL = {"width": 20, "height": 20, "num_trees": 48, "num_animals": 10, "max_turns": 40, "tile_px": 16}
TELLING = {**SMALL, "tell_last": True}
TEACHER = {"max_path": 4, "max_final_path": 1}
RED_TIGER = Animal("red", "tiger")
KINDS_OF_NOTES = [field.name for field in fields(NotesShares)]


def park(**rules) -> SafariEnv:
    """The player at (10, 10), a tree above, a red tiger two to the right."""
    env = SafariEnv(SafariRules.from_json({**TELLING, **rules}))
    env.reset(seed=0)
    env.world = World(20, 20, frozenset({(10, 9)}), {(12, 10): RED_TIGER}, (10, 10))
    env.mission = Mission("Find the red tiger.", (RED_TIGER,), ("red tiger",))
    return env


def move(*actions: tuple[str, int]) -> ToolCall:
    return ToolCall("move", {"actions": [{"direction": direction, "steps": steps} for direction, steps in actions]})


# what the context tells


NOTED, FOUND = ToolCall("update_notepad", {"content": "x"}), ToolCall("declare_found", {"target": "red tiger"})


@pytest.mark.parametrize(
    ("rules", "calls", "last"),
    [
        ("reach", [move(("RIGHT", 1))], "moved"),
        ("reach", [move(("UP", 2))], "blocked by tree f4"),
        ("reach", [move(("RIGHT", 1), ("LEFT", 1), ("UP", 1))], "blocked by tree f4"),
        ("reach", [move(("RIGHT", 2)), FOUND], "moved, declared"),
        ("reach", [NOTED, move(("LEFT", 3), ("LEFT", 3), ("LEFT", 3), ("LEFT", 3))], "moved, noted, blocked by edge"),
        ("reach", [move(("UP", 1)), move(("DOWN", 1))], "moved"),
        ("catch", [move(("RIGHT", 2))], "moved, blocked by animal g5"),
        ("catch", [ToolCall("catch", {"direction": "UP"})], "caught nothing"),
        ("catch", [move(("RIGHT", 1)), ToolCall("catch", {"direction": "RIGHT"}), FOUND], "moved, caught, declared"),
        ("reach", [move(("RIGHT", 9))], "call refused"),
        ("reach", [ToolCall("jump", {})], "call refused"),
        ("reach", [], "no call"),
    ],
)
def test_the_context_tells_what_the_turn_before_did(rules, calls, last):
    observation, _, _, _, info = (env := park(rules=rules)).step(Turn(tool_calls=calls))
    assert f"\nPosition: {env.player}\nLast: {last}\n\nFound Targets: " in observation.text
    assert read_context(observation.text).last == last
    # the same from what the game answered, and nothing else
    assert last_turn((10, 10), info["results"], view_corner(env.player, 20, 20)) == last


def test_before_the_first_turn_nothing_is_told():
    assert "\nLast: (none)\n" in SafariEnv(SafariRules.from_json(TELLING)).reset(seed=3)[0].text


def test_without_the_rule_context_and_results_are_those_of_the_published_recordings():
    env = park(tell_last=False)
    observation, _, _, _, info = env.step(Turn(tool_calls=[move(("UP", 1))]))
    assert observation.text.split("Position: (10, 10)")[1] == "\n\nFound Targets: (none)\n\nNotepad:\n(empty)"
    expected = {"moved": False, "actualSteps": 0, "blocked": True, "pos": {"x": 10, "y": 10}}
    assert info["results"] == (ToolResult("move", expected),)
    assert read_context(observation.text).last is None


def test_the_line_is_the_results_own_in_whole_episodes():
    env, rng = SafariEnv(SafariRules.from_json({**TELLING, "rules": "catch"})), random.Random(0)
    told = Counter()
    for seed in range(3):
        env.reset(seed=seed)
        for _ in range(30):
            before = env.player
            observation, _, _, _, info = env.step(Turn(tool_calls=[random_move(rng)]))
            context = read_context(observation.text)
            assert context.last == last_turn(before, info["results"], view_corner(env.player, 20, 20))
            told[context.last.split(" ")[0]] += 1
            if context.blocked:
                assert env.is_blocked(
                    tuple(map(sum, zip(context.blocked, view_corner(env.player, 20, 20), strict=True)))
                )
    assert told["moved,"] > 20 and told["blocked"] > 5


def test_another_mission_keeps_the_line():
    env = park()
    observation, *_ = env.step(Turn(tool_calls=[move(("UP", 1))]))
    swapped = swap_mission(observation)
    assert read_context(swapped.text).last == "blocked by tree f4" and swapped.text != observation.text


def test_the_oracle_believes_what_blocked_it_over_what_it_sees():
    rules = SafariRules.from_json(TELLING)
    world = World(20, 20, frozenset({(11, 10)}), {(12, 10): RED_TIGER}, (10, 10))

    def turn(last, trees):
        env = park()
        env.world = replace(world, trees=frozenset(trees))
        text = context_text("Find the red tiger.", 3, 40, (10, 10), "", "", last)
        return SafariOracle(rules, **TEACHER).turn(env.view(), text)

    seen, told = turn("moved", [(11, 10)]), turn("blocked by tree g5", [])
    assert told.thought.removeprefix("Me f5. Blocked g5. ") == seen.thought.removeprefix("Me f5. ")
    assert told.tool_calls == seen.tool_calls
    assert "Path g5" in turn("moved", []).thought


# other states


def test_recordings_without_resets_are_what_they_were():
    """Digests of the recordings before there were resets: rows and pictures."""
    for rules, expected in (("reach", "e1517d9aba6188af"), ("catch", "ab8f63a8c6ab2259")):
        world, digest = make_world("safari", {**SMALL, "rules": rules}), hashlib.sha256()
        for seed in range(4):
            for turn in record_episode(world, seed, TEACHER, 0.2)[0]:
                pngs, row = encode(turn)
                digest.update(b"".join(pngs) + json.dumps(row, ensure_ascii=False).encode())
        assert digest.hexdigest()[:16] == expected


def test_recordings_with_resets_are_what_they_were():
    """Digests of the recordings before the notepads' kinds could be set."""
    for rules, expected in (("reach", "42ea150f1b39a6c1"), ("catch", "58acadf02f7d9c40")):
        world, digest = make_world("safari", {**TELLING, "num_targets": [1, 1, 1], "rules": rules}), hashlib.sha256()
        for seed in range(8):
            for turn in record_episode(world, seed, TEACHER, 0.2, resets=0.5)[0]:
                pngs, row = encode(turn)
                digest.update(b"".join(pngs) + json.dumps(row, ensure_ascii=False).encode())
        assert digest.hexdigest()[:16] == expected


@pytest.mark.parametrize("rules", ["reach", "catch"])
def test_drawn_states_are_what_their_kinds_say(rules):
    world, kinds = make_world("safari", {**TELLING, "rules": rules, "num_targets": [1, 1, 1]}), Counter()
    env, rng = world.make_env(), random.Random(1)
    for seed in range(150):
        env.reset(seed=seed)
        env.step(Turn(tool_calls=[ToolCall("update_notepad", {"content": "Map .. ..\nGo a0"})]))
        state = world.draw_state(env, rng, 0.5)
        observation, _ = env.reset(seed=seed, options=state.options)
        context, corner = read_context(observation.text), view_corner(env.player, 20, 20)
        kinds.update(state.kinds)
        if "near" in state.kinds:
            wanted = env.wanted()[:1] if env.mission.ordered else env.wanted()
            goals = [place for place, animal in env.world.animals.items() if animal in wanted]
            assert 1 <= min(walk(env.player, goal) for goal in goals) <= max(NEAR)
        assert ("own_notes" in state.kinds) <= (context.notepad == "Map .. ..\nGo a0")
        assert ("no_notes" in state.kinds) == (context.notepad == "")
        assert ("blocked" in state.kinds) == ("blocked by" in context.last)
        assert ("walked" in state.kinds) == (context.last == "moved")
        assert ("first_turn" in state.kinds) == (context.step == 1 and context.last == "(none)")
        if "unseen_tree" in state.kinds:
            column, row = context.blocked
            assert (column + corner[0], row + corner[1]) in env.world.trees
            assert env.view()[row, column] != TREE_SYMBOL
            env.step(Turn())
            assert env.view()[row, column] == TREE_SYMBOL  # it is hidden once
    assert set(kinds) >= {
        "near",
        "anywhere",
        "own_notes",
        "no_notes",
        "stale_notes",
        "wrong_notes",
        "blocked",
        "walked",
    }
    assert kinds["first_turn"] > 5 and kinds["unseen_tree"] > 5 and 50 < kinds["near"] < 100


def test_states_at_a_zone_show_it_whole_or_almost_and_no_target():
    world = make_world("safari", {**TELLING, "num_animals": 3, "num_targets": [1, 0, 0]})
    env, oracle = world.make_env(), world.make_oracle(waypoints="borders")
    rng, swept = random.Random(0), Counter()
    for seed in range(60):
        env.reset(seed=seed)
        state = world.draw_state(env, rng, 0.0, at_zone=1.0)
        if "at_zone" not in state.kinds:  # no such place: the target is seen from all of them
            continue
        observation, info = env.reset(seed=seed, options=state.options)
        context = read_context(observation.text)
        zone = read_notes(context.notepad, env.rules.width, env.rules.height).go
        corner = view_corner(env.player, env.rules.width, env.rules.height)
        assert all(abs(shown - 10 * at) <= 2 for shown, at in zip(corner, zone, strict=True)), (corner, zone)
        thought = oracle.turn(env.view(), observation.text).thought
        assert f"Target {info['goals'][0]} none." in thought and "first_turn" not in state.kinds
        swept[f"Done {tile_name(zone)}." in thought] += 1
    assert swept[True] > 12 and swept[False] > 12
    with pytest.raises(ValueError, match="states.at_zone is 2"):
        world.draw_state(env, rng, 0.0, at_zone=2)


def test_a_zone_that_the_border_cuts_off_has_places_too():
    env = SafariEnv(SafariRules.from_json({**TELLING, "width": 25, "height": 23, "num_targets": [1, 0, 0]}))
    env.reset(seed=0)
    env.world = World(25, 23, frozenset(), {(0, 0): RED_TIGER}, (0, 0))
    env.mission = Mission("Find the red tiger.", (RED_TIGER,), ("red tiger",))
    places = set(places_at(env, (2, 2)))
    assert places == {(x, y) for x in range(18, 25) for y in range(16, 23)}  # views from (13, 11) to (15, 13)


def test_targets_that_were_found_stay_found():
    env = SafariEnv(SafariRules.from_json({**TELLING, "rules": "catch", "num_targets": [0, 1]}))
    env.reset(seed=4)
    second = env.mission.targets[1]
    place = next(place for place, animal in env.world.animals.items() if animal == second)
    observation, info = env.reset(seed=4, options={"found": [1], "gone": [place], "turn": 5, "player": place})
    assert env.player == place and second in env.caught
    assert info["reached"] == [second.name] and second not in env.wanted()
    context = read_context(observation.text)
    assert (context.found, context.step) == (env.mission.wordings[1], 6)


def test_nobody_begins_in_a_tree():
    env = SafariEnv(SafariRules.from_json(SMALL))
    env.reset(seed=0)
    tree = min(env.world.trees)
    with pytest.raises(ValueError, match="something stands there"):
        env.reset(seed=0, options={"player": tree})


@pytest.mark.parametrize("rules", [{"rules": "reach"}, {"rules": "catch", "num_targets": [1, 1, 1]}])
def test_the_oracle_wins_from_every_drawn_state(rules):
    world, counts, turns = make_world("safari", {**TELLING, **rules}), Counter(), []
    for seed in range(40):
        recorded, counted = record_episode(world, seed, TEACHER, 0.2, resets=0.4)
        counts.update(counted)
        turns += recorded
    assert counts["solved"] >= 39  # the episode in which it is put elsewhere may end before it is won
    assert counts["reset_states"] == counts["reset_near"] + counts["reset_anywhere"] <= len(turns)
    assert 0.3 < counts["reset_states"] / len(turns) < 0.5
    for turn in turns:  # what blocks, seen or told, is never walked into
        walks = [r.content for r in turn.results if r.name == "move"]
        assert not any(result["blocked"] for result in walks)


def test_no_history_reaches_over_a_reset():
    world = make_world("safari", TELLING)
    turns, counts = record_episode(world, 2, TEACHER, 0.0, resets=0.5)
    gaps = sum(b.turn_index - a.turn_index - 1 for a, b in zip(turns, turns[1:], strict=False))
    assert counts["reset_states"] - 1 <= gaps <= counts["reset_states"] and gaps > 0


def test_tiles_are_named_in_the_view_that_is_shown():
    env = park()
    env.player = (3, 4)
    env.world = replace(env.world, trees=frozenset({(3, 1)}))
    observation, *_ = env.step(Turn(tool_calls=[move(("UP", 3))]))
    assert read_context(observation.text).last == f"moved, blocked by tree {tile_name((3, 1))}"


def test_the_command_counts_the_kinds_of_states(tmp_path):
    options = ["--episodes", "3", "--noise", "0.2", "--resets", "0.5", "--near", "1", "--json"]
    rules = ["--rules", json.dumps(TELLING), "--oracle", "max_path=4", "--oracle", "waypoints=borders"]
    assert record.main(["--out", str(tmp_path / "data"), *options, *rules]) == 0
    manifest = json.loads((tmp_path / "data" / "manifest.json").read_text())
    assert (manifest["resets"], manifest["near"]) == (0.5, 1.0)
    assert 0 < manifest["reset_states"] == manifest["reset_near"] and "reset_anywhere" not in manifest


# other notepads


def alone(**shares) -> NotesShares:
    return NotesShares(**{"none": 0, "stale": 0, "wrong": 0, **shares})


def notes_of(kind: str, seed: int, **rules) -> tuple[str, SafariEnv]:
    env = SafariEnv(SafariRules.from_json({**TELLING, **rules}))
    env.reset(seed=seed)
    return draw_notes(alone(**{kind: 1}), "own", env.rules, env.wanted(), random.Random(seed))[0], env


@pytest.mark.parametrize("kind", KINDS_OF_NOTES)
@pytest.mark.parametrize("rules", ["reach", "catch"])
def test_the_oracle_wins_with_every_kind_of_notes(kind, rules):
    """From the second turn on, when it believes a notepad of its own form."""
    for seed in range(15):
        notes, env = notes_of(kind, seed, rules=rules, num_targets=[1, 1, 1], max_turns=60)
        oracle, is_over = SafariOracle(env.rules, **TEACHER), False
        observation, _ = env.reset(seed=seed, options={"notepad": notes, "turn": 1})
        while not is_over:
            turn = oracle.turn(env.view(), observation.text)
            observation, _, terminated, truncated, info = env.step(turn)
            is_over = terminated or truncated
        assert info["success"], (seed, notes)


@pytest.mark.parametrize("kind", ["other_size", "prose", "upstream"])
def test_foreign_notes_are_not_the_oracles_and_fit_the_tool(kind):
    texts = set()
    for seed in range(60):
        notes, _ = notes_of(kind, seed, languages=["ko", "en", "zh"])
        assert read_notes(notes, 20, 20) is None
        assert argument_error(ToolCall("update_notepad", {"content": notes})) == ""
        texts.add(notes)
    assert len(texts) > 50


def test_wrong_notes_name_a_target_and_stale_ones_zones():
    notes, env = notes_of("wrong", 3)
    (animal, place), *_ = read_notes(notes, 20, 20).seen
    assert animal in env.wanted() and env.world.animals.get(place) != animal
    assert read_notes(notes_of("stale", 3)[0], 20, 20).seen == ()
    assert "".join(notes_of("upstream", 3)[0].split("\n")[1:3]).strip("V.") == ""


def test_notes_are_drawn_by_their_shares():
    shares, rng, rules = alone(stale=0.1, prose=0.3), random.Random(0), SafariRules.from_json(TELLING)
    counts = Counter(draw_notes(shares, "own", rules, [RED_TIGER], rng)[1] for _ in range(2000))
    assert 160 < counts["stale_notes"] < 240 and 540 < counts["prose_notes"] < 660
    assert counts.total() == 2000 == counts["stale_notes"] + counts["prose_notes"] + counts["own_notes"]
    assert draw_notes(alone(), "own", rules, [RED_TIGER], rng) == ("own", "own_notes")


def test_the_command_sets_and_counts_the_kinds_of_notes(tmp_path, capsys):
    options = [
        "--episodes",
        "4",
        "--resets",
        "0.6",
        "--rules",
        json.dumps(TELLING),
        "--json",
        "--state",
        "notes.none=0",
    ]
    options += ["--state", "notes.prose=0.4", "--state", "notes.upstream=0.4"]
    assert record.main(["--out", str(tmp_path / "data"), *options]) == 0
    manifest = json.loads((tmp_path / "data" / "manifest.json").read_text())
    assert manifest["states"] == {"notes": {"none": 0, "prose": 0.4, "upstream": 0.4}}
    assert manifest["reset_prose_notes"] > 0 < manifest["reset_upstream_notes"] and "reset_no_notes" not in manifest
    capsys.readouterr()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--state", "notes.prose=0.1"], "--state notes without --resets: no other state is drawn"),
        (["--resets", "1", "--state", "notes.poem=0.1"], "unknown key 'states.notes.poem': it would have no effect"),
        (["--resets", "1", "--state", "notes.prose=2"], "states.notes.prose is 2.0, above 1: it is a share; lower it"),
        (["--resets", "1", "--state", "notes.prose=0.9"], "the shares add up to 1.05: more than all states"),
    ],
)
def test_states_that_cannot_be_drawn_are_refused(tmp_path, capsys, options, message):
    assert record.main(["--out", str(tmp_path / "data"), "--episodes", "2", *options]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "data").exists()
