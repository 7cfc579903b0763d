"""A trained agent in three lines: a screenshot and an instruction in, an action in the screenshot's pixels out.

    from qwenvl_agent import load_agent

    agent = load_agent("runs/computer_use_2b")
    agent.act("browser.png", "download the picture of the kitten")
    # {"action": "click", "x": 300, "y": 400, "thought": "The kitten is on the left.", "image_size": [1280, 720]}

Asked is what training asks (`computer.context.screen_request`), so that a run is asked as it was taught.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qwenvl_agent.computer import KINDS
from qwenvl_agent.computer.context import describe, screen_request
from qwenvl_agent.computer.dialects import read, read_turn, to_seed
from qwenvl_agent.coordinates import Screen
from qwenvl_agent.images import read_rgb
from qwenvl_agent.inference.load import find, open_policy
from qwenvl_agent.schema import Answer, Picture, Policy

if TYPE_CHECKING:
    from PIL import Image

TEMPERATURE = 0.1


class Agent:
    """A policy that is shown pictures one at a time; `kinds` are the actions that its tool offers."""

    def __init__(self, policy: Policy, kinds: Sequence[str] = tuple(KINDS)):
        self.policy, self.kinds = policy, tuple(kinds)

    def act(self, image: "str | Path | Image.Image", instruction: str, history: Sequence[str | Mapping] = ()) -> dict:
        """The next action, in whole pixels of the picture as it was given.

        `action` is click or another kind of `computer_use`, with what it takes: x, y, text, keys, pixels (of a scroll),
        time, status. Besides: `thought`; `image_size` [width, height]; `then`, further actions of the same answer;
        `repairs`, by what names the answer had to be read over, if it had. An answer of which no action can be read
        has `action` None, `error` and `raw`.

        `history` are the steps before, oldest first: what `act` returned, or lines of text. ValueError for a picture
        that is broken, too large or does not fit the model's budget, and for an empty instruction.
        """
        picture = open_picture(image)
        if not instruction.strip():
            raise ValueError("the instruction is empty: there is nothing to do; say what")
        request = screen_request(picture, instruction.strip(), [step_line(step) for step in history], self.kinds)
        return to_result(self.policy.act([request])[0], Screen.of(picture))


def open_picture(image: "str | Path | Image.Image") -> Picture:
    """The picture decoded, so that what is broken shows before a model runs."""
    if isinstance(image, str | Path):
        image = read_rgb(Path(image), f"picture {str(image)!r}")
    return Picture.from_image(image)


def step_line(step: str | Mapping) -> str:
    """A past step as the prompt shows it: a result of `act` as the model would have written it; text as it is."""
    if isinstance(step, str):
        return step
    size = step.get("image_size")
    if not isinstance(size, list | tuple) or len(size) != 2 or not all(type(v) is int and v > 0 for v in size):
        raise ValueError(
            f"image_size of a step of the history is {size!r}: its place on the screen is unknown; give the whole of "
            "what act() returned, or a line of text"
        )
    screen = Screen(*size)
    if step.get("action") is None:
        return f"(unreadable: {step.get('error', 'no action')})"
    reading = read([without_notes(step), *step.get("then", ())], screen, "px", clamp=True)
    if reading.error:
        raise ValueError(f"a step of the history is no action ({reading.message}); give what act() returned, or text")
    return "; ".join(describe(action, screen) for action in reading.actions)


def without_notes(step: Mapping) -> dict:
    return {key: value for key, value in step.items() if key not in ("thought", "image_size", "then", "repairs", "raw")}


def to_result(answer: Answer, screen: Screen) -> dict:
    """The JSON of an answer, as `Agent.act` gives it."""
    size = {"image_size": [screen.width_px, screen.height_px]}
    reading = read_turn(answer.turn, screen)
    error = answer.error or reading.error or ("" if reading.actions else "no_action")
    if error:
        return {"action": None, "thought": answer.turn.thought, "error": error, "raw": answer.text} | size
    first, *others = [to_seed(action, screen) for action in reading.actions]
    repairs = list(dict.fromkeys((*answer.repairs, *reading.repairs)))
    return {
        **first,
        "thought": answer.turn.thought or reading.thought,
        **size,
        **({"then": others} if others else {}),
        **({"repairs": repairs, "raw": answer.text} if repairs else {}),
    }


def load_agent(
    path: str | Path,
    *,
    checkpoint: str = "",
    endpoint: str = "",
    config: str | Path | None = None,
    format: str = "",  # noqa: A002 (the name that configs and command lines have)
    actions: Sequence[str] = (),
    temperature: float = TEMPERATURE,
    max_new_tokens: int = 0,
    device: str | None = None,
) -> Agent:
    """The agent of a run's folder, a checkpoint, merged weights, an adapter, a local model, a hub id or a server.

    `path`, `checkpoint`, `endpoint`, `config`, `format`, `device`: as of `load.load_policy`. `actions`: kinds that the
    tool offers, by default those of the config's browser world, else all; `max_new_tokens`: 0 for the config's.
    """
    if not temperature >= 0:
        raise ValueError(f"temperature is {temperature}: nothing can be drawn at that; give 0 (greedy) or more")
    overrides = [f"eval.temperature={temperature}", "eval.batch_size=1"]
    overrides += [f"eval.max_new_tokens={max_new_tokens}"] if max_new_tokens else []
    source = find(path, checkpoint=checkpoint, endpoint=endpoint, config=config, format=format, overrides=overrides)
    kinds = actions or source.config.eval.world.get("actions") or tuple(KINDS)
    return Agent(open_policy(source, device=device), kinds)
