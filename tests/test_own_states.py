"""A policy's own states, labelled by the oracle: who plays when, what is recorded, and what the same command makes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from source_rows import read_rows

from qwenvl_agent.evaluation.own_states import NewStates, make_teacher, play_own_states
from qwenvl_agent.schema import Answer, ToolCall, Turn
from qwenvl_agent.worlds import make_world
from qwenvl_agent.worlds.recording import free_seeds
from qwenvl_agent.worlds.world import World

ROOT = Path(__file__).parents[1]
RULES = {"width": 12, "height": 12, "num_trees": 10, "num_animals": 4, "num_targets": [1, 0, 0], "tile_px": 16}
NOTE = Turn("Me.", [ToolCall("update_notepad", {"content": "x"})])
DONE = Turn("Me.", [ToolCall("declare_done", {})])


class Says:
    """The same answer whatever is asked."""

    def __init__(self, turn: Turn, error: str = ""):
        self.answer = Answer(turn, error=error)

    def act(self, requests):
        return [self.answer] * len(requests)


@pytest.fixture
def play(tmp_path):
    """(counts, rows, records) of a policy's own states in small worlds of the safari."""

    def play(policy, seeds, rules=None, **options):
        world = make_world("safari", RULES | {"max_turns": 8} | (rules or {}))
        policy = world.make_policy(policy) if isinstance(policy, str) else policy
        with NewStates(tmp_path) as states:
            records = play_own_states(world, policy, make_teacher(world, {}), seeds, on_episode=states.add, **options)
        rows = list(read_rows(tmp_path, "safari")) if states.counts["rows"] else []
        return dict(states.counts), rows, records, states

    return play


def test_every_row_is_what_the_oracle_would_do_in_a_state_of_the_policys(play):
    counts, rows, records, states = play("noisy_oracle", range(100, 106))
    steps = [step for record in records for step in record.steps]
    assert counts["states"] == len(steps) == len(rows) + counts.get("repeated", 0)
    wanted = {(step.context, json.dumps(step.expected), step.expected_thought) for step in steps}
    found = [
        (
            r.step.observation.text,
            json.dumps([{"name": c.name, "arguments": c.arguments} for c in r.step.turn.tool_calls]),
            r.step.turn.thought,
        )
        for r in rows
    ]
    assert set(found) <= wanted and len(set(found)) == len(rows)
    alike = sum([{"name": c.name, "arguments": c.arguments} for c in step.calls] == step.expected for step in steps)
    assert 0 < counts["agreed"] == alike < len(steps)
    assert counts["agreed"] + counts.get("equivalent", 0) + counts["differed"] == counts["states"]
    by_tool = states.agreement()
    assert (
        by_tool["declare_done"] == {"states": 6, "agreed": 6} and by_tool["move"]["agreed"] < by_tool["move"]["states"]
    )


def test_the_oracle_takes_over_where_an_answer_cannot_be_read(play):
    counts, rows, records, _ = play(Says(Turn(), error="no_call"), range(3))
    assert counts["taken_over_unreadable"] == counts["unreadable"] == counts["states"] == len(rows)
    assert counts["solved"] == 3 == sum(record.success for record in records) and "agreed" not in counts
    assert all(len(row.step.results) == len(row.step.turn.tool_calls) for row in rows)
    assert sorted(row.turn_index for row in rows if row.episode_id == "00000000") == list(range(records[0].turns))


def test_the_oracle_takes_over_where_a_declaration_would_lose_the_mission(play):
    counts, _, records, _ = play(Says(DONE), range(3))
    assert counts["taken_over_losing"] == counts["states"] and counts["solved"] == 3
    false = Turn("Me.", [ToolCall("declare_found", {"target": "a purple cat"})])
    counts, _, records, _ = play(Says(false), range(3))
    assert counts["taken_over_losing"] == counts["states"] and not any(record.harm for record in records)


def test_the_oracle_leads_out_at_the_third_visit_and_a_state_is_recorded_once(play):
    """The note changes the first state into another, in which the policy then stands still."""
    counts, rows, records, _ = play(Says(NOTE), range(1), rules={"max_turns": 5})
    is_own = [[call.arguments for call in step.calls] == [{"content": "x"}] for step in records[0].steps]
    assert is_own == [True, True, True, False, True]
    assert counts["taken_over_third_visit"] == 1 and counts["played_by_policy"] == 4
    assert counts["states"] == 5 and counts["repeated"] == 2 and len(rows) == 3
    assert [row.turn_index for row in rows] == [0, 2, 7]  # behind another's turn an index is left out


def test_shares_are_drawn_by_seed_and_turn(play):
    counts, _, _, _ = play(Says(NOTE), range(20), oracle_share=1.0)
    assert counts["taken_over_by_share"] == counts["states"] and counts["solved"] == 20
    full, rows, _, _ = play("oracle", range(60))
    assert full["agreed"] == full["states"] == len(rows)
    some, kept, _, _ = play("oracle", range(60), keep_agreed=0.5)
    assert 0.3 < len(kept) / len(rows) < 0.7 and some["thinned"] == len(rows) - len(kept)
    again = play("oracle", range(40, 60), keep_agreed=0.5)[1]
    assert [r.step for r in again] == [r.step for r in kept if int(r.episode_id, 16) >= 40]


def test_an_oracle_that_must_act_itself_is_no_teacher():
    with pytest.raises(ValueError, match=r"world bare has no oracle that can be asked .*\(--attempts 4\)"):
        make_teacher(type("Bare", (World,), {"name": "bare"})(), {})


def test_seeds_are_training_seeds_that_the_data_has_not(tmp_path):
    world = make_world("safari", RULES)
    (tmp_path / "manifest.json").write_text('{"seeds": [0, 3999]}')
    known = [tmp_path / "dataset.jsonl", tmp_path / "elsewhere" / "dataset.jsonl"]
    assert free_seeds(world, known, 10) == range(4000, 4010) == free_seeds(world, [tmp_path], 10, 4000)
    with pytest.raises(ValueError, match=r"seeds 3999 to 4008 are among those .* \(0 to 3999\).* \(it would be 4000\)"):
        free_seeds(world, known, 10, 3999)
    with pytest.raises(ValueError, match="seeds 999999 to 1000000 are not all training seeds"):
        free_seeds(world, known, 2, 999_999)


def record(out: Path, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "scripts/generate_oracle.py", "--out", str(out), "--json", *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_the_command_records_the_same_whatever_the_batch(tmp_path):
    rules = ("--rules", json.dumps(RULES), "--policy", "noisy_oracle", "--episodes", "6", "--oracle", "max_path=4")
    done = record(tmp_path / "a", *rules, "--seed-start", "50")
    assert done.returncode == 0, done.stderr
    manifest = json.loads(done.stdout)
    assert (manifest["policy"], manifest["seeds"], manifest["seed_set"]) == ("noisy_oracle", [50, 55], "training")
    assert manifest["states"] == manifest["rows"] + manifest.get("repeated", 0) and manifest["oracle"] == {
        "max_path": 4
    }
    assert manifest["agreement"]["declare_done"]["states"] >= 6
    record(tmp_path / "b", *rules, "--seed-start", "50", "--batch-size", "2")
    assert (tmp_path / "a/dataset.jsonl").read_bytes() == (tmp_path / "b/dataset.jsonl").read_bytes()
    assert json.loads((tmp_path / "b/manifest.json").read_text()) == manifest


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--policy", "oracle", "--noise", "0.2"), "--noise 0.2 with a policy: it is of the oracle's own recordings"),
        (("--policy", "nobody"), "has no policy 'nobody'"),
        (("--checkpoint", "best"), "--checkpoint 'best' without --run"),
        (("--endpoint", "http://127.0.0.1:1/v1"), "--endpoint without --model"),
        (("--policy", "oracle", "--seed-start", "1000000"), "are not all training seeds"),
        (("--policy", "oracle", "--keep-agreed", "0"), "there is nothing to learn; play more episodes"),
    ],
)
def test_what_cannot_be_recorded_of_a_policy_is_refused(tmp_path, options, said):
    done = record(tmp_path / "out", "--episodes", "1", *options)
    assert done.returncode == 2 and said in done.stderr
