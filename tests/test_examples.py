"""Worlds from outside (examples/worlds): each short, of public names alone, and sound by `check_world`."""

import ast
import io
import tokenize
from pathlib import Path

import pytest

from qwenvl_agent.config import load_config
from qwenvl_agent.worlds.check import check_world

EXAMPLES = sorted((Path(__file__).parents[1] / "examples" / "worlds").glob("*/world.py"))
PACKAGES = {"minigrid": "minigrid", "frozen_lake": "pygame"}
"""What an example needs besides this package's requirements."""
MAX_LINES = 100
LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}

each_example = pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.parent.name)


def code_lines(source: str) -> int:
    """Lines that hold code: no blank ones, comments and docstrings."""
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        lines |= set() if token.type in LAYOUT else set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines)


def named_in(tree: ast.AST) -> set[str]:
    """Every name that is imported from this package, looked up in something, or asked of a module's path."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("qwenvl_agent"):
            names |= {*node.module.split("."), *(alias.name for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {part for alias in node.names for part in alias.name.split(".")}
        elif isinstance(node, ast.Attribute):
            names.add(node.attr)
    return names


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_code_lines_are_counted_without_docstrings_comments_and_blanks():
    assert (
        code_lines(
            '"""Doc.\n\nMore."""\n\nx = 1  # said\n# alone\ndef f():\n    """Doc."""\n    return [\n        1,\n    ]\n'
        )
        == 5
    )


def test_a_private_name_is_seen():
    private = {
        name for name in named_in(ast.parse("from qwenvl_agent.worlds import _a\nb._c\nd.__e__")) if is_private(name)
    }
    assert private == {"_a", "_c"}


@each_example
def test_an_example_has_at_most_100_lines_of_code(path):
    files = sorted(path.parent.rglob("*.py"))
    assert sum(code_lines(file.read_text(encoding="utf-8")) for file in files) <= MAX_LINES


@each_example
def test_an_example_uses_public_names_alone(path):
    for file in sorted(path.parent.rglob("*.py")):
        assert not [name for name in named_in(ast.parse(file.read_text(encoding="utf-8"))) if is_private(name)]


@each_example
def test_an_example_has_a_page_and_a_config_that_plays_it(path):
    """The config names the world as from the clone's root, under rules that the world has."""
    root = Path(__file__).parents[1]
    assert (path.parent / "README.md").is_file()
    config = load_config(path.parent / "config.json")
    assert config.eval.suite == f"{path.relative_to(root)}:make_world"
    if path.parent.name in PACKAGES:
        pytest.importorskip(PACKAGES[path.parent.name])
    assert check_world(f"{path}:make_world", config.eval.world, episodes=5) == []


def test_there_are_examples():
    assert EXAMPLES
