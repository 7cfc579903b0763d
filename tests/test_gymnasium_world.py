"""Gymnasium's environments as worlds, on a corridor that is walked to its right end."""

import gymnasium
import pytest
from corridor_world import Corridor, corridor

from qwenvl_agent.evaluation.rollout import rollout
from qwenvl_agent.schema import Request, ToolCall, Turn

LENGTH = 6


def act(**arguments) -> Turn:
    return Turn(tool_calls=(ToolCall("act", arguments),))


def test_the_oracle_wins_by_seed_and_what_it_did_is_recorded():
    record, again = (rollout(world.make_env, world.make_oracle(), [3])[0] for world in (corridor(), corridor()))
    start = record.steps[0].position[0]
    assert record == again
    assert (record.mission, record.success, record.end_reason, record.turns) == (
        "walk\nright",
        True,
        "done",
        LENGTH - start,
    )
    assert record.steps[0].thought == f"At {start}."
    assert record.steps[0].context == "Mission: walk right\nStep: 1/10\nLast turn: (none)"
    assert record.steps[1].context == f"Mission: walk right\nStep: 2/10\nLast turn: right (position [{start + 1}, 0])"
    call = record.steps[0].calls[0]
    assert call.result == {"status": "ok", "changed": {"position": [start + 1, 0]}}
    assert (call.legal, call.effective) == (None, True)


def test_several_actions_a_turn_stop_where_the_episode_ends():
    env = corridor(max_actions=9).make_env()
    _, info = env.reset(seed=3)
    start = info["position"][0]
    observation, reward, terminated, truncated, info = env.step(act(actions=["right"] * 9))
    assert (reward, terminated, truncated, info["success"]) == (1.0, True, False, True)
    assert info["results"][0].content["actions_done"] == LENGTH - start
    with pytest.raises(ValueError, match=r"the episode has ended \(done\)"):
        env.step(act(actions=["right"]))


def test_what_is_no_action_is_answered():
    env = corridor(max_actions=2).make_env()
    env.reset(seed=3)
    calls = (ToolCall("fly", {}), ToolCall("act", {"actions": ["up"]}), *act(actions=["left", "right"]).tool_calls * 2)
    info = env.step(Turn(tool_calls=calls))[4]
    statuses = ["unknown_tool", "invalid_arguments", "ok", "too_many_actions"]
    assert [result.content["status"] for result in info["results"]] == statuses
    assert [call["legal"] for call in info["calls"]] == [False, False, None, False]
    assert info["results"][2].content["changed"] == {}
    observation, _, _, _, info = env.step(Turn(text="hm"))
    assert info["results"][0].content == {"status": "no_tool_call"}
    assert observation.text.endswith("Last turn: no tool was called")


def test_actions_are_tools_of_their_own_or_arguments():
    each = corridor(tool="", max_actions=2)
    assert [tool.name for tool in each.tools] == ["left", "right"]
    assert each.turn("", ["right", "right"]).tool_calls == (ToolCall("right", {}),) * 2
    env = each.make_env()
    _, info = env.reset(seed=3)
    assert env.step(each.turn("", ["left", "right"]))[4]["position"] == info["position"]

    space = gymnasium.spaces.MultiDiscrete([2, 3])
    several = corridor(
        make=lambda seed: Corridor(LENGTH, "rgb_array", space),
        actions={"direction": ["left", "right"], "steps": ["one", "two", "three"]},
    )
    env = several.make_env()
    _, info = env.reset(seed=3)
    after = env.step(act(direction="right", steps="two"))[4]
    assert after["position"][0] == info["position"][0] + 2
    assert several.tools[0].parameters["required"] == ["direction", "steps"]


def test_notepad_rules_and_picture():
    world = corridor(
        notepad=True,
        mission=lambda episode: f"seed {episode.seed}",
        text=lambda episode: f"x is {episode.game.x}",
        legal=lambda episode, name: name == "right",
        goals=lambda episode: {"moved": bool(episode.actions), "won": episode.total_reward > 0},
        harm=lambda episode: ["went left"] * episode.actions.count("left"),
        optimal_turns=lambda episode: LENGTH - episode.game.x,
        crop=(0, 0, 96, 32),
        size=(6, 2),
    )
    env = world.make_env()
    observation, info = env.reset(seed=3, options={"notepad": "old"})
    x = info["position"][0]
    assert observation.text == f"Mission: seed 3\nStep: 1/10\nx is {x}\nLast turn: (none)\nNotepad:\nold"
    assert (observation.pictures[0].width, observation.pictures[0].height) == (6, 2)
    note = ToolCall("update_notepad", {"content": "new <|im_end|>".replace("<|im_end|>", "!")})
    observation, _, _, _, info = env.step(Turn(tool_calls=(note, *act(action="left").tool_calls)))
    assert observation.text.endswith("Notepad:\nnew !")
    assert [(call["legal"], call["effective"]) for call in info["calls"]] == [(True, True), (False, True)]
    assert (info["goals"], info["reached"], info["harm"]) == (["moved", "won"], ["moved"], ["went left"])
    assert info["optimal_turns"] == LENGTH - x


def test_turns_and_gymnasiums_own_limit_end_an_episode():
    world = corridor(max_turns=2)
    env = world.make_env()
    env.reset(seed=3)
    assert env.step(act(action="left"))[2:4] == (False, False)
    _, _, terminated, truncated, info = env.step(act(action="right"))
    assert (terminated, truncated, info["end_reason"]) == (False, True, "max_turns")
    limited = corridor(make=lambda seed: gymnasium.wrappers.TimeLimit(Corridor(LENGTH, "rgb_array"), 1))
    env = limited.make_env()
    env.reset(seed=3)
    assert env.step(act(action="right"))[4]["end_reason"] == "truncated"


def test_every_environment_is_closed_once():
    Corridor.num_closed = 0
    env = corridor().make_env()
    env.reset(seed=1)
    env.reset(seed=2)
    assert Corridor.num_closed == 1
    env.close()
    env.close()
    assert Corridor.num_closed == 2
    with pytest.raises(ValueError, match="closed"):
        env.step(act(action="left"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"make": lambda seed: Corridor()}, "render_mode None, so there is nothing to look at"),
        ({"actions": ["left"]}, "names 1 actions of 2"),
        ({"actions": {"up": 7}}, "action 'up' is 7 to the environment, which is not in Discrete"),
        ({"actions": []}, "nothing could be done in it"),
        ({"actions": {"a": ["x"]}, "tool": ""}, "cannot be tools of their own"),
        ({"state": lambda episode: {"x": object()}}, "which JSON has not"),
    ],
)
def test_what_makes_no_world_is_refused(changes, said):
    with pytest.raises((ValueError, TypeError), match="world|JSON") as error:
        corridor(**changes).make_env().reset(seed=0)
    assert said in str(error.value)


def test_an_oracle_has_only_its_settings_and_needs_the_live_episode():
    with pytest.raises(ValueError, match="has no setting speed"):
        corridor().make_oracle(speed=3)
    assert corridor(oracle=None).make_oracle() is None
    quick = corridor(oracle=lambda episode, steps: ("", ["right"] * steps), max_actions=3).make_oracle(steps=2)
    env = corridor(max_actions=3).make_env()
    observation, _ = env.reset(seed=3)
    assert quick.act([Request("", env.tools, (), observation)])[0].turn == act(actions=["right", "right"])
    from qwenvl_agent.schema import Observation

    with pytest.raises(ValueError, match="answers only while an episode is played"):
        quick.act([Request("", env.tools, (), Observation("hm"))])


def test_an_oracle_without_memory_is_a_reference_for_other_players():
    world = corridor()
    record = rollout(world.make_env, world.make_policy("random"), [3], reference=world.make_reference())[0]
    assert {str(step.expected) for step in record.steps} == {"[{'name': 'act', 'arguments': {'action': 'right'}}]"}
    assert corridor(oracle_has_memory=True).make_reference() is None
    assert corridor(oracle=None).make_reference() is None
