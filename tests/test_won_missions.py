"""Expert iteration's data: of missions that a policy won, its own turns, those left out that did nothing."""

import json
import random
from dataclasses import replace

import pytest
from corridor_world import corridor
from source_rows import read_rows
from test_own_states import RULES, record

from qwenvl_agent.evaluation.own_states import NewStates
from qwenvl_agent.evaluation.won_missions import play_to_win
from qwenvl_agent.schema import Answer, ToolCall, Turn

RIGHT, LEFT = (Turn(f"Go {side}.", [ToolCall("act", {"action": side})]) for side in ("right", "left"))
WAIT = Turn("?", [ToolCall("wait", {})])


class Walker:
    """Right, but for some turns of others, which are drawn by the seed."""

    def __init__(self, seed: int, share: float = 0.4):
        self.seed, self.share = seed, share

    def act(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        rng = random.Random(request.draw_number(self.seed))
        if rng.random() >= self.share:
            return Answer(RIGHT)
        return rng.choice((Answer(LEFT), Answer(WAIT), Answer(Turn(), error="no_call")))


@pytest.fixture
def play(tmp_path):
    """(counts, rows) of what was won in corridors."""

    def play(policy_of, seeds=range(20), world=None, **options):
        with NewStates(tmp_path) as states:
            for mission in play_to_win(world or corridor(), policy_of, seeds, **options):
                states.add(mission)
        (tmp_path / "tools.json").write_text(json.dumps([tool.to_json() for tool in corridor().tools]))
        return dict(states.counts), list(read_rows(tmp_path, "recorded")) if states.counts["rows"] else [], states

    return play


def num_dropped(counts: dict) -> int:
    return sum(number for reason, number in counts.items() if reason.startswith("dropped_"))


def test_the_shortest_won_attempt_of_each_mission_is_learned_again(play):
    counts, rows, _ = play(Walker, attempts=5)
    assert counts["episodes"] == 100 and counts["missions"] == 20 >= counts["won_missions"] == counts["kept_episodes"]
    assert 0 < counts["won"] < 100 and counts["failed_to_play"] == 0
    assert counts["kept_turns"] == counts["rows"] + counts["repeated"] + num_dropped(counts)
    assert all(row.step.turn in (RIGHT, LEFT) for row in rows)
    assert all(row.step.results[0].content["status"] == "ok" for row in rows)
    few = play(Walker, attempts=1)[0]
    assert few["kept_turns"] / few["won_missions"] > counts["kept_turns"] / counts["won_missions"]


def test_turns_that_did_nothing_are_dropped_and_leave_a_gap(play):
    class Dawdler:
        def act(self, requests):
            turn = int(requests[0].draw.split("/")[1])
            return [(Answer(Turn(), error="no_call"), Answer(WAIT))[turn] if turn < 2 else Answer(RIGHT)] * len(
                requests
            )

    counts, rows, _ = play(lambda seed: Dawdler(), range(3), attempts=2, keep=2)
    assert counts["dropped_unreadable"] == counts["dropped_refused"] == 6  # one of each in both kept attempts
    assert {row.turn_index for row in rows} >= {2, 3} and all(row.turn_index >= 2 for row in rows)
    # The second attempt was the same, and so were some corridors.
    assert counts["repeated"] == counts["kept_turns"] - 12 - len(rows) >= len(rows)
    assert {row.episode_id for row in rows} <= {f"{seed:08x}_000" for seed in range(3)}


def test_what_changes_nothing_is_dropped_also_where_the_world_does_not_tell(play):
    """Without `state` the pictures are compared: the corridor's walls are not walked through."""
    silent = corridor(state=None)
    counts, rows, _ = play(lambda seed: Walker(seed, 0.0), range(4), world=silent, attempts=1)
    assert counts["won"] == 4 and num_dropped(counts) == 0  # the last turn won, though no picture shows it
    blind = replace_picture(silent)
    counts, rows, _ = play(lambda seed: Walker(seed, 0.0), range(4), world=blind, attempts=1)
    assert counts["dropped_unchanged"] == counts["kept_turns"] - 4 and len(rows) + counts["repeated"] == 4


def replace_picture(world):
    """The same with a picture that never changes."""
    make = world.make

    def make_blind(seed):
        env = make(seed)
        game, render = env, env.render
        game.render = lambda: render() * 0
        return game

    return replace(world, make=make_blind)


def test_nothing_won_is_nothing_to_learn(play):
    _, _, states = play(lambda seed: Walker(seed, 1.0), range(2), world=corridor(max_turns=1), attempts=2)
    with pytest.raises(ValueError, match="'won_missions': 0.*no mission was won; allow more attempts"):
        states.refuse_nothing()


def test_the_command_records_what_was_won(tmp_path):
    options = ("--rules", json.dumps(RULES), "--policy", "noisy_oracle", "--episodes", "4", "--attempts", "2")
    done = record(tmp_path / "a", *options)
    assert done.returncode == 0, done.stderr
    manifest = json.loads(done.stdout)
    assert (manifest["attempts"], manifest["keep"], manifest["episodes"], manifest["won"]) == (2, 1, 8, 8)
    assert manifest["rows"] == len(list(read_rows(tmp_path / "a", "safari"))) and "agreement" not in manifest
    refused = record(tmp_path / "b", *options, "--oracle", "max_path=4")
    assert refused.returncode == 2 and "--oracle with --attempts" in refused.stderr
    refused = record(tmp_path / "b", "--episodes", "1", "--attempts", "2")
    assert refused.returncode == 2 and "--attempts 2 without a policy" in refused.stderr
