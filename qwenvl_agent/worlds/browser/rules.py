"""What may be set about the browser world, and which task a seed is."""

import random
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Annotated

from qwenvl_agent.computer import KINDS
from qwenvl_agent.settings import Range, build, check_values
from qwenvl_agent.worlds.browser.board_tasks import BOARD_TASKS
from qwenvl_agent.worlds.browser.miniwob import MINIWOB
from qwenvl_agent.worlds.browser.pages import FAMILIES
from qwenvl_agent.worlds.browser.problem import Task
from qwenvl_agent.worlds.browser.tasks import TASKS
from qwenvl_agent.worlds.browser.words import LANGUAGES

GROUPS = {
    "own": tuple(TASKS),
    "clicks": tuple(name for name, task in TASKS.items() if task.is_click_only),
    "boards": ("press_element", "get_picture", *BOARD_TASKS),
    "miniwob": tuple(MINIWOB),
}
"""Names for several tasks at once."""


@dataclass(frozen=True, kw_only=True)
class BrowserRules:
    """Seeds go round the tasks: seed s plays task number s modulo their number, drawn from s."""

    tasks: tuple[str, ...] = ("own",)
    """Tasks by name, or own, clicks (those of our own that need nothing but clicks), boards (those on pages of the
    family `simple`, for models that see little), miniwob."""
    languages: tuple[str, ...] = LANGUAGES
    """Of the instructions to our own tasks; MiniWoB++ has English only."""
    family: str = "simple"
    """Of the generated pages that the tasks press_element and get_picture show."""
    actions: tuple[str, ...] = tuple(KINDS)
    """Kinds that the tool offers; others are refused."""
    past_steps: Annotated[int, Range(0, 10_000, "no text lists so many")] = 20
    """Earlier steps that the text beside the picture lists."""
    max_turns: Annotated[int, Range(0, 10**6, "no episode has so many")] = 0
    """0: as many as the task allows."""
    max_calls: Annotated[int, Range(1, 10_000, "nothing would be done")] = 5
    """Calls of one turn; further ones are not run."""
    step_seconds: Annotated[float, Range(0.1, 1e6, "no page answers in that time")] = 60.0
    """A page that does not answer for that long has its browser ended."""
    episode_seconds: Annotated[float, Range(0.001, 1e9, "no episode has that length")] = 300.0
    """Time in the browser; thinking does not count."""
    must_terminate: bool = False
    """Whether the effect counts only once the agent said that it is done; else the episode ends with the effect."""
    downloads_dir: str = ""
    """Where files are kept, in a folder for each seed; empty: in a temporary folder that goes with the episode."""
    names: tuple[str, ...] = field(init=False, default=())
    """All tasks, groups resolved."""

    def __post_init__(self):
        for name in ("tasks", "languages", "actions"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        check_values(self, "browser")
        object.__setattr__(self, "names", resolve(self.tasks))
        for name, values, known in (
            ("languages", self.languages, LANGUAGES),
            ("actions", self.actions, KINDS),
            ("family", (self.family,), FAMILIES),
        ):
            unknown = [value for value in values if value not in known]
            if unknown or not values:
                raise ValueError(
                    f"browser.{name} is {unknown or '(none)'}: no task can be drawn; choose of {', '.join(known)}"
                )

    @classmethod
    def from_json(cls, values: dict) -> "BrowserRules":
        """Rules from JSON values; ValueError naming the nearest key for one that does not exist.

        Those of a result have `names` as well, which follow from `tasks`.
        """
        rules = build(cls, {key: value for key, value in values.items() if key != "names"}, "browser")
        if tuple(values.get("names", rules.names)) != rules.names:
            raise ValueError(f"browser rule names is {values['names']}, not what `tasks` stand for; leave it out")
        return rules

    def task_of(self, seed: int) -> Task:
        name = self.names[seed % len(self.names)]
        return next(table[name] for table in (TASKS, BOARD_TASKS, MINIWOB) if name in table)

    def draw(self, seed: int):
        """The problem of a seed."""
        task = self.task_of(seed)
        rng = random.Random(f"{task.name} {seed}")
        return task.draw(seed, rng, rng.choice(self.languages), self.family)


def resolve(tasks: tuple[str, ...]) -> tuple[str, ...]:
    """The tasks of these names and groups, each once, in order; ValueError for what is neither."""
    names: list[str] = []
    for task in tasks:
        known = [*GROUPS, *TASKS, *BOARD_TASKS, *MINIWOB]
        if task not in known:
            near = get_close_matches(task, known, n=1) or [", ".join(known)]
            raise ValueError(f"browser task {task!r} does not exist: it cannot be played; did you mean {near[0]}?")
        names += [name for name in GROUPS.get(task, (task,)) if name not in names]
    if not names:
        raise ValueError(
            "browser.tasks is empty: there is nothing to play; name tasks, or own, clicks, boards, miniwob"
        )
    return tuple(names)
