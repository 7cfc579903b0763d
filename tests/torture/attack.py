"""What an attack is: a family of cases that try to break something, each alone repeatable. Run by scripts/torture.py.

A file of this folder has one as `ATTACK`, or several as the tuple `ATTACKS`:

    def run(seed: int, cases: Sequence[int], scratch: Path) -> Iterator[Outcome]:
        for case in cases:
            random = random_of(seed, case)
            yield Outcome("one bit of a PNG", held=..., note=...)

    ATTACK = Attack("bit_flips", "one bit of a checkpoint's file is another", full=500, quick=20, seconds=600, run=run)

What it must keep to: the outcomes come in the order of `cases`; case i of a seed is the same whenever it is run and
whatever was run before it; `scratch` is empty at first and the attack's alone, and small things prepared in it once may
stay for later cases; what a case has started is gone when its outcome comes. `make torture-quick` runs the first `quick`
cases, so the kinds should alternate.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Outcome:
    """What came of one case."""

    kind: str
    """Its group in the table, as "SIGKILL, LoRA, inside a save"."""
    held: bool
    note: str = ""
    """When it fell: what happened, in one line."""
    tried: int = 1
    """How many things of the kind were tried in it: of a million short texts, ten thousand are one case."""
    fallen: int | None = None
    """How many of them fell; None: one if it fell."""


@dataclass(frozen=True)
class Attack:
    """A family of cases, numbered from 0."""

    name: str
    """As on the command line; a noun."""
    says: str
    """What is tried, in one line."""
    full: int
    """Cases of `make torture`."""
    quick: int
    """Cases of `make torture-quick`: the first ones."""
    seconds: int
    """The most that the full form may take on two cores."""
    run: Callable[[int, Sequence[int], Path], Iterator[Outcome]]
    """(seed, cases, an empty folder of the attack's own) to their outcomes, in that order."""
    patience: int = 300
    """Seconds without an outcome after which the case in hand has fallen: it hangs."""
    processes: int = 1
    """In the full form the cases are dealt to so many, each with a scratch folder of its own: for an attack that waits
    more than it works."""
    alone: bool = False
    """Whether it measures time or memory of its own, so that no other attack may run beside it."""


def random_of(seed: int, case: int) -> random.Random:
    """Random numbers of one case, whatever ran before it."""
    return random.Random(f"{seed}:{case}")
