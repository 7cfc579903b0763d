"""What a task is to the environment: pages to serve, an instruction, and a judgement by what really happened."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from qwenvl_agent.worlds.browser.server import MISSING, Asked, Response
from qwenvl_agent.worlds.browser.window import Frame, Window

if TYPE_CHECKING:
    from playwright.sync_api import Page


@dataclass(frozen=True)
class Verdict:
    """`goals`: which of the task's goals are reached. `harm`: what was done that cannot be made good.

    `is_over`: the page itself says that nothing more counts.
    """

    goals: dict[str, bool]
    harm: tuple[str, ...] = ()
    is_over: bool = False

    @property
    def is_success(self) -> bool:
        return all(self.goals.values()) and not self.harm


@dataclass
class Effects:
    """What happened in an episode: requests that the pages made, files that arrived, the answer given."""

    journal: list[Asked] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    answer: str | None = None
    num_files_sent: int = 0
    """By the site, to be kept; each is a download that is to arrive."""

    def sent(self, path: str) -> list[dict[str, str]]:
        """The fields of each request to that path, in order."""
        return [asked.fields for asked in self.journal if asked.path == path]


class Problem(Protocol):
    """A task drawn from a seed, and the site that it plays on.

    `instruction` may be filled in by `prepare`, which runs in the browser's thread when the page stands. `wanted` is
    what the oracle needs to know.
    """

    name: str
    instruction: str
    start: str
    frame: Frame
    max_turns: int
    wanted: dict
    effects: Effects

    def respond(self, asked: Asked) -> Response: ...

    def prepare(self, window: Window) -> None: ...

    def judge(self, page: "Page") -> Verdict: ...


@dataclass(frozen=True)
class Task:
    """`draw(seed, rng, language, family)` gives a problem."""

    name: str
    draw: Callable[[int, random.Random, str, str], Problem]
    is_click_only: bool = False


@dataclass(kw_only=True)
class SiteProblem:
    """A problem on pages of our own: handlers by path, goals and harms as questions about the effects."""

    name: str
    instruction: str
    pages: dict[str, Callable[[Asked], Response]]
    goals: dict[str, Callable[[Effects], bool]]
    harms: dict[str, Callable[[Effects], bool]] = field(default_factory=dict)
    wanted: dict = field(default_factory=dict)
    frame: Frame = field(default_factory=lambda: Frame(width=800, height=600))
    max_turns: int = 15
    start: str = ""
    effects: Effects = field(default_factory=Effects)

    def respond(self, asked: Asked) -> Response:
        self.effects.journal.append(asked)
        handler = self.pages.get(asked.path)
        response = MISSING if handler is None else handler(asked)
        self.effects.num_files_sent += response.is_file
        return response

    def prepare(self, window: Window) -> None:
        pass

    def judge(self, page: "Page") -> Verdict:
        goals = {name: bool(is_reached(self.effects)) for name, is_reached in self.goals.items()}
        return Verdict(goals, tuple(name for name, happened in self.harms.items() if happened(self.effects)))
