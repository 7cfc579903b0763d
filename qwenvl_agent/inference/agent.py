"""A trained agent in three lines: a screenshot and an instruction in, an action in the screenshot's pixels out.

    from qwenvl_agent import load_agent

    agent = load_agent("runs/computer_use_2b")
    agent.act("browser.png", "download the picture of the kitten")
    # {"action": "click", "x": 300, "y": 400, "thought": "The kitten is on the left.", "image_size": [1280, 720]}

Asked is what training asks (`evaluation.screens.screen_request`), so that a run is asked as it was taught.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from qwenvl_agent.computer import KINDS
from qwenvl_agent.computer.context import describe
from qwenvl_agent.computer.dialects import read, read_turn, to_seed
from qwenvl_agent.config import FORMAT_NAMES, Config, build_config, check_choice, load_config
from qwenvl_agent.coordinates import Screen
from qwenvl_agent.evaluation.screens import screen_request
from qwenvl_agent.formats import FORMATS
from qwenvl_agent.images import read_rgb
from qwenvl_agent.schema import Answer, Picture, Policy

if TYPE_CHECKING:
    from PIL import Image

    from qwenvl_agent.model.build import Processor

AGENT_CONFIG = "qwenvl_agent.json"
"""What `scripts/merge_adapter.py` leaves beside merged weights: the run's config."""
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
    reading = None if answer.error else read_turn(answer.turn, screen)
    if reading is None or reading.error or not reading.actions:
        error = answer.error or reading.error or "no_action"
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


# loading


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode with the config and processor that go with it."""

    config: Config
    model: object
    processor: "Processor"


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
    """The agent of a run's folder, a checkpoint, merged weights, an adapter, a local model or a hub id.

    A run is loaded with its own settings, merged weights with those that lie beside them; for anything else `config`
    gives picture budget and format. `checkpoint` (of a run): best, last or step_000500. `endpoint`: the URL of an
    OpenAI-compatible server, which has `path` as its model. `actions`: kinds that the tool offers, by default those of
    the config's browser world, else all; `max_new_tokens`: 0 for the config's.
    """
    if not temperature >= 0:
        raise ValueError(f"temperature is {temperature}: nothing can be drawn at that; give 0 (greedy) or more")
    if format:
        check_choice("format", format, FORMAT_NAMES)
    if endpoint:
        policy, settings = served_policy(endpoint, str(path), config, format, temperature, max_new_tokens)
    else:
        loaded = load_model(path, checkpoint=checkpoint, config=config, format=format, device=device)
        settings = loaded.config
        policy = local_policy(replace(loaded, config=with_sampling(settings, temperature, max_new_tokens)))
    return Agent(policy, actions or settings.eval.world.get("actions") or tuple(KINDS))


def load_model(
    path: str | Path,
    *,
    checkpoint: str = "",
    config: str | Path | None = None,
    format: str = "",  # noqa: A002
    device: str | None = None,
) -> LoadedModel:
    """`load_agent`'s model, without a policy around it."""
    from qwenvl_agent.model.build import load_run

    run = run_of(Path(path))
    if run is None and checkpoint:
        raise ValueError(f"checkpoint {checkpoint!r} of {path}, which is no run: there is none; leave it out")
    if run is None:
        settings = with_format(settings_of(str(path), config), format)
        return LoadedModel(settings, *load_untrained(str(path), settings, device or default_device()))
    if config or format:
        raise ValueError(
            f"{path} is a run, which has its own settings: others would not fit; leave config and format out"
        )
    return LoadedModel(*load_run(run / "checkpoints" / checkpoint if checkpoint else run, device or default_device()))


def run_of(path: Path) -> Path | None:
    """The run or checkpoint that a folder is, or is the weights of; None if it is neither."""
    if (path / "checkpoints").is_dir() or is_checkpoint(path):
        return path
    return path.parent if path.name == "model" and is_checkpoint(path.parent) else None


def is_checkpoint(path: Path) -> bool:
    return (path / "model").is_dir() and (path / "config.json").is_file()


def settings_of(path: str, config: str | Path | None) -> Config:
    """Those of the config file, of merged weights, or defaults; the model's path is always `path`."""
    beside = Path(path) / AGENT_CONFIG
    if config or beside.is_file():
        settings = load_config(config or beside)
        # Merged weights are plain ones, whatever way they were trained in.
        method = "lora" if not config else settings.model.method
        return replace(settings, model=replace(settings.model, path=path, method=method))
    return build_config({"name": "agent", "model": {"path": path, "method": "lora"}})


def with_format(config: Config, name: str) -> Config:
    return replace(config, prompt=replace(config.prompt, format=name)) if name else config


def with_sampling(config: Config, temperature: float, max_new_tokens: int) -> Config:
    tokens = max_new_tokens or config.eval.max_new_tokens
    return replace(config, eval=replace(config.eval, temperature=temperature, max_new_tokens=tokens, batch_size=1))


def load_untrained(path: str, config: Config, device: str) -> tuple[object, "Processor"]:
    """(model, processor) of published or merged weights, or of an adapter on its base, in the config's precision."""
    from qwenvl_agent.model.build import bind_precision, build_processor, load_base
    from qwenvl_agent.model.precision import announce, choose

    base = base_of_adapter(path)
    # Nothing trains, so the weights need no float32 masters.
    method = "lora" if config.model.method == "full" else config.model.method
    precision = choose(replace(config.model, path=base or path, method=method), device)
    announce(precision.line)
    model_config = precision.model
    processor = build_processor(model_config, config.vision)
    model = load_base(model_config, device, None)
    if base:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, path)
    model = model.eval().requires_grad_(False)
    bind_precision(model, model_config, device)
    return model, processor


def base_of_adapter(path: str) -> str:
    """The base of the adapter that a folder or hub id is; "" if it is none."""
    from qwenvl_agent.model.build import checkpoint_path, load_model_config

    folder = Path(checkpoint_path(path))
    if folder.is_dir() and not (folder / "adapter_config.json").is_file():
        return ""
    if not folder.is_dir():
        try:
            load_model_config(path)
            return ""
        except ValueError as error:
            no_model = error  # unless it is an adapter's id
    from peft import PeftConfig  # here, because it is slow and loud

    try:
        base = PeftConfig.from_pretrained(path).base_model_name_or_path
    except (ValueError, OSError, TypeError):
        if folder.is_dir():
            raise ValueError(
                f"{folder}/adapter_config.json cannot be read: its adapter fits nothing; save it again"
            ) from None
        raise no_model from None
    if not base:
        raise ValueError(f"adapter {path!r} does not name its base: it fits nothing; add base_model_name_or_path to it")
    return base


def local_policy(loaded: LoadedModel, **options) -> Policy:
    """Of the model in this process; `options` are those of `ModelPolicy`."""
    from qwenvl_agent.inference.policy import ModelPolicy

    collator = build_collator(loaded.processor, loaded.config)
    return ModelPolicy(loaded.model, loaded.processor, collator, collator.fmt, loaded.config.eval, **options)


def endpoint_policy(url: str, model: str, config: Config, processor: "Processor", **options) -> Policy:
    """Of the served model, after one request to see whether it answers; `options` are those of `EndpointPolicy`."""
    from qwenvl_agent.inference.endpoint import EndpointPolicy

    collator = build_collator(processor, config)
    key = os.environ.get("ENDPOINT_API_KEY", "")
    policy = EndpointPolicy(url, model, collator, collator.fmt, config.eval, api_key=key, **options)
    policy.check()
    return policy


def served_policy(
    url: str, model: str, config: str | Path | None, format_name: str, temperature: float, max_new_tokens: int
) -> tuple[Policy, Config]:
    """Prompts are made with the tokenizer and picture budget of the config, else of the model's own folder or id."""
    from qwenvl_agent.model.build import build_processor

    settings = with_format(load_config(config) if config else settings_of(model, None), format_name)
    settings = with_sampling(settings, temperature, max_new_tokens)
    return endpoint_policy(url, model, settings, build_processor(settings.model, settings.vision)), settings


def build_collator(processor: "Processor", config: Config):
    from qwenvl_agent.data.collator import Collator

    return Collator(processor, FORMATS[config.prompt.format], config.prompt, config.vision, config.train)


def default_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
