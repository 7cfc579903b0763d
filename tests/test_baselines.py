"""Policies that play any world by its tools' schemas."""

import random
from collections import Counter

import pytest
from PIL import Image

from qwenvl_agent.schema import Answer, Observation, Picture, Request, Tool, ToolCall, Turn
from qwenvl_agent.tool_schema import argument_error
from qwenvl_agent.worlds import make_world
from qwenvl_agent.worlds.baselines import NoisyPolicy, RandomPolicy, random_call

PARAMETERS = {
    "type": "object",
    "properties": {
        "direction": {"type": "string", "enum": ["UP", "DOWN"]},
        "steps": {"type": "integer", "minimum": 3, "exclusiveMaximum": 6},
        "even": {"type": "integer", "multipleOf": 2, "minimum": 5, "maximum": 9},
        "speed": {"type": "number", "minimum": 0.5, "maximum": 1.5},
        "name": {"type": "string", "minLength": 2, "maxLength": 3},
        "path": {"type": "array", "minItems": 1, "maxItems": 3, "items": {"$ref": "#/$defs/tile"}},
        "either": {"oneOf": [{"type": "boolean"}, {"const": "no"}]},
        "nothing": {"type": ["null", "integer"], "minimum": 5, "maximum": 5},
        "order": {"type": "array", "minItems": 2, "maxItems": 2, "uniqueItems": True, "items": {"enum": [1, 2]}},
    },
    "required": ["direction", "steps", "even", "speed", "name", "path", "either", "nothing", "order"],
    "additionalProperties": False,
    "$defs": {"tile": {"properties": {"x": {"minimum": 0}}, "required": ["x"]}},
}
TOOL = Tool("go", "Go.", PARAMETERS)


def request(text: str, grey: int = 0, tools=(TOOL,)) -> Request:
    return Request("", tools, (), Observation(text, (Picture.from_image(Image.new("RGB", (2, 2), (grey,) * 3)),)))


def test_random_arguments_fit_any_schema_and_reach_all_of_it():
    calls = [random_call(TOOL, random.Random(seed)) for seed in range(200)]
    assert all(not argument_error(PARAMETERS, call.arguments) for call in calls)
    assert {call.arguments["steps"] for call in calls} == {3, 4, 5}
    assert {call.arguments["even"] for call in calls} == {6, 8}
    assert {str(call.arguments["either"]) for call in calls} == {"True", "False", "no"}
    assert {call.arguments["nothing"] for call in calls} == {None, 5}
    assert {len(call.arguments["path"]) for call in calls} == {1, 2, 3}


def test_random_play_is_a_function_of_what_was_asked():
    first, again = (RandomPolicy(seed=1).act([request("a"), request("b")]) for _ in range(2))
    assert first == again
    assert len({str(RandomPolicy(seed=1).act([request("a", grey)])) for grey in range(9)}) > 1


def test_a_schema_that_no_draw_fits_is_named():
    tool = Tool(
        "spell", "", {"properties": {"word": {"type": "string", "pattern": "^[0-9]{9}$"}}, "required": ["word"]}
    )
    with pytest.raises(ValueError, match="tool spell: none of 50 random arguments fits its schema"):
        RandomPolicy().act([request("a", tools=(tool,))])


def test_a_noisy_policy_is_wrong_as_often_as_asked():
    class Waits:
        def act(self, requests):
            return [Answer(Turn(tool_calls=(ToolCall("wait", {}),))) for _ in requests]

    answers = NoisyPolicy(Waits(), noise=0.25).act([request(str(number)) for number in range(400)])
    names = Counter(answer.turn.tool_calls[0].name for answer in answers)
    assert 70 <= names["go"] <= 130 and names["go"] + names["wait"] == 400


def test_every_world_has_a_random_policy_and_a_noisy_oracle():
    safari = make_world("safari")
    assert type(safari.make_policy("random")).__module__ == "qwenvl_agent.worlds.safari.baselines"
    assert type(safari.make_policy("oracle", max_path=3)).__name__ == "SafariOracle"
    browser = make_world("browser")
    assert type(browser.make_policy("noisy_oracle", noise=0.1)).__name__ == "NoisyPolicy"
    with pytest.raises(ValueError, match="world safari has no policy 'greedy': .* use oracle, noisy_oracle, random"):
        safari.make_policy("greedy")
