"""The command qwenvl-agent, the fronts in scripts/, and the configs that come with the package."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

import qwenvl_agent
from qwenvl_agent.cli import configs
from qwenvl_agent.cli.main import COMMANDS
from qwenvl_agent.config import load_config
from qwenvl_agent.studies.programs import program

ROOT = Path(__file__).parents[1]
PACKAGE = Path(qwenvl_agent.__file__).parent
FRONTS = sorted(
    path
    for path in (ROOT / "scripts").glob("*.py")
    if "cli." in path.read_text() and "run_command(main)" in path.read_text()
)


def call(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "qwenvl_agent", *words], capture_output=True, text=True, cwd=ROOT)


def test_help_has_a_line_for_each_command_and_imports_none_of_them():
    done = call("--help")
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line.startswith("  ")}
    assert done.returncode == 0 and list(lines) == list(COMMANDS)
    assert all(len(line) <= 120 for line in lines.values())
    code = "import sys; sys.argv[1:] = ['--help']\nfrom qwenvl_agent.cli.main import main\n"
    code += (
        "try: main()\nexcept SystemExit: print([name for name in ('torch', 'rich', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.endswith("[]\n"), done.stderr


def test_what_is_no_command_is_one_line():
    done = call("evalute")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: 'evalute' is no command: nothing is done; did you mean evaluate?\n"
    assert call("--version").stdout.strip() == qwenvl_agent.__version__
    assert call().returncode == 2


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_a_module_with_a_main(name):
    spec = importlib.util.find_spec(f"qwenvl_agent.cli.{COMMANDS[name][0]}")
    assert "\ndef main(argv: " in Path(spec.origin).read_text(encoding="utf-8")


def test_a_command_calls_itself_by_its_name():
    assert call("report", "--help").stdout.startswith("usage: qwenvl-agent report ")


def test_the_package_has_the_repositorys_own_files():
    """Links, so that none of them can differ; the wheel holds what they point to."""
    for name, own in (("cli/train.py", "train.py"), ("cli/evaluate.py", "eval.py"), ("configs", "configs")):
        assert (PACKAGE / name).samefile(ROOT / own)


@pytest.mark.parametrize("front", FRONTS, ids=lambda path: path.stem)
def test_a_script_is_the_command_of_its_name(front):
    text = front.read_text(encoding="utf-8")
    (module,) = [name for name in {module for module, _ in COMMANDS.values()} if f"cli.{name} import main" in text]
    assert f"`qwenvl-agent {module.replace('_', '-')}`" in text and len(text.splitlines()) < 10


def test_fronts_are_there_for_what_the_documents_name():
    assert len(FRONTS) == 16 and {"generate_oracle", "plan_vram", "show_batch"} < {path.stem for path in FRONTS}


def test_studies_start_a_clones_files_and_elsewhere_the_packages(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert (program("train.py"), program("eval.py")) == (["train.py"], ["eval.py"])
    monkeypatch.chdir(tmp_path)
    assert program("train.py") == ["-m", "qwenvl_agent.cli.train"]
    assert program("eval.py") == ["-m", "qwenvl_agent.cli.evaluate"]


def test_shipped_configs_are_listed_as_json(capsys):
    assert configs.main(["--json"]) == 0
    listed = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert listed["safari_2b.json"]["method"] == "qlora" and Path(listed["safari_2b.json"]["path"]).is_file()
    assert listed["safari_2b.json"]["model"] == "Qwen/Qwen3-VL-2B-Instruct"


def test_shipped_configs_are_listed_and_copied(tmp_path, capsys):
    assert configs.main([]) == 0
    assert "safari_2b.json" in capsys.readouterr().out
    out = tmp_path / "configs"
    assert configs.main(["--out", str(out)]) == 0
    assert load_config(out / "safari_tiny.json") == load_config(ROOT / "configs" / "safari_tiny.json")
    assert (out / "sweeps" / "safari_tiny.json").is_file()
    assert configs.main(["--out", str(out)]) == 2
    assert "exists: what is there would be mixed" in capsys.readouterr().err
