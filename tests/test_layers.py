"""Imports go down only, and what works without a GPU stack imports none of it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import qwenvl_agent

PACKAGE = Path(qwenvl_agent.__file__).parent
LAYERS = (
    {
        "png",
        "threads",
        "file_signatures",
        "settings",
        "aliases",
        "near_json",
        "files",
        "html_templates",
        "local_server",
        "progress",
    },
    {"images", "checksums", "settings_reference", "families", "json_input"},
    {
        "config",
        "records",
        "schema",
        "statistics",
        "coordinates",
        "command",
        "processes",
        "row_markers",
        "tool_schema",
        "requirements",
    },
    {"vision", "containers", "picture_store"},
    {"formats", "computer"},
    {"prompt", "worlds"},
    {"data"},
    {"model"},
    {"planning", "inference"},
    {"curation"},
    {"evaluation"},
    {"studies", "playground"},
    {"model_card", "hub"},
    {"export", "training"},
    {"cli"},
    {"predict", "__main__"},
)
HEAVY_ROOMS = {"data", "model", "training", "inference", "export", "cli"}
# Inside these rooms, and outside of the others.
LIGHT_FILES = {
    "cli/configs.py",
    "cli/evaluate.py",
    "cli/export.py",
    "cli/main.py",
    "cli/plan.py",
    "cli/play.py",
    "cli/predict.py",
    "cli/show.py",
    "cli/train_options.py",
    "data/readers/chat/__init__.py",
    "data/readers/chat/blocks.py",
    "data/readers/chat/calls.py",
    "data/readers/chat/content.py",
    "data/readers/chat/forms.py",
    "data/readers/chat/markers.py",
    "data/readers/chat/messages.py",
    "data/readers/chat/pictures.py",
    "data/readers/chat/places.py",
    "data/readers/chat/results.py",
    "data/readers/chat/steps.py",
    "data/readers/chat/tools.py",
    "data/readers/chat/unread.py",
    "data/readers/computer.py",
    "data/pictures.py",
    "data/source.py",
    "inference/agent.py",
    "model/logits.py",
    "inference/endpoint.py",
    "inference/load.py",
}
HEAVY_FILES = {
    "playground/tokens.py",
    "curation/samples.py",
    "curation/checkup.py",
    "families/pictures.py",
    "planning/flops.py",
}
HEAVY = ("torch", "transformers", "datasets", "accelerate", "peft")


def room_of(module: str) -> str:
    """`qwenvl_agent.data.masks` is in the room `data`."""
    return (module.split(".") + [""])[1]


def room_of_file(file: str) -> str:
    return file.split("/")[0].removesuffix(".py")


def layer_of(room: str) -> int:
    return next(i for i, rooms in enumerate(LAYERS) if room in rooms)


def own_imports(path: Path) -> list[str]:
    """Modules of this package that a file imports, anywhere in it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            # `from qwenvl_agent import schema` imports a room by name.
            is_package = node.module == "qwenvl_agent"
            modules += [f"{node.module}.{a.name}" for a in node.names] if is_package else [node.module]
        elif isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
    return [module for module in modules if module.startswith("qwenvl_agent.")]


def files() -> list[str]:
    """Every module of the package but the empty ones."""
    paths = (path for path in PACKAGE.rglob("*.py") if path.stat().st_size and path != PACKAGE / "__init__.py")
    return sorted(path.relative_to(PACKAGE).as_posix() for path in paths)


@pytest.mark.parametrize("file", files())
def test_imports_go_down_only(file):
    room = room_of_file(file)
    for module in own_imports(PACKAGE / file):
        other = room_of(module)
        assert other == room or layer_of(other) < layer_of(room), (
            f"{file} imports {module}: {other} is not below {room}"
        )


def test_worlds_do_not_know_each_other():
    shared = {path.stem for path in (PACKAGE / "worlds").glob("*.py")}
    for file in (PACKAGE / "worlds").rglob("*.py"):
        world = file.relative_to(PACKAGE / "worlds").parts[0]
        others = [m.split(".")[2] for m in own_imports(file) if m.startswith("qwenvl_agent.worlds.")]
        if file.parent != PACKAGE / "worlds":
            assert set(others) <= {world, *shared}, f"{file} imports {others}"


def world_imports(path: Path) -> set[str]:
    """Names of the package's worlds that a file imports."""
    worlds = {folder.name for folder in (PACKAGE / "worlds").iterdir() if (folder / "__init__.py").is_file()}
    parts = [module.split(".") for module in own_imports(path)]
    tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    named = {
        a.name for n in tree if isinstance(n, ast.ImportFrom) and n.module == "qwenvl_agent.worlds" for a in n.names
    }
    return ({part[2] for part in parts if part[1] == "worlds" and len(part) > 2} | named) & worlds


# Of the browser's pages they make data, with pages and a browser rather than episodes.
PAGE_COMMANDS = {"cli/generate_ui.py": {"browser"}, "cli/record_clicks.py": {"browser"}}


@pytest.mark.parametrize("file", [file for file in files() if not file.startswith("worlds/")])
def test_nothing_outside_its_folder_imports_a_world(file):
    assert world_imports(PACKAGE / file) == PAGE_COMMANDS.get(file, set())


@pytest.mark.parametrize("file", ["train.py", "eval.py"])
def test_the_commands_import_no_world(file):
    assert not world_imports(PACKAGE.parent / file)


def is_light(file: str) -> bool:
    return file in LIGHT_FILES or (room_of_file(file) not in HEAVY_ROOMS and file not in HEAVY_FILES)


WATCH = """
import importlib, sys
for module in sys.argv[1].split(","):
    importlib.import_module(module)
    loaded = [name for name in sys.argv[2].split(",") if name in sys.modules]
    assert not loaded, f"{module} loads {loaded}"
"""


def test_light_files_import_nothing_heavy():
    """All in one fresh process: the first that loads something heavy is named."""
    light = [file.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for file in files() if is_light(file)]
    modules = ",".join(f"qwenvl_agent.{name}" for name in light)
    command = [sys.executable, "-c", WATCH, modules, ",".join(HEAVY)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "data.readers.chat" in light and "evaluation.rollout" in light and "worlds" in light


def test_who_only_acts_imports_no_evaluation():
    code = (
        "import sys, qwenvl_agent; qwenvl_agent.load_agent, qwenvl_agent.load_policy\n"
        "import qwenvl_agent.inference.policy, qwenvl_agent.inference.endpoint\n"
        "rooms = {name.split('.')[1] for name in sys.modules if name.startswith('qwenvl_agent.')}\n"
        "print(*sorted(rooms & {'evaluation', 'training', 'studies', 'worlds', 'curation', 'export'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("\n", 0), done.stdout + done.stderr
