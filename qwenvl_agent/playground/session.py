"""One mission in play, a turn at a time: what is seen, who is asked, and what is then played.

    session = Session(world, seed=2_000_000)
    answer = session.ask(player)         # nothing is played by asking
    session.play(answer, player.name)    # or by_hand(...), or the reference's turn: session.play_best()

It is `evaluation.rollout`'s own episode, so that what is played here is what an evaluation would record.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from PIL import Image

from qwenvl_agent.evaluation.episodes import judge
from qwenvl_agent.evaluation.rollout import RunningEpisode, step_record
from qwenvl_agent.records import EpisodeRecord, StepRecord
from qwenvl_agent.schema import NO_ANSWER, Answer, Observation, Picture, Policy, Request, ToolCall, Turn, tool_named
from qwenvl_agent.tool_schema import argument_error
from qwenvl_agent.worlds import World
from qwenvl_agent.worlds.world import Mark

if TYPE_CHECKING:
    from qwenvl_agent.data.collator import Collator

MAX_HISTORY = 64
"""Steps that are kept for players whose prompts show earlier ones."""
MAX_PARSE_ERRORS = 3
"""Unreadable answers in a row that end a mission, as in an evaluation."""


@dataclass(frozen=True)
class Player:
    """Who can be asked for a turn."""

    name: str
    policy: Policy
    history_steps: int = 0
    """Earlier steps that its prompts show."""
    collator: "Collator | None" = None
    """Of a model: what makes its prompts."""


class Session:
    """A mission of one world and seed. A world may be bound to the thread that opened it: use a session in one thread.

    A ValueError says what cannot be done now, such as to play on in a mission that is over.
    """

    def __init__(self, world: World, seed: int, oracle: Mapping[str, object] | None = None):
        """`oracle`: settings of the reference, if not the world's own."""
        self.world = world
        self.reference = world.make_reference(**(oracle or {}))
        self._folder = TemporaryDirectory(prefix="qwenvl_agent_play_")
        self.directory = Path(self._folder.name)
        """Where the pictures of the steps lie, as `StepRecord.picture` names them."""
        self._episode = RunningEpisode(world.make_env, seed, MAX_HISTORY, MAX_PARSE_ERRORS, self.directory / "pictures")
        self.played_by: list[str] = []
        """Whose each turn was."""
        self._asked: dict[str, Answer] = {}
        self._best: Turn | None = None
        self._is_best_asked = False

    def close(self) -> None:
        self._episode.close()
        self._folder.cleanup()

    # what is there

    @property
    def record(self) -> EpisodeRecord:
        """As it has grown until now, each call judged."""
        return judge(self.world, self._episode.record)

    @property
    def is_over(self) -> bool:
        return bool(self._episode.record.end_reason)

    @property
    def observation(self) -> Observation | None:
        """What is seen now; None of a world that crashed before anything was."""
        return getattr(self._episode, "observation", None)

    def image(self) -> Image.Image | None:
        """The picture that is seen now, if there is one."""
        seen = self.observation
        return seen.pictures[-1].open() if seen and seen.pictures else None

    def tools(self) -> tuple:
        return self._request().tools

    # asking

    def best(self) -> Turn | None:
        """The turn of the world's reference here; None where there is none, or the mission is over."""
        if self.reference is None or self.is_over:
            return None
        if not self._is_best_asked:  # once a state, as in an evaluation
            self._best, self._is_best_asked = self.reference.act([self._request()])[0].turn, True
        return self._best

    def ask(self, player: Player) -> Answer:
        """The player's answer to what is seen now: asked once a state, and played by nobody yet."""
        if player.name not in self._asked:
            self._asked[player.name] = answered(player, self.request_of(player))
        return self._asked[player.name]

    def ask_about(self, player: Player, text: str, image: Image.Image | None) -> Answer:
        """The player's answer to another context or picture than the world's: nothing is played or kept."""
        pictures = () if image is None else (Picture.from_image(image),)
        return answered(player, replace(self.request_of(player), observation=Observation(text, pictures)))

    def request_of(self, player: Player) -> Request:
        """What the player is asked now, with as many earlier steps as its prompts show."""
        request = self._request()
        return replace(request, history=request.history[len(request.history) - player.history_steps :])

    def marks(self, answer: Answer) -> list[Mark]:
        """Places of the picture seen now to which the answer's calls point, if the world says such places."""
        seen = self.observation
        return list(self.world.marks(step_record(seen, answer, self.tools(), None))) if seen else []

    def is_best(self, turn: Turn) -> bool | None:
        """Whether a turn comes to the same as the reference's; None if nothing is known."""
        best = self.best()
        if best is None or not turn.tool_calls:
            return None
        calls, wanted = ([{"name": c.name, "arguments": c.arguments} for c in t.tool_calls] for t in (turn, best))
        return self.world.is_equivalent(calls, wanted)

    # playing

    def play(self, answer: Answer, whose: str) -> StepRecord:
        """Play a turn, and give what was recorded of it, with what the world answered."""
        self._refuse_if_over()
        best = self.best()
        before = len(self._episode.record.steps)
        self._episode.take(answer, best)
        self._asked, self._best, self._is_best_asked = {}, None, False
        if len(self._episode.record.steps) == before:
            raise ValueError(f"no turn was played: {self._episode.record.error}; start the mission again")
        self.played_by.append(whose)
        return self.record.steps[-1]

    def play_best(self) -> StepRecord:
        """Play the reference's turn."""
        self._refuse_if_over()
        best = self.best()
        if best is None:
            raise ValueError(
                f"world {self.world.name} has no reference that can be asked where another has come: there is no best turn "
                "to play; play an agent's, or by hand"
            )
        return self.play(Answer(best), "the oracle")

    def _request(self) -> Request:
        if self.observation is None:
            last = (self._episode.record.error.strip().splitlines() or ["no reason given"])[-1]
            raise ValueError(f"the world {self.world.name} crashed when it was reset ({last}); start another seed")
        return self._episode.request()

    def _refuse_if_over(self) -> None:
        if self.is_over:
            raise ValueError(
                f"the mission is over ({self._episode.record.end_reason}): nothing more can be played in it; start one again"
            )


def answered(player: Player, request: Request) -> Answer:
    """ValueError if nothing came from the player's server, which is no turn."""
    answer = player.policy.act([request])[0]
    if answer.error == NO_ANSWER:
        raise ValueError(f"{player.name} gives no answer ({answer.text}): nothing is played; ask again")
    return answer


def by_hand(thought: str, calls: str, tools: tuple) -> Answer:
    """A person's turn: calls as JSON, {"name", "arguments"} or a list of them; ValueError for what cannot be called."""
    try:
        values = json.loads(calls)
    except ValueError as error:
        raise ValueError(
            f'the calls are no JSON ({error}): write {{"name": ..., "arguments": {{...}}}}, or a list'
        ) from None
    values = values if isinstance(values, list) else [values]
    read = tuple(read_call(value, tools) for value in values)
    if not read:
        raise ValueError("no call: a turn without one does nothing; write one")
    return Answer(Turn(thought, read))


def read_call(value: object, tools: tuple) -> ToolCall:
    """One call that its tool's schema allows."""
    if not isinstance(value, Mapping) or set(value) != {"name", "arguments"} or not isinstance(value["name"], str):
        shown = json.dumps(value, ensure_ascii=False)[:80]
        raise ValueError(f'{shown} is no call: write {{"name": "...", "arguments": {{...}}}}')
    tool = tool_named(tools, value["name"])
    if tool is None:
        names = ", ".join(tool.name for tool in tools)
        raise ValueError(f"there is no tool {value['name']!r}: nothing would happen; use {names}")
    call = ToolCall(value["name"], value["arguments"])
    wrong = argument_error(tool.parameters, call.arguments)
    if wrong:
        raise ValueError(f"{tool.name}: {wrong}: the world would refuse it; correct the arguments")
    return call
