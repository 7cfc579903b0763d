import math
import time
from dataclasses import replace

import pytest

from qwenvl_agent.config import EvalConfig, PromptConfig
from qwenvl_agent.evaluation import results, suites
from qwenvl_agent.evaluation.episodes import episode_metrics
from qwenvl_agent.evaluation.figures import metrics_json, prompt_hash
from qwenvl_agent.records import CallRecord, EpisodeRecord, StepRecord
from qwenvl_agent.schema import NO_ANSWER, Answer, Observation, Request, Row, ToolCall, Turn
from qwenvl_agent.worlds.safari import RandomAgent, SafariOracle, SafariRules
from qwenvl_agent.worlds.safari.judge import agrees, is_equivalent, planned
from qwenvl_agent.worlds.safari.thoughts import Plan
from qwenvl_agent.worlds.safari.world import REPORT_SEEDS, SELECTION_SEEDS

WORLD = {"width": 20, "height": 20, "num_trees": 48, "num_animals": 10, "max_turns": 40, "tile_px": 16}
ORACLE = SafariOracle(SafariRules.from_json(WORLD))
SAFARI = suites.find_suite("safari", WORLD)


def move(*actions):
    return {"name": "move", "arguments": {"actions": [{"direction": d, "steps": n} for d, n in actions]}}


FOUND = {"name": "declare_found", "arguments": {"target": "red tiger"}}
DONE = {"name": "declare_done", "arguments": {}}


def call(values, result=None, **flags):
    return CallRecord(**values, result={} if result is None else result, **flags)


def episode(seed, *steps, **values):
    return EpisodeRecord(seed=seed, goals=["red tiger"], steps=list(steps), turns=len(steps), **values)


def step(*calls, **values):
    return StepRecord(context="", calls=list(calls), **values)


def test_every_started_episode_counts_in_every_rate():
    won = episode(1, step(), step(), success=True, progress=1.0, optimal_turns=1, end_reason="done")
    crashed = EpisodeRecord(seed=2, end_reason="error", error="Traceback")
    late = episode(3, step(), end_reason="time_limit", optimal_turns=1)
    false = episode(4, step(), end_reason="done", harm=["red lion", "blue pig"], progress=0.5, optimal_turns=1)
    metrics = episode_metrics(SAFARI.world, [won, crashed, late, false])
    assert metrics["success_rate"].value == 0.25 and metrics["success_rate"].n == 4
    assert metrics["progress"].value == 1.5 / 4
    assert metrics["mean_turns"].value == 1.0 and metrics["mean_turns_success"].value == 2.0
    assert metrics["path_efficiency"].value == 0.5 / 4
    assert metrics["harm_rate"].value == 0.25
    assert metrics["end_reasons"] == {"done_ok": 1, "error": 1, "time_limit": 1, "done_harm": 1}


def test_refused_calls_and_unreadable_turns_are_invalid_actions():
    steps = [
        step(call(move(("UP", 1)), {"blocked": True}, effective=False), call(DONE, effective=False)),
        step(call(move(("UP", 1)), {"blocked": False}, effective=True), call(FOUND, effective=True)),
        step(call({"name": "fly", "arguments": {}}, name_ok=False, schema_ok=False, effective=False)),
        step(call({"name": "update_notepad", "arguments": {"content": "x"}}, effective=False)),
        step(error="json_error"),
    ]
    metrics = episode_metrics(SAFARI.world, [episode(1, *steps)])
    # Refused: the blocked move, the early done, the unknown tool, the turn that could not be read; of 7.
    assert metrics["invalid_action_rate"].value == 4 / 7
    assert metrics["effective_rate"].value == 2 / 7
    assert metrics["schema_rate"].value == 3 / 5 and metrics["legal_rate"].value == 2 / 5
    assert metrics["errors"] == {"json_error": 1}


def test_a_turn_that_ends_where_the_oracles_ends_is_optimal():
    expected = [move(("UP", 2), ("RIGHT", 1)), FOUND]
    same = [move(("RIGHT", 1), ("UP", 2)), FOUND]
    assert is_equivalent(same, expected)
    assert not is_equivalent([move(("UP", 2)), FOUND], expected)
    assert not is_equivalent([move(("UP", 2), ("RIGHT", 1))], expected)
    steps = [step(*[call(c, effective=True) for c in same], expected=expected)]
    metrics = episode_metrics(SAFARI.world, [episode(1, *steps)])
    assert [metrics[name].value for name in ("name_accuracy", "argument_accuracy", "optimal_rate")] == [1, 0, 1]


@pytest.mark.parametrize(
    ("thought", "plan"),
    [
        ("Me f5. Plan RIGHT 2 UP 1, found, done.", Plan((("RIGHT", 2), ("UP", 1)), found=True, done=True)),
        ("Plan DOWN 3, catch LEFT, found.", Plan((("DOWN", 3),), "LEFT", found=True)),
        ("Me f5. Plan wait.", Plan()),
        ("I go up.", None),
        ("Plan up and away.", None),
    ],
)
def test_the_plan_of_a_thought(thought, plan):
    assert planned(thought) == plan
    if plan and plan != Plan():
        assert planned(f"Me a0. Plan {plan.text()}.") == plan


def test_agreement_of_thought_and_calls():
    assert agrees("Plan UP 2, found.", [move(("UP", 2)), FOUND]) is True
    assert agrees("Plan UP 2, found.", [move(("UP", 2))]) is False
    assert agrees("Plan UP 2.", [move(("DOWN", 2))]) is False
    assert agrees("Up!", [move(("UP", 2))]) is None


def test_judging_survives_calls_of_any_shape():
    strange = [
        {"name": "move", "arguments": a} for a in ({}, {"actions": 3}, {"actions": [{"direction": [], "steps": 1}]})
    ]
    steps = [step(*[call(c, schema_ok=False) for c in strange], expected=[move(("UP", 1))], thought="Plan UP 1.")]
    assert episode_metrics(SAFARI.world, [episode(1, *steps)])["optimal_rate"].value == 0.0


def test_the_oracle_is_perfect_and_the_random_agent_is_not():
    seeds = REPORT_SEEDS[:6]
    best = SAFARI.metrics(SAFARI.play(ORACLE, seeds))
    perfect = ("success_rate", "progress", "argument_accuracy", "legal_rate", "optimal_rate", "thought_consistency")
    assert [best[name].value for name in perfect] == [1.0] * len(perfect)
    assert best["thought_coverage"].value == 1.0 and best["end_reasons"] == {"done_ok": 6}
    aimless = SAFARI.metrics(SAFARI.play(RandomAgent(ORACLE.rules), seeds))
    assert aimless["success_rate"].value == 0.0 and aimless["optimal_rate"].value < 0.3


def rows(num):
    request = Request("", (), (), Observation("Mission: x"))
    return [Row(f"ep{i // 2}/{i}", request, Turn("", [ToolCall("declare_done", {})])) for i in range(num)]


class Quitter:
    def act(self, requests):
        return [Answer(Turn("", [ToolCall("declare_done", {})])) for _ in requests]


def test_evaluation_inside_training_gives_scalars_and_records():
    cfg = EvalConfig(world=WORLD, episodes=3, step_rows=4, batch_size=2)
    result = suites.evaluate(Quitter(), cfg, held_out=rows(10))
    assert [record.seed for record in result.episodes] == list(SELECTION_SEEDS[:3])
    assert [record.row_id for record in result.rows] == ["ep0/0", "ep1/2", "ep2/5", "ep3/7"]
    assert result.scalars["rollout/success_rate"] == 0.0 and result.scalars["eval/argument_accuracy"] == 1.0
    assert result.scalars["eval/declare_done.recall"] == 1.0
    assert "rollout/mean_turns_success" not in result.scalars  # no success, no value
    assert all(isinstance(value, float) and not math.isnan(value) for value in result.scalars.values())


class Silent:
    """A policy whose server answers so many times and then no more."""

    def __init__(self, num_answers: int):
        self.num_answers = num_answers

    def act(self, requests):
        answers = []
        for _ in requests:
            self.num_answers -= 1
            done = Answer(Turn("", [ToolCall("declare_done", {})]))
            answers.append(done if self.num_answers >= 0 else Answer(Turn(), text="gone", error=NO_ANSWER))
        return answers


def test_episodes_that_an_error_ended_are_named_beside_the_rate():
    cfg = EvalConfig(world=WORLD, episodes=4, step_rows=0, batch_size=1)
    some = suites.evaluate(Silent(1), cfg)
    assert [record.end_reason for record in some.episodes] == ["done", "error", "error", "error"]
    assert (some.scalars["rollout/success_rate"], some.scalars["rollout/error_rate"], some.failure) == (0.0, 0.75, "")
    none = suites.evaluate(Silent(0), cfg)
    assert none.scalars == {"rollout/error_rate": 1.0} and none.failure == "gone"


class Slow(Quitter):
    def act(self, requests):
        time.sleep(0.5)
        return [Answer(Turn("", [ToolCall("update_notepad", {"content": "x"})])) for _ in requests]


def test_what_the_time_limit_did_is_said():
    cfg = EvalConfig(world=WORLD, episodes=5, step_rows=0, batch_size=2, time_limit_s=0.3)
    assert suites.evaluate(Slow(), cfg).cut_short == (
        "eval.time_limit_s (0.3) ended 2 of 5 episodes, which count as failures, and left 3 unstarted: the rate is not "
        "the policy's own; raise it, or lower eval.episodes"
    )
    assert suites.evaluate(Quitter(), replace(cfg, time_limit_s=600.0)).cut_short == ""


def test_the_cause_of_a_crash_is_the_last_line_of_its_traceback():
    crashed = EpisodeRecord(seed=1, end_reason="error", error="Traceback:\n  File\nValueError: no trees\n")
    assert SAFARI.common_failure([crashed, crashed]) == "ValueError: no trees"
    assert SAFARI.common_failure([crashed, EpisodeRecord(seed=2, end_reason="max_turns")]) == ""
    assert SAFARI.common_failure([]) == ""


def test_evaluation_inside_training_keeps_its_time():
    cfg = EvalConfig(world=WORLD, episodes=3, step_rows=4)
    result = suites.evaluate(Quitter(), cfg, held_out=rows(4), time_limit_s=0.0)
    assert result.episodes == result.rows == [] and result.scalars == {}
    assert suites.evaluate(Quitter(), EvalConfig(suite="none", step_rows=0)).scalars == {}


def test_a_result_survives_its_folder(tmp_path):
    records = SAFARI.play(ORACLE, REPORT_SEEDS[:2])
    metrics = SAFARI.metrics(records)
    results.write_result(tmp_path / "a", results.describe("safari", "oracle", world=WORLD), records, metrics)
    result, read, suite = results.read_result(tmp_path / "a")
    assert metrics_json(suite.metrics(read)) == metrics_json(metrics)
    assert set(result["success_rate"]) == {"value", "low", "high", "n"} and result["about"]["world"] == WORLD
    assert "NaN" not in (tmp_path / "a" / "metrics.json").read_text()


def test_what_is_no_result_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        results.read_result(tmp_path)
    for content in ('{"loss": 1}', "[]", "{", "[" * 100_000, "1" * 5_000):
        (tmp_path / "metrics.json").write_text(content)
        with pytest.raises(ValueError, match="metrics.json: not a result of eval.py"):
            results.read_result(tmp_path)


def test_prompt_hash_is_of_the_words_alone():
    first = Request("Play.", (), (), Observation("Mission: a"))
    other = Request("Play.", (), (), Observation("Mission: b"))
    assert prompt_hash(first, PromptConfig()) == prompt_hash(other, PromptConfig())
    assert prompt_hash(first, PromptConfig()) != prompt_hash(Request("Go.", (), (), Observation("")), PromptConfig())


@pytest.mark.parametrize("plan", ["RIGHT 140RIGHT 1", "RIGHT", "RIGHT 2UP 1", "RIGHT " + "9" * 5000, "RIGHT \u0663"])
def test_a_plan_that_no_one_could_walk_is_no_plan(plan):
    assert planned(f"Me f5. Plan {plan}.") is None
