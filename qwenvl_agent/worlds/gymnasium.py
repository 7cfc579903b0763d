"""Any Gymnasium environment with discrete actions and a picture is a world in a few lines.

    def make_world(size=8):
        return GymnasiumWorld(
            name="frozen_lake",
            make=lambda seed: gymnasium.make(
                "FrozenLake-v1", desc=generate_random_map(size, seed=seed), is_slippery=False, render_mode="rgb_array"
            ),
            actions=["left", "down", "right", "up"],
            mission="Reach the gift; do not fall into a hole.",
            success=lambda episode: episode.total_reward > 0,
            max_turns=40,
            rules={"size": size},
        )

That is all that must be said. The rest is optional: an oracle, what of the environment's state the agent is told, how
the picture is cut and scaled, a notepad. `python -m qwenvl_agent.worlds.check world.py:make_world` says what is amiss.

The agent calls one tool, `act(actions=["right", "right"])`, or `act(action="right")` if a turn has one action; with
`tool=""` every action is a tool of its own, without arguments. The text beside the picture, from which an agent without
history goes on:

    Mission: Reach the gift; do not fall into a hole.
    Step: 3/40
    Last turn: right, right (position [2, 3])
"""

import inspect
import itertools
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import gymnasium
import numpy as np
from PIL import Image

from qwenvl_agent.schema import (
    Answer,
    Observation,
    Picture,
    Policy,
    Request,
    Tool,
    ToolCall,
    ToolResult,
    Turn,
    tool_named,
)
from qwenvl_agent.tool_schema import argument_error
from qwenvl_agent.worlds.world import Labels, SeedSets, World

MAX_NOTEPAD_CHARS = 2000
MAX_LINE_CHARS = 200
"""Of what the agent itself called, shown once more."""
NOTEPAD = Tool(
    "update_notepad",
    "Replace the whole notepad.",
    {
        "type": "object",
        "properties": {"content": {"type": "string", "maxLength": MAX_NOTEPAD_CHARS}},
        "required": ["content"],
        "additionalProperties": False,
    },
)


@dataclass
class Episode:
    """An episode under way: what the rules of a world (success, state, oracle ...) are given."""

    env: gymnasium.Env
    """Gymnasium's, as `make` gave it; `env.unwrapped` is the game itself."""
    seed: int
    observation: object = None
    """Gymnasium's own, after the last action; `info` with it."""
    info: Mapping = field(default_factory=dict)
    reward: float = 0.0
    """Of the last action."""
    total_reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    turn: int = 0
    """Turns that are over."""
    actions: list = field(default_factory=list)
    """All that were done, as the agent names them."""
    memory: dict = field(default_factory=dict)
    """For an oracle that plans once and goes on."""

    @property
    def game(self):
        """The environment without its wrappers."""
        return self.env.unwrapped

    def step(self, named: object, action: object) -> None:
        """One action of Gymnasium's."""
        self.observation, reward, self.terminated, self.truncated, self.info = self.env.step(action)
        self.reward = float(reward)
        self.total_reward += self.reward
        self.actions.append(named)


@dataclass(kw_only=True, eq=False)
class GymnasiumWorld(World):
    """A world around Gymnasium's environments. Only the fields without a default must be given.

    A rule is a function of the `Episode`. Subclass it for metrics or a judge of your own.
    """

    name: str
    make: Callable[[int], gymnasium.Env]
    """seed -> a new environment, with render_mode="rgb_array"; it is reset with that seed, played once and closed."""
    actions: "Sequence[str] | Mapping[str, object]"
    """Names of the actions of a Discrete space, in its order; or name -> action, for some of them or any other space; or
    of a MultiDiscrete space argument -> names of its choices: {"direction": ["up", "down"], "steps": ["0", "1", "2"]}."""
    success: Callable[[Episode], bool]
    max_turns: int

    mission: str | Callable[[Episode], str] = ""
    """Fixed, or a rule; empty: `mission` of the environment's observation or info."""
    system_prompt: str = "You play a game. The picture shows what you see now. Call the tool to act."
    tool: str = "act"
    """The one tool's name; empty: each action is a tool of its own (not of a MultiDiscrete space)."""
    descriptions: Mapping[str, str] = field(default_factory=dict)
    """Of the tools, by name."""
    max_actions: int = 1
    """In one turn; they are done in order until the episode ends."""
    notepad: bool = False
    """A second tool replaces a text that every later observation shows."""

    state: Callable[[Episode], Mapping[str, object]] | None = None
    """JSON values that tell what actions do: those that changed stand in a call's result, and a call is effective if one
    did. A `position` of whole numbers is recorded as the player's."""
    legal: Callable[[Episode, object], bool] | None = None
    """Whether the state allows an action, by its name: else it is refused, though it is done all the same."""
    text: Callable[[Episode], str] | None = None
    """Further lines beside the picture."""
    goals: Callable[[Episode], Mapping[str, bool]] | None = None
    """Parts of the mission, and which of them are reached; by default the one goal is success."""
    harm: Callable[[Episode], Sequence[str]] | None = None
    """What was done that cannot be made good, by name."""
    optimal_turns: Callable[[Episode], int] | None = None
    """Of a player who knows the world; asked once, at the start."""

    crop: tuple[int, int, int, int] | None = None
    """left, top, right, bottom of the part of the rendered picture that is shown, px."""
    size: tuple[int, int] | None = None
    """Width and height, px, to which the picture is scaled, each pixel the mean of what it covers."""

    oracle: Callable | None = None
    """oracle(episode) -> a Turn, or (thought, actions); further arguments of it are its settings."""
    oracle_has_memory: bool = False
    """Whether it uses `Episode.memory` of its own turns; else it may be asked beside any other player, as a reference."""
    oracle_success: float = 1.0
    is_random: bool = True
    rules: Mapping[str, object] = field(default_factory=dict)
    seeds: SeedSets = field(default_factory=SeedSets)
    labels: Labels = field(default_factory=Labels)

    def __post_init__(self):
        self.vocabulary = _vocabulary(self)
        self.tools = self.vocabulary.tools + ((NOTEPAD,) if self.notepad else ())

    def make_env(self) -> "GymnasiumEnv":
        return GymnasiumEnv(self)

    def make_oracle(self, **settings: object) -> "Policy | None":
        known = list(inspect.signature(self.oracle).parameters)[1:] if self.oracle else []
        unknown = sorted(set(settings) - set(known))
        if unknown:
            raise ValueError(
                f"the oracle of world {self.name} has no setting {', '.join(unknown)}, so it would change nothing; "
                f"it has {', '.join(known) or 'none'}"
            )
        return FunctionOracle(self, settings) if self.oracle else None

    def make_reference(self, **settings: object) -> Policy | None:
        return None if self.oracle_has_memory else self.make_oracle(**settings)

    def noise_turn(self, tools: Sequence[Tool], rng: random.Random) -> Turn:
        """One random action."""
        named, _ = rng.choice(self.vocabulary.all_actions())
        return self.turn("", [named])

    def turn(self, thought: str, actions: Sequence) -> Turn:
        """The turn that does these actions, as an agent names them."""
        return Turn(thought, self.vocabulary.write(actions))


@dataclass(frozen=True)
class LiveObservation(Observation):
    """An observation with the way back to its episode, which only an oracle takes; it compares and prints without it."""

    episode: Episode | None = field(default=None, compare=False, repr=False)


class FunctionOracle:
    """A policy of a function that looks into the environment."""

    def __init__(self, world: GymnasiumWorld, settings: Mapping[str, object]):
        self.world, self.settings = world, settings

    def act(self, requests: Sequence[Request]) -> list[Answer]:
        return [Answer(self.turn(request.observation)) for request in requests]

    def turn(self, observation: Observation) -> Turn:
        episode = getattr(observation, "episode", None)
        if episode is None:
            raise ValueError(
                f"the oracle of world {self.world.name} looks into the environment, and this observation is without one: it "
                "answers only while an episode is played"
            )
        answer = self.world.oracle(episode, **self.settings)
        return answer if isinstance(answer, Turn) else self.world.turn(*answer)


class GymnasiumEnv:
    """One episode at a time; `close` closes Gymnasium's environment. What `info` holds: `worlds.world`, and `reward`.

    `end_reason`: done (Gymnasium's terminated), truncated (its own limit), max_turns.
    """

    def __init__(self, world: GymnasiumWorld):
        self.world = world
        self.tools, self.system_prompt = world.tools, world.system_prompt
        self.episode: Episode | None = None
        self.end_reason = "not begun"

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Observation, dict]:
        """`options={"notepad": text}` brings a notepad along."""
        self.close()
        seed = random.randrange(2**31) if seed is None else seed
        env = self.world.make(seed)
        _check_env(env, self.world)
        self.episode = Episode(env, seed)
        self.episode.observation, self.episode.info = env.reset(seed=seed)
        self.end_reason, self.last_turn = "", "(none)"
        self.notepad = str((options or {}).get("notepad", ""))
        mission = self.world.mission
        self.mission = mission(self.episode) if callable(mission) else mission or _own_mission(self.episode)
        self.optimal_turns = self.world.optimal_turns and self.world.optimal_turns(self.episode)
        return self.observation(), self.info((), [])

    def close(self) -> None:
        if self.episode is not None:
            self.episode.env.close()
            self.episode, self.end_reason = None, "closed"

    def step(self, turn: Turn) -> tuple[Observation, float, bool, bool, dict]:
        if self.end_reason:
            raise ValueError(f"the episode has ended ({self.end_reason}): a step has no meaning; call reset first")
        episode = self.episode
        before, self.num_left = episode.total_reward, self.world.max_actions
        results, flags, past = [], [], []
        for call in turn.tool_calls:
            if episode.terminated or episode.truncated:
                break
            result, legal, effective = self.run_call(call)
            results.append(ToolResult(call.name, result))
            flags.append({"name": call.name, "legal": legal, "effective": effective})
            past.append(_line(call, result))
        if not turn.tool_calls:
            results.append(ToolResult("", {"status": "no_tool_call"}))
        self.last_turn = "; ".join(past) or "no tool was called"
        episode.turn += 1
        is_late = episode.turn >= self.world.max_turns
        reasons = (("done", episode.terminated), ("truncated", episode.truncated), ("max_turns", is_late))
        self.end_reason = next((reason for reason, holds in reasons if holds), "")
        is_truncated = self.end_reason in ("truncated", "max_turns")
        reward = episode.total_reward - before
        return self.observation(), reward, episode.terminated, is_truncated, self.info(tuple(results), flags)

    def run_call(self, call: ToolCall) -> tuple[dict, bool | None, bool | None]:
        """The result of a call, whether it was legal, and whether it changed anything (None: not known)."""
        tool = tool_named(self.tools, call.name)
        if tool is None:
            return {"status": "unknown_tool", "name": call.name}, False, False
        error = argument_error(tool.parameters, call.arguments)
        if error:
            return {"status": "invalid_arguments", "error": error}, False, False
        if tool is NOTEPAD:
            is_new, self.notepad = call.arguments["content"] != self.notepad, call.arguments["content"]
            return {"status": "updated"}, True, is_new
        return self.run_actions(self.world.vocabulary.read(call))

    def run_actions(self, actions: list) -> tuple[dict, bool | None, bool | None]:
        world, episode = self.world, self.episode
        if len(actions) > self.num_left:
            error = f"only {world.max_actions} actions of a turn are done"
            return {"status": "too_many_actions", "error": error}, False, False
        self.num_left -= len(actions)
        legal, num_done, before = (None if world.legal is None else True), 0, self.state()
        for name, action in actions:
            legal = legal and bool(world.legal(episode, name))
            episode.step(name, action)
            num_done += 1
            if episode.terminated or episode.truncated:
                break
        after = self.state()
        result = {"status": "ok"} | ({"actions_done": num_done} if num_done < len(actions) else {})
        if world.state is None:
            return result, legal, None
        changed = {key: value for key, value in after.items() if before.get(key) != value}
        return result | {"changed": changed}, legal, bool(changed)

    def state(self) -> dict:
        """By the world's rule, as JSON values."""
        return json.loads(json.dumps(self.world.state(self.episode), default=_plain)) if self.world.state else {}

    def observation(self) -> LiveObservation:
        world, episode = self.world, self.episode
        step = min(episode.turn + 1, world.max_turns)  # after the last turn there is no further step
        lines = [f"Mission: {' '.join(self.mission.split())}", f"Step: {step}/{world.max_turns}"]
        lines += [world.text(episode)] if world.text else []
        lines += [f"Last turn: {self.last_turn}"]
        lines += [f"Notepad:\n{self.notepad or '(empty)'}"] if world.notepad else []
        return LiveObservation("\n".join(lines), (Picture.from_image(self.picture()),), episode)

    def picture(self) -> Image.Image:
        """What the environment renders, cut and scaled by the world's rules."""
        pixels = self.episode.env.render()
        if not isinstance(pixels, np.ndarray) or pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
            raise ValueError(
                f"world {self.world.name}: render() gave {_shape(pixels)}, no picture of (height, width, 3) bytes: there is "
                'nothing to look at; make the environment with render_mode="rgb_array"'
            )
        image = Image.fromarray(pixels)
        image = image.crop(self.world.crop) if self.world.crop else image
        return image.resize(self.world.size, Image.Resampling.BOX) if self.world.size else image

    def info(self, results: tuple[ToolResult, ...], flags: list[dict]) -> dict:
        world, episode = self.world, self.episode
        success = bool(world.success(episode))
        goals = dict(world.goals(episode)) if world.goals else {"success": success}
        info = {
            "results": results,
            "calls": flags,
            "mission": self.mission,
            "goals": list(goals),
            "reached": [name for name, is_reached in goals.items() if is_reached],
            "harm": list(world.harm(episode)) if world.harm else [],
            "reward": episode.total_reward,
            "end_reason": self.end_reason,
            "success": success,
        }
        position = self.state().get("position")
        info |= {} if self.optimal_turns is None else {"optimal_turns": int(self.optimal_turns)}
        return info | ({} if position is None else {"position": position})


def _check_env(env: gymnasium.Env, world: GymnasiumWorld) -> None:
    """ValueError for an environment without pictures, or whose actions are not those that the world names."""
    if env.render_mode != "rgb_array":
        raise ValueError(
            f"world {world.name}: its environment has render_mode {env.render_mode!r}, so there is nothing to look at; make "
            'it with render_mode="rgb_array"'
        )
    for named, action in world.vocabulary.all_actions():
        if not env.action_space.contains(action):
            raise ValueError(
                f"world {world.name}: action {named!r} is {action!r} to the environment, which is not in {env.action_space}: "
                "it could not be done; name the space's actions in their order, or give name -> action"
            )
    num_named, num_known = world.vocabulary.num_listed, getattr(env.action_space, "n", None)
    if num_named and num_known is not None and num_named != num_known:
        raise ValueError(
            f"world {world.name} names {num_named} actions of {num_known}: which are meant is unknown; name all in their "
            "order, or give name -> action for some"
        )


def _own_mission(episode: Episode) -> str:
    for values in (episode.observation, episode.info):
        if isinstance(values, Mapping) and isinstance(values.get("mission"), str):
            return values["mission"]
    raise ValueError(
        "neither the environment's observation nor its info has a mission, so an agent would not know what to do; give the "
        "world's mission, a text or a rule"
    )


@dataclass(frozen=True)
class _Vocabulary:
    """How the environment's actions are called: tools, and both ways between a call and its actions."""

    tools: tuple[Tool, ...]
    read: Callable[[ToolCall], list[tuple[object, object]]]
    """The actions of a call that fits its schema: as the agent names them, and as the environment takes them."""
    write: Callable[[Sequence], tuple[ToolCall, ...]]
    all_actions: Callable[[], list[tuple[object, object]]]
    num_listed: int = 0
    """Names given in the space's order, all of which must be there."""


def _vocabulary(world: GymnasiumWorld) -> _Vocabulary:
    actions = world.actions
    is_mapping = isinstance(actions, Mapping)
    if not actions or isinstance(actions, str) or world.max_actions < 1:
        raise ValueError(
            f"world {world.name} has actions {actions!r}, at most {world.max_actions} a turn: nothing could be done in it; "
            "list the names of its actions"
        )
    if is_mapping and all(isinstance(choices, list | tuple) and _are_names(choices) for choices in actions.values()):
        return _named_arguments(world, actions)
    by_name = dict(actions) if is_mapping else {name: number for number, name in enumerate(actions)}
    num_listed = 0 if is_mapping else len(actions)
    return (_one_tool if world.tool else _tool_each)(world, by_name, num_listed)


def _are_names(choices: Sequence) -> bool:
    return bool(choices) and all(isinstance(choice, str) for choice in choices)


def _one_tool(world: GymnasiumWorld, by_name: Mapping[str, object], num_listed: int) -> _Vocabulary:
    """act(action=name), or act(actions=[name, ...])."""
    choice = {"type": "string", "enum": list(by_name)}
    if world.max_actions == 1:
        properties = {"action": choice}
        description = "Do an action."
    else:
        properties = {"actions": {"type": "array", "minItems": 1, "maxItems": world.max_actions, "items": choice}}
        description = f"Do 1 to {world.max_actions} actions in order."

    def read(call: ToolCall) -> list:
        names = [call.arguments["action"]] if world.max_actions == 1 else call.arguments["actions"]
        return [(name, by_name[name]) for name in names]

    def write(names: Sequence) -> tuple[ToolCall, ...]:
        if world.max_actions == 1:
            return tuple(ToolCall(world.tool, {"action": name}) for name in names)
        return (ToolCall(world.tool, {"actions": list(names)}),)

    return _Vocabulary(
        (_tool(world, world.tool, description, properties),), read, write, lambda: list(by_name.items()), num_listed
    )


def _tool_each(world: GymnasiumWorld, by_name: Mapping[str, object], num_listed: int) -> _Vocabulary:
    """left(), right(): as many calls as a turn may have actions."""
    return _Vocabulary(
        tuple(_tool(world, name, f"Do {name}.", {}) for name in by_name),
        lambda call: [(call.name, by_name[call.name])],
        lambda names: tuple(ToolCall(name, {}) for name in names),
        lambda: list(by_name.items()),
        num_listed,
    )


def _named_arguments(world: GymnasiumWorld, choices: Mapping[str, Sequence[str]]) -> _Vocabulary:
    """act(direction="up", steps="2"), for a MultiDiscrete space with a number for each argument."""
    if not world.tool:
        raise ValueError(
            f"world {world.name} has actions of several arguments and no tool: they cannot be tools of their own; name one"
        )
    properties = {name: {"type": "string", "enum": list(values)} for name, values in choices.items()}

    def action(named: Mapping[str, str]) -> np.ndarray:
        return np.array([choices[name].index(named[name]) for name in choices])

    def all_actions() -> list:
        every = (dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values()))
        return [(named, action(named)) for named in every]

    return _Vocabulary(
        (_tool(world, world.tool, "Do an action.", properties),),
        lambda call: [(call.arguments, action(call.arguments))],
        lambda actions: tuple(ToolCall(world.tool, dict(named)) for named in actions),
        all_actions,
    )


def _tool(world: GymnasiumWorld, name: str, description: str, properties: dict) -> Tool:
    parameters = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return Tool(name, world.descriptions.get(name, description), parameters)


def _line(call: ToolCall, result: dict) -> str:
    """A call and what came of it, for people and models."""
    said = ", ".join(_words(value) for value in call.arguments.values() if call.name != NOTEPAD.name) or call.name
    said = said if len(said) <= MAX_LINE_CHARS else f"{said[:MAX_LINE_CHARS]}..."
    if result["status"] not in ("ok", "updated"):
        return f"{said} ({result['status']})"
    if "changed" not in result:
        return said
    changed = ", ".join(f"{key} {json.dumps(value, ensure_ascii=False)}" for key, value in result["changed"].items())
    return f"{said} ({changed or 'nothing changed'})"


def _words(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _plain(value: object) -> object:
    """numpy's scalars and arrays as JSON's."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"state holds {value!r}, which JSON has not: no record could keep it; make it a number or text")


def _shape(pixels: object) -> str:
    if isinstance(pixels, np.ndarray):
        return f"an array {pixels.shape} of {pixels.dtype}"
    return type(pixels).__name__
