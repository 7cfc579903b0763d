"""Held-out suites: what they hold, that the oracle wins them and chance does not, one command and one table for all."""

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import eval as evaluation
from qwenvl_agent.cli import record, rescore
from qwenvl_agent.config import build_config, to_json
from qwenvl_agent.evaluation.set_report import write_set_report
from qwenvl_agent.evaluation.suite_sets import (
    Played,
    choose,
    judge_goals,
    read_played,
    recorded_values,
    seen_in_training,
    turns_over_oracle,
)
from qwenvl_agent.evaluation.suites import find_suite
from qwenvl_agent.records import EpisodeRecord
from qwenvl_agent.worlds import make_world
from qwenvl_agent.worlds.check import check_world
from qwenvl_agent.worlds.held_out import Goal, read_suites
from qwenvl_agent.worlds.safari.missions import PHRASINGS, find_targets
from qwenvl_agent.worlds.safari.world import in_view, walk

SMALL = {"width": 20, "height": 20, "num_trees": 48, "num_animals": 10, "max_turns": 40, "tile_px": 16}
TINY = {**SMALL, "num_targets": [1], "plain_missions": True, "tell_last": True}
SAFARI = find_suite("safari", TINY)
SET = SAFARI.world.held_out_suites()["difficulty"]
NAMES = list(SET.suites)
REPORT = range(2_000_000, 3_000_000)


def suite_named(name: str):
    (part,) = choose(SAFARI, [f"difficulty/{name}"]).parts
    return part


# what they hold


def test_the_set_has_every_difficulty():
    assert [
        *("usual", "in_view", "near", "far", "two_targets", "three_targets", "ordered", "dense_trees", "edges", "long"),
        *("unseen_pairs", "unseen_font", "unseen_phrasing"),
    ] == NAMES


def test_no_training_no_choice_of_best_and_no_other_suite_has_their_seeds():
    seeds = SAFARI.world.seeds
    blocks = [suite.seeds for suite in SET.suites.values()]
    for block in blocks:
        assert seeds.name_of([block[0], block[-1]]) == "report" and block.start >= seeds.report.start + 200_000
    assert len({seed for block in blocks for seed in block}) == sum(map(len, blocks))


def games(name: str, num: int = 8):
    """(env, places of the targets) of a suite's first missions."""
    part = suite_named(name)
    env = part.suite.world.make_env()
    for seed in part.held_out.seeds[:num]:
        env.reset(seed=seed)
        yield env, [place for place, animal in env.world.animals.items() if animal in env.mission.targets]


@pytest.mark.parametrize(
    ("name", "holds"),
    [
        ("in_view", lambda env, places: all(in_view(place, (5, 5)) for place in places)),
        ("near", lambda env, places: all(walk(p, (10, 10)) <= 12 and not in_view(p, (5, 5)) for p in places)),
        ("far", lambda env, places: all(walk(place, (10, 10)) > 12 for place in places)),
        ("two_targets", lambda env, places: len(env.mission.targets) == 2 and not env.mission.ordered),
        ("three_targets", lambda env, places: len(env.mission.targets) == 3 and not env.mission.ordered),
        ("ordered", lambda env, places: len(env.mission.targets) in (2, 3) and env.mission.ordered),
        ("dense_trees", lambda env, places: len(env.world.trees) == 96),
        ("edges", lambda env, places: all({x, y} & {0, 19} for x, y in places)),
        ("long", lambda env, places: (env.world.width, env.world.height, env.rules.max_turns) == (50, 50, 180)),
        ("unseen_font", lambda env, places: env.rules.sprites == "fluent"),
    ],
)
def test_a_suite_is_what_it_says(name, holds):
    assert all(holds(env, places) for env, places in games(name))


def test_a_recording_that_leaves_the_pairs_out_proves_that_they_are_unseen(tmp_path):
    rules = {**TINY, "left_out": SET.suites["unseen_pairs"].rules["asked_for"]}
    assert (
        record.main(["--out", str(tmp_path / "data"), "--episodes", "3", "--rules", json.dumps(rules), "--json"]) == 0
    )
    assert seen_in_training(suite_named("unseen_pairs"), tmp_path / "run", config_of(tmp_path / "data")) == ""


def test_each_colour_and_each_kind_of_the_unseen_pairs_is_seen_in_others():
    pairs = SET.suites["unseen_pairs"].rules["asked_for"]
    colours, kinds = zip(*(pair.split() for pair in pairs), strict=True)
    assert len(set(colours)) == len(set(kinds)) == 8
    asked = {animal.name for env, _ in games("unseen_pairs", 30) for animal in env.mission.targets}
    assert asked <= set(pairs) and len(asked) >= 5


def test_a_held_out_sentence_is_none_of_the_others():
    bare = {
        re.sub(r"\{\d\}(\[.\])?", "_", s)
        for t in PHRASINGS["more"][0]
        for by in t.values()
        for f in by.values()
        for s in f
    }
    for env, _ in games("unseen_phrasing", 30):
        text = env.mission.text
        for wording, _ in find_targets(text):
            text = text.replace(wording, "_")
        assert re.sub(r"_[을를이가은는과와]", "_", text) not in bare


def play(part, player, num_seeds, **settings):
    policy = part.suite.world.make_policy(player, **settings)
    return sum(record.success for record in part.suite.play(policy, part.held_out.seeds[:num_seeds]))


@pytest.mark.parametrize("name", NAMES)
def test_the_oracle_wins_every_mission_and_chance_about_none(name):
    part = suite_named(name)
    assert (play(part, "oracle", 4), play(part, "random", 4)) == (4, 0)


@pytest.mark.slow
@pytest.mark.parametrize("rules", [TINY, {**TINY, "rules": "catch"}])
@pytest.mark.parametrize("name", NAMES)
def test_the_oracle_wins_many_of_a_suite(name, rules):
    (part,) = choose(find_suite("safari", rules), [f"difficulty/{name}"]).parts
    num = 6 if name == "long" else 20
    assert (play(part, "oracle", num), play(part, "random", num) <= 1) == (num, True)


# files of suites


@pytest.mark.parametrize(
    ("suites", "goals", "message"),
    [
        ({"a": {"title": "x", "seed_start": 5}}, {}, "a has the seeds 5 to 10004, and those for reports are 2000000"),
        ({"a": {"title": "x", "seed_start": 2_995_000}}, {}, "missions of a training would count as held out"),
        (
            {"a": {"title": "x", "seed_start": 2_000_000}, "b": {"title": "x", "seed_start": 2_009_999}},
            {},
            "b begins at seed 2009999, and a ends at 2010000: both would play the same missions",
        ),
        ({"a": {"title": "x", "seed_start": 2_000_000, "rule": {}}}, {}, "unknown key .*nearest known key: 'rules'"),
        (
            {"a": {"title": "x", "seed_start": 2_000_000}},
            {"success_rate": {"least": 0.8, "of": "b"}},
            "suite 'b', which",
        ),
        (
            {"a": {"title": "x", "seed_start": 2_000_000}},
            {"success_rate": {"atleast": 0.8}},
            "goals.success_rate.atleast",
        ),
    ],
)
def test_a_set_that_could_not_be_trusted_is_refused(tmp_path, suites, goals, message):
    (tmp_path / "set.json").write_text(json.dumps({"suites": suites, "goals": goals}))
    with pytest.raises(ValueError, match=message):
        read_suites(tmp_path / "set.json", REPORT)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suites", "hard"], "no set of the world safari has all of them.*give one of difficulty"),
        (["--suites", "difficulty/easy"], "the set has no such suite.*it has usual, in_view"),
        (["--suites", "difficulty", "--seed-start", "2000000"], "--seed-start with --suites"),
        (["--suites", "difficulty", "--counterfactual", "notepad_wiped"], "--counterfactual with --suites"),
        (["--suites", "difficulty", "--episodes", "10001"], "usual has 10000 seeds of its own; lower it"),
        (["--suites", "difficulty", "--suite", "browser"], "the suite browser offers no held-out suites"),
    ],
)
def test_what_cannot_be_played_is_one_message(arguments, message, capsys):
    assert evaluation.main(["--policy", "oracle", *arguments]) == 2
    assert re.search(message, capsys.readouterr().err)


# what was seen in training


@pytest.mark.parametrize(
    ("name", "manifest", "seen"),
    [
        ("unseen_pairs", {"rules": {"left_out": SET.suites["unseen_pairs"].rules["asked_for"]}}, ""),
        ("unseen_pairs", {"rules": {"left_out": ["red monkey", "green zebra"]}}, "blue lion, cyan tiger"),
        ("unseen_pairs", {"rules": {}}, "blue lion, cyan tiger, green zebra"),
        ("unseen_font", {"rules": {"sprites": "noto"}}, ""),
        ("unseen_font", {"rules": {}}, ""),
        ("unseen_font", {"rules": {}, "varied": {"sprites": {"noto": 5, "fluent": 2}}}, "shows sprites fluent"),
        ("unseen_font", {"rules": {}, "varied": {"sprites": {"noto": 5, "fluent": 0}}}, ""),
        ("unseen_font", {"rules": {}, "varied": {"tile_px+sprites": {'[16, "fluent"]': 1}}}, "shows sprites fluent"),
        ("unseen_phrasing", {"rules": {"phrasing": "held_out"}}, "shows phrasing held_out"),
        ("unseen_phrasing", {"rules": {"phrasing": "held_out"}, "world": "browser"}, ""),
        ("unseen_phrasing", None, "not known of .*, where no manifest.json is"),
        ("usual", {"rules": {}}, None),
    ],
)
def test_a_recording_tells_what_it_shows_of_the_unseen(tmp_path, name, manifest, seen):
    if manifest is not None:
        (tmp_path / "manifest.json").write_text(json.dumps({"world": "safari", **manifest}))
    found = seen_in_training(suite_named(name), tmp_path / "run", config_of(tmp_path))
    assert found == seen if not seen else re.search(seen, found)


def config_of(data: Path):
    return build_config({"name": "x", "model": {"path": "tiny"}, "data": {"sources": [{"path": str(data)}]}})


def test_what_earlier_runs_have_seen_counts(tmp_path):
    """A run that began with another's weights has learned from its data too."""
    for name, sprites in (("first", "fluent"), ("second", "noto")):
        (tmp_path / name).mkdir()
        manifest = {"world": "safari", "rules": {"sprites": sprites}}
        (tmp_path / name / "manifest.json").write_text(json.dumps(manifest))
    run, earlier = tmp_path / "run", tmp_path / "earlier"
    run.mkdir()
    (run / "start.json").write_text(json.dumps({"run": str(earlier)}))
    part, config = suite_named("unseen_font"), config_of(tmp_path / "second")
    assert seen_in_training(part, run, config) == f"not known of {earlier}, where no manifest.json is"
    earlier.mkdir()
    (earlier / "config.json").write_text(json.dumps(to_json(config_of(tmp_path / "first"))))
    assert seen_in_training(part, run, config) == f"{tmp_path / 'first'} shows sprites fluent"


def test_rules_that_were_drawn_together_are_read_apart():
    varied = {"width+height": {"[15, 16]": 3, "[30, 31]": 0}, "sprites": {"noto": 1}}
    assert recorded_values({"rules": {"a": 1}, "varied": varied}) == {
        "a": [1],
        "width+height": [[15, 16]],
        "width": [15],
        "height": [16],
        "sprites": ["noto"],
    }


# figures and goals


def won(seed: int, turns: int, success: bool = True) -> EpisodeRecord:
    return EpisodeRecord(seed=seed, turns=turns, success=success, goals=["x"])


def test_turns_are_held_against_the_oracles_on_the_missions_that_both_won():
    ours = [won(1, 6), won(2, 9), won(3, 40, success=False), won(4, 5)]
    oracles = [won(1, 4), won(2, 6), won(3, 2), won(4, 7, success=False)]
    played = Played("far", {"run": ours, "oracle": oracles}, {}, SAFARI)
    assert turns_over_oracle([played])["turns_over_oracle"].value == 15 / 10
    assert turns_over_oracle([replace(played, records={"run": ours})]) == {}


def test_goals_are_met_or_missed_or_cannot_be_told():
    rows = {"usual": {"figures": {"success_rate": {"value": 0.9}}}}
    goals = {
        "success_rate": Goal(least=0.8, of="usual"),
        "harm_rate": Goal(most=0.02),
        "thought_consistency": Goal(least=0.98),
        "turns_over_oracle": Goal(most=1.5),
    }
    figures = {"success_rate": {"value": 0.73}, "harm_rate": {"value": 0.02}, "thought_consistency": {"value": 0.97}}
    judged = judge_goals(goals, figures, rows)
    assert {name: one["is_met"] for name, one in judged.items()} == {
        "success_rate": True,  # 0.72 is asked for
        "harm_rate": True,
        "thought_consistency": False,
        "turns_over_oracle": None,
    }
    assert judged["success_rate"] == {"least": 0.8, "of": "usual", "is_met": True}
    assert judge_goals(goals, figures, {})["success_rate"]["is_met"] is None


# the command


ARGUMENTS = ["--policy", "random", "--episodes", "4", *(f"--world={k}={json.dumps(v)}" for k, v in TINY.items())]
CHOSEN = ["--suites", "difficulty/near", "difficulty/unseen_font"]


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    out = tmp_path_factory.mktemp("sets") / "difficulty"
    assert evaluation.main([*ARGUMENTS, *CHOSEN, "--out", str(out), "--json"]) == 0
    return out


def test_one_command_plays_all_and_writes_one_table(played):
    table = json.loads((played / "suites.json").read_text())
    assert list(table["suites"]) == ["near", "unseen_font", "all"]
    near, whole = table["suites"]["near"], table["suites"]["all"]
    assert near["seeds"] == {"start": 2_520_000, "count": 4, "set": "report"} and whole["seeds"]["count"] == 8
    assert near["beside"]["oracle"]["value"] == 1.0 and "random" not in near["beside"]  # it is the one in focus
    assert near["goals"]["success_rate"] == {"least": 0.8, "is_met": False}
    # a share of a suite that was not played is no goal that could be judged
    assert table["suites"]["unseen_font"]["goals"]["success_rate"] == {"least": 0.8, "of": "usual", "is_met": None}
    assert set(whole["goals"]) == set(SET.goals) - {"success_rate"}
    assert table["about"]["columns"] == list(SET.goals)
    for row in table["suites"].values():
        assert sum(row["end_reasons"].values()) == row["seeds"]["count"]
        assert row["figures"]["success_rate"]["n"] == row["seeds"]["count"]


def test_what_is_finished_is_kept_and_what_is_not_is_played(played, tmp_path, capsys):
    out = tmp_path / "set"
    shutil.copytree(played, out)
    whole = (out / "unseen_font" / "records.jsonl").read_bytes()
    (out / "unseen_font" / "records.jsonl").write_bytes(b"".join(whole.splitlines(keepends=True)[:2]))
    times = {path: os.stat(path).st_mtime_ns for path in out.glob("*/records.jsonl")}
    assert evaluation.main([*ARGUMENTS, *CHOSEN, "--out", str(out)]) == 0
    changed = [path.parent.name for path, time in times.items() if os.stat(path).st_mtime_ns != time]
    assert changed == ["unseen_font"] and (out / "unseen_font" / "records.jsonl").read_bytes() == whole
    captured = capsys.readouterr()
    assert captured.err.count("is kept: it has these 4 episodes already") == 3
    assert "difficulty: random" in captured.out and "missed" in captured.out
    assert evaluation.main([*ARGUMENTS, *CHOSEN, "--out", str(out), "--episodes", "2", "--oracle", "max_path=4"]) == 0
    assert all(len(path.read_text().splitlines()) == 2 for path in times)


def test_the_table_and_its_page_come_from_records_alone(played, tmp_path, capsys):
    out = tmp_path / "set"
    shutil.copytree(played, out)
    before = json.loads((out / "suites.json").read_text())
    for path in out.glob("*/metrics.json"):
        path.write_text(json.dumps({"about": json.loads(path.read_text())["about"]}))
    assert rescore.main([str(out)]) == 0
    assert json.loads((out / "suites.json").read_text()) == before


def test_the_page_shows_every_class_once_with_its_first_replay(played):
    write_set_report(played)
    page = (played / "report.html").read_text()
    table = json.loads((played / "suites.json").read_text())
    classes = set(table["suites"]["all"]["end_reasons"])
    assert page.count('<details class="case"') == len(classes)
    pictures = json.loads(re.search(r"const pictures = (\{.*?\});", page).group(1))
    assert pictures and set(re.findall(r'data-picture="(\w+)"', page)) == set(pictures)
    num_failed = sum(num for name, num in table["suites"]["all"]["end_reasons"].items() if name != "done_ok")
    assert f"<td>{num_failed}</td>" in page.partition("failures, each counted once")[2].partition("</tr>")[0]
    assert set(re.findall(r'href="([^"]*)"', page)) == {"near/report.html", "unseen_font/report.html"}
    assert all((played / name / "report.html").is_file() for name in ("near", "unseen_font"))


def test_a_world_of_a_stranger_offers_its_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("lengths.json").write_text(
        json.dumps({"suites": {"long": {"title": "far to go", "times": {"length": 1.5}, "seed_start": 2_000_000}}})
    )
    Path("corridors.py").write_text(
        f"import sys\nsys.path.append({str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\n"
        "from corridor_world import corridor\n"
        "from qwenvl_agent.worlds.gymnasium import GymnasiumWorld\n"
        "from qwenvl_agent.worlds.held_out import read_suites\n"
        "def make_world(length=6):\n"
        "    world = corridor(length)\n"
        "    path = Path(__file__).parent / 'lengths.json'\n"
        "    world.held_out_suites = lambda: {'lengths': read_suites(path, world.seeds.report)}\n"
        "    return world\n"
    )
    arguments = ["--policy", "oracle", "--suite", "corridors.py:make_world", "--suites", "lengths", "--episodes", "3"]
    assert evaluation.main([*arguments, "--out", "out", "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    (row,) = table["suites"].values()
    assert (row["figures"]["success_rate"]["value"], row["figures"]["turns_over_oracle"]["value"]) == (1.0, 1.0)
    assert read_played(Path("out"), "long").suite.world.rules == {"length": 9}
    assert make_world("corridors.py:make_world").seen_in("length", {"length": [6, 9]}) == "length 6"
    assert not check_suites_of("corridors.py:make_world")
    suites = {"long": {"title": "x", "rules": {"length": 20}, "seed_start": 2_000_000}}  # the episode ends at 10 turns
    suites |= {"none": {"title": "x", "rules": {"length": 0}, "seed_start": 2_010_000}}
    Path("lengths.json").write_text(json.dumps({"suites": suites}))
    lost, broken = check_suites_of("corridors.py:make_world")
    assert "lengths/long: the oracle loses seed 2000000" in lost
    assert re.search("lengths/none: .*it cannot be played", broken)


def check_suites_of(name: str) -> list[str]:
    return [finding.message for finding in check_world(name, episodes=2) if finding.check == "suites"]
