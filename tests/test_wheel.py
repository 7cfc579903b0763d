"""The wheel, made of the source archive, in an environment and a folder in which nothing else of the repository is."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from qwenvl_agent.cli.main import COMMANDS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SOURCES = ("qwenvl_agent", "configs", "train.py", "eval.py")
FILES = ("setup.cfg", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")
ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
ENVIRONMENT |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
SHORT = ["train.batch_size=2", "train.save_every=1", "eval.suite=none", "eval.step_rows=2", "data.num_workers=0"]
SHORT += ["eval.max_new_tokens=8", "data.eval_fraction=0.2"]

WORLD = """
from qwenvl_agent.worlds.safari import make_world as make_safari


def make_world(**rules):
    return make_safari(**rules)
"""
WORLD_SETUP = """
[metadata]
name = a-world
version = 1
[options]
py_modules = a_world
[options.entry_points]
qwenvl_agent.worlds =
    a_world = a_world:make_world
"""


def run(*words, cwd: Path, status: int = 0) -> str:
    """What the command prints; both streams are shown if its status is another one."""
    command = [str(word) for word in words]
    done = subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == status, f"{command} ends with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Of an archive of a copy: a build leaves files where it works."""
    copy, made = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("made")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            left_out = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=left_out)
        else:
            shutil.copy(ROOT / name, copy)
    for name in FILES:
        shutil.copy(ROOT / name, copy)
    build = "import sys, setuptools.build_meta as b; b.build_sdist(sys.argv[1])"
    run(sys.executable, "-c", build, made, cwd=copy)
    (archive,) = made.glob("*.tar.gz")
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--quiet"]
    run(sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", made, archive, cwd=made)
    (path,) = made.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The folder of a fresh environment's programs; packages but this one are those that the tests run with."""
    directory = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", directory, cwd=directory)
    (site,) = directory.glob("lib/python*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")  # whose own .pth files are not followed
    install(directory, wheel)
    return directory / "bin"


def install(environment: Path, package: Path) -> None:
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--quiet", "--force-reinstall"]
    pip = [sys.executable, "-m", "pip", "--python", environment / "bin" / "python", "install", *options]
    run(*pip, package, cwd=environment)


@pytest.fixture(scope="module")
def folder(installed, tmp_path_factory) -> Path:
    """An empty folder, then with the configs, a data set and a run of two steps in it."""
    folder = tmp_path_factory.mktemp("empty")
    where = run(installed / "python", "-c", "import qwenvl_agent; print(qwenvl_agent.__file__)", cwd=folder)
    assert where.startswith(str(installed.parent))
    agent = installed / "qwenvl-agent"
    run(agent, "configs", "--out", "configs", cwd=folder)
    record = ["--config", "configs/safari_tiny.json", "--out", "generated/safari_tiny", "--episodes", 8]
    run(agent, "record", *record, cwd=folder)
    sets = [word for value in SHORT for word in ("--set", value)]
    run(agent, "train", "--config", "configs/safari_tiny.json", *sets, "--set", "train.max_steps=2", cwd=folder)
    return folder


def test_the_wheel_holds_the_repositorys_own_files(wheel):
    with zipfile.ZipFile(wheel) as archive:
        for name, own in (("cli/train.py", "train.py"), ("cli/evaluate.py", "eval.py")):
            assert archive.read(f"qwenvl_agent/{name}") == (ROOT / own).read_bytes()
        packed = {name for name in archive.namelist() if name.startswith("qwenvl_agent/configs/")}
        assert "qwenvl_agent/worlds/safari/suites/difficulty.json" in archive.namelist()
        layouts = {name for name in archive.namelist() if name.startswith("qwenvl_agent/curation/layouts/")}
    assert packed == {f"qwenvl_agent/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.json")}
    shipped = (ROOT / "qwenvl_agent/curation/layouts").glob("*.json")
    assert layouts == {str(path.relative_to(ROOT)) for path in shipped} and len(layouts) > 20


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_what_it_takes(installed, tmp_path, name):
    assert f"usage: qwenvl-agent {name} " in run(installed / "qwenvl-agent", name, "--help", cwd=tmp_path)


def test_a_shipped_config_is_planned(installed, folder):
    words = ["plan", "--config", "configs/safari_2b.json", "--gpu", 24, "--json"]
    assert json.loads(run(installed / "qwenvl-agent", *words, cwd=folder))["fits"] is True
    commands = run(installed / "qwenvl-agent", "sweep", "configs/sweeps/safari_tiny.json", cwd=folder)
    assert "accelerate launch -m qwenvl_agent.cli.train --config configs/safari_tiny.json" in commands


def test_a_run_is_audited_evaluated_and_asked(installed, folder):
    agent = installed / "qwenvl-agent"
    assert (folder / "runs/safari_tiny/checkpoints/step_000002").is_dir()
    assert "wrong 0," in run(agent, "show", "--config", "configs/safari_tiny.json", "--audit", cwd=folder)
    words = [
        "--run",
        "runs/safari_tiny",
        "--suite",
        "safari",
        "--set",
        "eval.max_new_tokens=8",
        "--episodes",
        2,
        "--json",
    ]
    metrics = json.loads(run(agent, "evaluate", *words, "--world", "max_turns=2", cwd=folder))
    assert metrics["success_rate"]["n"] == 2 and metrics["about"]["checkpoint"] == "step_000002"
    result = "runs/safari_tiny/eval/safari"
    run(agent, "rescore", result, cwd=folder)
    run(agent, "report", result, "--out", "report.html", cwd=folder)
    assert (folder / "report.html").stat().st_size > 10_000
    Image.new("RGB", (64, 64), "white").save(folder / "screen.png")
    words = ["--run", "runs/safari_tiny", "--image", "screen.png", "--instruction", "go", "--max-new-tokens", 8]
    assert json.loads(run(agent, "predict", *words, cwd=folder, status=1))["error"]
    run(agent, "export", "runs/safari_tiny", "--out", "exported", cwd=folder)
    assert (folder / "exported" / "model.safetensors").is_file()


def test_the_launcher_starts_the_packages_training(installed, folder):
    launch = [installed / "python", "-m", "accelerate.commands.launch", "--num_processes", 1, "--num_machines", 1]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--cpu", "-m", "qwenvl_agent.cli.train"]
    sets = [word for value in [*SHORT, "train.max_steps=1", "name=launched"] for word in ("--set", value)]
    run(*launch, "--config", "configs/safari_tiny.json", *sets, cwd=folder)
    assert (folder / "runs/launched/checkpoints/step_000001").is_dir()


def test_the_world_of_another_package_is_found(installed, folder, tmp_path):
    (tmp_path / "a_world.py").write_text(WORLD)
    (tmp_path / "setup.cfg").write_text(WORLD_SETUP)
    (tmp_path / "pyproject.toml").write_text('[build-system]\nrequires = ["setuptools"]\n')
    install(installed.parent, tmp_path)
    code = "from qwenvl_agent.worlds import known_worlds, make_world; print(known_worlds(), make_world('a_world').name)"
    assert (
        run(installed / "python", "-c", code, cwd=folder).split("\n")[0].startswith("('a_world', 'browser', 'safari')")
    )
