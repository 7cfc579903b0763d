"""The commands of README and docs: fenced bash blocks, and commands in `code` between words, with what they need.

A block that cannot run here says so in a comment of the line before it, `<!-- needs: gpu, minutes -->`; NEEDS has the
words. `commands(page)` gives what a shell would start, one command at a time: comments gone, lines joined, variables that
the block itself sets filled in, `for x in a b` unrolled.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
NEEDS = {
    "gpu": "a CUDA device, and published weights",
    "minutes": "minutes on two cores",
    "chromium": "a Chromium",
    "slurm": "a Slurm cluster",
    "network": "a network",
    "person": "somebody at the mouse",
    "processor": "the published tokenizer and configs, in a folder",
    "data": "a published data set",
}
HISTORY = ("docs/LOG.md",)
"""Dated: commands of their day."""
STARTS = ("python ", "qwenvl-agent ", "accelerate launch ", "make ", "sbatch ", "tensorboard ")
BLOCK = re.compile(
    r"^(?:<!-- needs: (?P<needs>[^>]*?) -->\n)?(?P<indent>[ ]*)```bash[^\n]*\n(?P<text>.*?)^(?P=indent)```", re.M | re.S
)
FENCED = re.compile(r"^ *```.*?^ *```", re.M | re.S)
INLINE = re.compile(r"`([^`\n]+)`")
ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
LOOP = re.compile(r"for (\w+) in ([^;]+); do (.+?); done")


@dataclass(frozen=True)
class Command:
    page: str
    line: int
    words: tuple[str, ...]
    needs: frozenset[str] = frozenset()
    inline: bool = False

    def __str__(self) -> str:
        return shlex.join(self.words)

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    text: str
    needs: frozenset[str]

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[str]:
    """README in its languages, CONTRIBUTING, docs, and what lies beside the examples."""
    found = [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("docs/tutorial/*.md"),
        *ROOT.glob("examples/**/README.md"),
    ]
    names = (path.relative_to(ROOT).as_posix() for path in found)
    return sorted(name for name in names if name not in (*HISTORY, "CHANGELOG.md"))


def blocks(page: str) -> list[Block]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        Block(
            page,
            text.count("\n", 0, found.start("text")) + 1,
            found["text"],
            frozenset(word.strip() for word in (found["needs"] or "").split(",") if word.strip()),
        )
        for found in BLOCK.finditer(text)
    ]


def commands(page: str) -> list[Command]:
    """Of the page's blocks, in their order."""
    return [command for block in blocks(page) for command in commands_of(block)]


def commands_of(block: Block) -> Iterator[Command]:
    variables: dict[str, str] = {}
    number = block.line
    for lines in joined(block.text):
        for words in split(lines, variables):
            yield Command(block.page, number, tuple(words), block.needs)
        number += lines.count("\n") + 1


def inline_commands(page: str) -> list[Command]:
    """Commands that stand in a sentence or a table; one that is abridged (`...`) is none."""
    text = (ROOT / page).read_text(encoding="utf-8")
    text = FENCED.sub(lambda found: "\n" * found[0].count("\n"), text)
    return [
        Command(page, text.count("\n", 0, found.start()) + 1, tuple(shlex.split(found[1])), inline=True)
        for found in INLINE.finditer(text)
        if found[1].startswith(STARTS) and "..." not in found[1]
    ]


def joined(text: str) -> Iterator[str]:
    """Lines with those that a backslash continues."""
    held = ""
    for line in text.splitlines():
        held += line
        if line.endswith("\\"):
            held += "\n"
            continue
        yield held
        held = ""


def split(lines: str, variables: dict[str, str]) -> Iterator[list[str]]:
    """The words of each command on a line; `variables` are filled in, and take what the line sets."""
    line = lines.replace("\\\n", " ").strip()
    if loop := LOOP.match(line):
        for value in loop[2].split():
            yield from split(loop[3], variables | {loop[1]: value})
        return
    for name, value in variables.items():
        line = re.sub(rf"\$\{{?{name}\b\}}?", value, line)
    for command in parts(shlex.split(line, comments=True)):
        named = command[1:] if command[0] == "export" else command
        if all(ASSIGNMENT.match(word) for word in named):
            variables.update(word.split("=", 1) for word in named)
        else:
            yield command


def parts(words: list[str]) -> Iterator[list[str]]:
    """Commands between `;`, `&&`."""
    command: list[str] = []
    for word in words:
        ends = word == "&&" or word.endswith(";")
        if word != "&&":
            command.append(word.removesuffix(";"))
        if ends and command:
            yield command
            command = []
    if command:
        yield command
