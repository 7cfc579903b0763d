"""How far work is and how long it will still take: a bar on a terminal, in a file a line now and then. On stderr.

with Bar("evaluations", total=300) as bar:
    bar.advance()
for row in tracked(rows, "rows", len(rows)): ...
"""

import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Item = TypeVar("Item")
LINE_EVERY_S = 30.0
"""In a file: what is over before that leaves no line."""


class Bar:
    """Of one piece of work, `done` of whose `total` parts (None: nobody knows) are there already."""

    def __init__(
        self,
        name: str,
        total: float | None,
        *,
        done: float = 0,
        note: str = "",
        quiet: bool = False,
        console: Console | None = None,
    ):
        """`console`: the one that is written to meanwhile, so that a bar stays below what it prints."""
        self.name, self.total, self.done, self.first, self.note = name, total, done, done, note
        self.console = console or Console(stderr=True)
        self.started = self.said = time.monotonic()
        self.quiet = quiet
        self.bar: Progress | None = None
        if self.console.is_terminal and not quiet:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self.bar = Progress(
                *columns, TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=self.console
            )
            self.task = self.bar.add_task(name, total=total, completed=done, note=note)

    def __enter__(self) -> "Bar":
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.bar:
            self.bar.stop()
        elif kind is None and self.said > self.started and not self.quiet:
            self.say()

    def advance(self, number: float = 1, note: str = "") -> None:
        self.done, self.note = self.done + number, note
        if self.bar:
            self.bar.update(self.task, completed=self.done, note=note)
        elif not self.quiet and time.monotonic() - self.said >= LINE_EVERY_S:
            self.say()

    def say(self) -> None:
        self.said = time.monotonic()
        of = "" if self.total is None else f"/{self.total:g}"
        words = (
            f"{self.name}: {self.done:g}{of} after {clock(self.said - self.started)}",
            self.left(),
            self.note,
        )
        print(", ".join(word for word in words if word), file=sys.stderr, flush=True)

    def left(self) -> str:
        """By the mean of what was done here."""
        if self.total is None:
            return ""
        taken, rest = self.done - self.first, self.total - self.done
        return f"left {clock((time.monotonic() - self.started) / taken * rest)}" if taken > 0 and rest > 0 else ""


def tracked(items: Iterable[Item], name: str, total: float | None, *, quiet: bool = False) -> Iterator[Item]:
    with Bar(name, total, quiet=quiet) as bar:
        for item in items:
            yield item
            bar.advance()


def clock(seconds: float) -> str:
    """Hours, minutes and seconds, as far as there are any: 1:02:03, 2:03."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
