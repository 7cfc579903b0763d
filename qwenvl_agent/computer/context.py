"""What stands beside the screenshot: system prompt, tool and text, the same in training, evaluation, browser and predict."""

import json
from collections.abc import Sequence

from qwenvl_agent.computer.actions import Action, to_arguments
from qwenvl_agent.computer.tool import KINDS, build_tool
from qwenvl_agent.coordinates import Screen
from qwenvl_agent.schema import Observation, Picture, Request

SYSTEM_PROMPT = (
    "You use a computer: the picture shows its screen as it is now. Do the next step of the task; where it says what "
    "to look for, act in its middle."
)


def observation(picture: Picture, instruction: str, past: Sequence[str] = ()) -> Observation:
    """The screenshot and the task, with one line for each step that was taken before."""
    lines = [f"Task: {instruction}"]
    if past:
        lines += ["Steps so far:", *(f"{i}. {' '.join(step.split())}" for i, step in enumerate(past, 1))]
    return Observation("\n".join(lines), (picture,))


def screen_request(
    picture: Picture, instruction: str, past: Sequence[str] = (), kinds: Sequence[str] = tuple(KINDS)
) -> Request:
    """What an agent is asked; `past` are lines that describe the steps before, `kinds` the actions it may choose."""
    return Request(SYSTEM_PROMPT, (build_tool(kinds),), (), observation(picture, instruction, past))


def describe(action: Action, screen: Screen) -> str:
    """A past step as the model itself would write it, for `observation`."""
    return json.dumps(to_arguments(action, screen), ensure_ascii=False)
