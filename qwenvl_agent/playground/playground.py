"""Who may be asked, which worlds there are, and the missions in play.

A page names players and worlds by the names that the command line gave them, never by a path of its own, so that nobody
who reaches the page can have another file loaded. All work runs in one thread: models answer one after the other, and a
world may be bound to the thread that opened it (a live browser is).
"""

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from qwenvl_agent.computer import KINDS
from qwenvl_agent.computer.drawing import draw_action
from qwenvl_agent.config import Config
from qwenvl_agent.evaluation.suites import is_world
from qwenvl_agent.inference.agent import Agent
from qwenvl_agent.inference.load import Source, open_policy
from qwenvl_agent.playground.session import Player, Session
from qwenvl_agent.worlds import World, known_worlds, make_world

MAX_SESSIONS = 32
"""Missions in play at once; the one that was used longest ago is closed for another."""
MAX_MODELS = 2
"""Models in memory at once, as many as are compared; the one that was used longest ago goes for another."""
ORACLES = ("oracle", "noisy_oracle")

T = TypeVar("T")


@dataclass(frozen=True)
class WorldChoice:
    """A world that can be chosen: how it is found, its rules, and settings of its reference."""

    source: str
    rules: Mapping[str, object] = field(default_factory=dict)
    oracle: Mapping[str, object] = field(default_factory=dict)

    def make(self, rules: Mapping[str, object]) -> World:
        """Under these rules over its own."""
        return make_world(self.source, {**self.rules, **rules})


class Playground:
    """Models by name, worlds by name, and sessions by a key of whoever opened them. Call anything through `run`."""

    def __init__(self, sources: Mapping[str, Source], worlds: Mapping[str, WorldChoice], *, device: str | None = None):
        self.sources, self.worlds, self.device = dict(sources), dict(worlds), device
        self._models: OrderedDict[str, Player] = OrderedDict()
        self._sessions: OrderedDict[tuple[str, str], Session] = OrderedDict()
        self._baselines: dict[tuple[Session, str], Player] = {}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="playground")

    def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """The result of a call in the playground's own thread; its error is raised here."""
        return self._thread.submit(function, *arguments).result()

    def close(self) -> None:
        """Close all missions, and end the thread."""
        for key in list(self._sessions):
            self.run(self.leave, *key)
        self._thread.shutdown()

    # missions

    def start(self, user: str, place: str, world: str, seed: float, rules: str = "") -> Session:
        """Open a mission of that world and seed at a place of the user's (such as one side of a comparison) and close
        the one that was there. `rules`: a JSON object over the world's own."""
        made = self.world_choice(world).make(read_rules(rules))
        session = Session(made, check_seed(seed), self.worlds[world].oracle)
        self.leave(user, place)
        while len(self._sessions) >= MAX_SESSIONS:
            self.leave(*next(iter(self._sessions)))
        self._sessions[user, place] = session
        return session

    def session(self, user: str, place: str) -> Session:
        """The mission in play there."""
        if (user, place) not in self._sessions:
            raise ValueError("no mission is in play here (one that nobody used for long is closed): start one")
        self._sessions.move_to_end((user, place))
        return self._sessions[user, place]

    def leave(self, user: str, place: str | None = None) -> None:
        """Close the user's mission at that place, or all of theirs."""
        for key in [key for key in self._sessions if key[0] == user and place in (None, key[1])]:
            session = self._sessions.pop(key)
            self._baselines = {k: player for k, player in self._baselines.items() if k[0] is not session}
            session.close()

    # players

    def player_names(self, world: str) -> list[str]:
        """Models first, then the world's own policies."""
        made = self.world_choice(world).make({})
        own = [*(ORACLES if made.make_oracle() is not None else ()), "random", *made.make_baselines()]
        return [*self.sources, *dict.fromkeys(own)]

    def player(self, name: str, session: Session) -> Player:
        """A model, loaded if it is not there, or a policy of the session's world."""
        if name in self.sources:
            return self.model(name)
        if (session, name) not in self._baselines:
            self._baselines[session, name] = Player(name, session.world.make_policy(name))
        return self._baselines[session, name]

    def model(self, name: str) -> Player:
        """The model of that name; ValueError if none was named so."""
        if name not in self.sources:
            raise ValueError(
                f"{name!r} is no model here (there is {', '.join(self.sources) or 'none'}): name it with --run or --model "
                "when the playground is started"
            )
        if name not in self._models:
            while len(self._models) >= MAX_MODELS:
                self._models.popitem(last=False)
            self._models[name] = open_player(name, self.sources[name], self.device)
        self._models.move_to_end(name)
        return self._models[name]

    def world_choice(self, name: str) -> WorldChoice:
        if name not in self.worlds:
            raise ValueError(
                f"world {name!r} is none of {', '.join(self.worlds)}: name it with --world when the playground is started"
            )
        return self.worlds[name]

    # screenshots

    def click(self, name: str, image: Image.Image | None, instruction: str) -> tuple[Image.Image, dict]:
        """What a model would do on a screenshot: the picture with its places drawn, and `Agent.act`'s answer."""
        if image is None:
            raise ValueError("there is no screenshot: nothing can be asked about; upload one")
        agent = Agent(self.model(name).policy, kinds_of(self.sources[name].config))
        result = agent.act(image, instruction)
        return draw_action(image, result), result

    def screen_models(self) -> list[str]:
        """Models, those that learned screens first."""
        return sorted(self.sources, key=lambda name: not learned_screens(self.sources[name].config))


def open_player(name: str, source: Source, device: str | None) -> Player:
    """One answer at a time, in the model's own settings."""
    one = replace(source.config, eval=replace(source.config.eval, batch_size=1))
    policy = open_policy(replace(source, config=one), device=device)
    return Player(name, policy, source.config.prompt.history_steps, policy.collator)


def kinds_of(config: Config) -> tuple[str, ...]:
    return tuple(config.eval.world.get("actions") or KINDS)


def learned_screens(config: Config) -> bool:
    return any(source.kind == "computer" for source in config.data.sources)


def find_worlds(
    sources: Mapping[str, Source], named: Sequence[str] = (), rules: Mapping[str, object] | None = None
) -> dict[str, WorldChoice]:
    """Those named, under `rules`; then the ones that the models learned, as they learned them; then those of the package."""
    choices = {name: WorldChoice(name, rules or {}) for name in named}
    for name, source in sources.items():
        suite = source.config.eval.suite
        if is_world(suite):
            choices[f"{suite}, as {name} learned it"] = WorldChoice(
                suite, dict(source.config.eval.world), recorded_oracle(source.config, suite)
            )
    return choices | {name: WorldChoice(name) for name in known_worlds() if name not in choices}


def recorded_oracle(config: Config, world: str) -> dict:
    """Settings of the oracle that the data of a world was recorded with; {} if the data is not there or does not say."""
    for source in config.data.sources:
        path = Path(source.path)
        manifest = (path if path.is_dir() else path.parent) / "manifest.json"
        if manifest.is_file():
            about = json.loads(manifest.read_text(encoding="utf-8"))
            if about.get("world") == world and about.get("oracle"):
                return about["oracle"]
    return {}


def read_rules(text: str) -> dict:
    """A JSON object; "" is none."""
    try:
        rules = json.loads(text or "{}")
    except ValueError as error:
        raise ValueError(f'the rules are no JSON ({error}): write an object, such as {{"width": 30}}') from None
    if not isinstance(rules, dict):
        raise ValueError(f'the rules are {text!r}, no object: write one, such as {{"width": 30}}')
    return rules


def check_seed(seed: object) -> int:
    if not isinstance(seed, int | float) or isinstance(seed, bool) or seed != int(seed) or seed < 0:
        raise ValueError(f"seed {seed!r}: no mission has it; give a whole number from 0 on")
    return int(seed)
