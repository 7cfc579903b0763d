"""README and docs against the code: every command is parsed by the program that it names, and its config with the
overrides is loaded; all that can run here are run in a small form, and leave the files that they name; the others are marked
with what they need. Options, settings and files that sentences name are there. Links and anchors lead somewhere, translations
have the README's commands.

The small form (`small`): one episode or two rows in place of hundreds, one step, in a folder of its own; for a GPU's commands
the tiny base under LoRA in the published checkpoint's place, in one process; `accelerate launch train.py` is train.py's main.
What is not ours is looked up, not run.
"""

import argparse
import contextlib
import dataclasses
import importlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import typing
from collections import Counter
from pathlib import Path

import documents
import pytest
from documents import NEEDS, ROOT, Command
from PIL import Image, ImageDraw
from tiny_run import save_dataset

from qwenvl_agent.cli.main import COMMANDS
from qwenvl_agent.config import Config, load_config

PAGES = documents.pages()
COMMANDS_OF = {page: documents.commands(page) for page in PAGES}
LOOKED_UP = {
    "make": "a target of the Makefile",
    "sbatch": "the batch script's own arguments are parsed",
    "transformers": "not ours",
    "vllm": "not ours",
    "tensorboard": "not ours",
    "pip": "not ours",
    ".": "the shell's",
    ".venv/bin/pip": "not ours",
    ".venv/bin/pre-commit": "not ours",
}
"""Programs whose commands are looked at and not run."""
RUN_ELSEWHERE = {
    "qwenvl-agent check-data screens --config own_screens_tiny --write own.json": "test_own_screenshots.py",
    "qwenvl-agent train --config own.json": "test_own_screenshots.py",
    "qwenvl-agent predict --run runs/own": "test_own_screenshots.py",
    "qwenvl-agent evaluate --run runs/own --suite clicks": "test_own_screenshots.py",
    "accelerate launch --num_processes 1 REPO/train.py": "test_shipped_curricula.py",
    "accelerate launch train.py --config configs/safari_2b_curriculum.json": "test_shipped_curricula.py",
    "python docs/tutorial/": "test_tutorial.py",
    "qwenvl-agent completion": "test_completion.py",
    "qwenvl-agent push": "test_push.py",
    "qwenvl-agent export runs/safari_2b --out exports/safari_2b_adapter --adapter": "test_export.py",
}
"""Beginnings of commands, and the test that runs them."""
TRANSLATIONS = ("README.ko.md", "README.zh.md")
"""Their commands are README.md's, by a test below."""
ON_A_GPU = ("train", "evaluate", "record", "show", "plan", "export")
"""Commands that need a GPU for nothing but the published checkpoint's size."""
PLACEHOLDERS = {"GB": "24", "N": "2"}
NAMED_FILES = re.compile(r"(configs|scripts|examples|benchmarks|tests)/[\w./-]+")


class ParsedError(BaseException):
    """Carries the namespace out of a command that would go on."""

    def __init__(self, namespace: argparse.Namespace):
        self.namespace = namespace


@contextlib.contextmanager
def only_parsing():
    original = argparse.ArgumentParser.parse_args

    def parse_args(self, argv=None, namespace=None):
        raise ParsedError(original(self, argv, namespace))

    argparse.ArgumentParser.parse_args = parse_args
    try:
        yield
    finally:
        argparse.ArgumentParser.parse_args = original


def program_of(command: Command) -> tuple[str, list[str]]:
    """(what is started, its arguments): a command of the package by its name, a file by its path, or another program."""
    words = [PLACEHOLDERS.get(word, word).removeprefix("REPO/") for word in command.words]
    if words[0] == "accelerate":
        place = next(i for i, word in enumerate(words) if word.endswith("train.py") or word == "qwenvl_agent.cli.train")
        return "train", words[place + 1 :]
    if words[0] == "qwenvl-agent":
        return (words[1] if len(words) > 1 else ""), words[2:]
    if words[0] == "python" and words[1] != "-m":
        return name_of_file(words[1]), words[2:]
    return words[0], words[1:]


def name_of_file(path: str) -> str:
    """The command that a front is of; else the path."""
    known = {"train.py": "train", "eval.py": "evaluate"}
    front = re.search(r"`qwenvl-agent ([a-z-]+)`", (ROOT / path).read_text(encoding="utf-8").partition("\n")[0])
    return known.get(path) or (front[1] if front else path)


def has_main(program: str) -> bool:
    """Whether a file of the repository is a command that a test can call."""
    return program.endswith(".py") and "\ndef main(argv: " in (ROOT / program).read_text(encoding="utf-8")


def main_of(program: str):
    if program in COMMANDS:
        module = COMMANDS[program][0].removesuffix("_options")  # which reads options and ends the process
        return importlib.import_module(f"qwenvl_agent.cli.{module}").main
    spec = importlib.util.spec_from_file_location(Path(program).stem, ROOT / program)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str((ROOT / program).parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module.main


def parse(program: str, argv: list[str]) -> argparse.Namespace | None:
    """What the program's own parser makes of it; None if it only shows help."""
    main = main_of(program)
    former = set(getattr(sys.modules[main.__module__], "FORMER", {})) & set(argv)
    assert not former, f"{former} have other names now"
    with only_parsing():
        try:
            getattr(main, "__wrapped__", main)(argv)
        except ParsedError as parsed:
            return parsed.namespace
        except SystemExit as ended:
            assert ended.code == 0, "its parser refuses it"
            return None
    raise AssertionError("it parses nothing")


def look_at(command: Command) -> None:
    """Raise unless the program takes these arguments, and the files and settings that they name are there."""
    for word in command.words:
        for found in NAMED_FILES.finditer(word):
            name = found[0].rstrip(".")
            if not re.search(r"\b[A-Z]{2,}\b", name) and not word.startswith("my_"):
                assert (ROOT / name).exists(), f"{name} is not there"
    program, argv = program_of(command)
    if program == "make":
        targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
        assert {word for word in argv if "=" not in word} <= targets, "no target of the Makefile"
    elif program == "sbatch":
        look_at_batch(argv)
    elif program in COMMANDS or has_main(program):
        if command.inline and not argv:
            return  # a name, no command
        namespace = parse(program, argv)
        if namespace is not None and program in ("train", "evaluate", "show", "plan"):
            load_named_config(namespace)
    elif program and program != program.upper() and not program.startswith("-") and not program.endswith(".py"):
        assert program in (*LOOKED_UP, "python"), f"{program}: no program that this test knows"


def look_at_batch(argv: list[str]) -> None:
    place = next(i for i, word in enumerate(argv) if word.endswith(".sbatch"))
    rest = argv[place + 1 :]
    if argv[place].endswith("eval.sbatch"):
        parse("evaluate", rest)
    else:
        load_config(ROOT / rest[0], rest[1:])


def load_named_config(namespace: argparse.Namespace) -> None:
    name = str(getattr(namespace, "config", None) or "")
    if (ROOT / name).is_file() and name:
        load_config(ROOT / name, getattr(namespace, "set", []))


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_those_of_their_programs(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    faults = []
    for command in [*COMMANDS_OF[page], *documents.inline_commands(page)]:
        try:
            look_at(command)
        except (AssertionError, ValueError, OSError) as error:
            faults.append(f"{command.place}: {command}: {error}")
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("page", PAGES)
def test_blocks_are_bash_and_say_what_they_need_in_known_words(page):
    for block in documents.blocks(page):
        done = subprocess.run(["bash", "-n"], input=block.text, text=True, capture_output=True)
        assert done.returncode == 0, (block.place, done.stderr)
        assert block.needs <= set(NEEDS), block.place


def test_a_command_that_its_program_does_not_take_is_found():
    with pytest.raises(AssertionError, match="refuses"):
        look_at(Command("x", 1, ("qwenvl-agent", "evaluate", "--runs", "runs/a")))
    with pytest.raises(AssertionError, match="other names"):
        look_at(Command("x", 1, ("qwenvl-agent", "plan", "--config", "configs/safari_2b.json", "--gpu", "24")))
    with pytest.raises(AssertionError, match="not there"):
        look_at(Command("x", 1, ("python", "scripts/sweep.py", "configs/none.json")))
    with pytest.raises(ValueError, match="learning_rate"):
        look_at(
            Command(
                "x",
                1,
                ("accelerate", "launch", "train.py", "--config", "configs/safari_2b.json", "--set", "train.lr=1"),
            )
        )
    with pytest.raises(AssertionError, match="Makefile"):
        look_at(Command("x", 1, ("make", "demos")))


# what is run


OVERRIDES = {
    "train.max_steps": 1,
    "train.batch_size": 2,
    "train.save_every": 1,
    "data.num_workers": 0,
    "data.eval_fraction": 0.3,
    "eval.episodes": 1,
    "eval.step_rows": 1,
    "eval.batch_size": 2,
    "eval.max_new_tokens": 4,
}
SMALLER = {"--episodes": "2", "--workers": "1", "--copies": "1", "--rows": "1", "--pages": "2"}
WRITTEN = ("--out", "--write", "--draw")
"""Options that name a file or folder which is there afterwards."""
TINY = {"model.path": "tiny", "model.method": "lora", "train.zero_stage": 0, "train.cpu_offload": False}
PUBLISHED = re.compile(r"Qwen/Qwen3[\w.-]*")


def small(program: str, argv: list[str]) -> list[str]:
    """The same command with little to do."""
    argv = [PUBLISHED.sub("tiny", word) for word in argv]
    argv = [SMALLER.get(before, word) for before, word in zip(["", *argv[:-1]], argv, strict=True)]
    if program == "train":
        settings = OVERRIDES | ({"train.max_steps": 8} if any("profile" in word for word in argv) else {})
        settings |= TINY if is_of_published(argv) else {}
        argv += [word for key, value in settings.items() for word in ("--set", f"{key}={json.dumps(value)}")]
        argv = [word.replace("model.compile=true", "model.compile=false") for word in argv]
        argv += [] if {"--resume", "--overwrite"} & set(argv) else ["--overwrite"]
    if program == "evaluate" and "--compare" not in argv:
        has_rows = {"clicks", "elements", "screenspot", "steps"} & set(argv)
        argv += ["--rows", "2"] if has_rows else [] if "--episodes" in argv else ["--episodes", "1"]
        argv += ["--set", "eval.max_new_tokens=4"] if {"--run", "--model"} & set(argv) else []
    if program == "show" and is_of_published(argv):
        argv += ["--set", 'model.path="tiny"']
    if program == "record":
        argv += ["--overwrite"]
    return argv


def is_of_published(argv: list[str]) -> bool:
    """Whether the config that they name trains a published checkpoint."""
    configs = [after for before, after in zip(argv, argv[1:], strict=False) if before == "--config"]
    return any(PUBLISHED.search(Path(config).read_text(encoding="utf-8")) for config in configs)


def is_run(command: Command) -> bool:
    """In `workplace`, or for Chromium's in a folder of their own."""
    return command.page not in TRANSLATIONS and is_ours(command) and (not command.needs or is_for_a_gpu(command))


def is_run_in_chromium(command: Command) -> bool:
    return command.needs == {"chromium"} and is_ours(command)


def is_ours(command: Command) -> bool:
    program = program_of(command)[0]
    return (program in COMMANDS or has_main(program)) and not run_elsewhere(command)


def is_for_a_gpu(command: Command) -> bool:
    """And can run without one, in small; one that asks a server cannot."""
    program, argv = program_of(command)
    return "gpu" in command.needs <= {"gpu", "slurm"} and program in ON_A_GPU and "--endpoint" not in argv


def run_elsewhere(command: Command) -> str:
    return next((where for start, where in RUN_ELSEWHERE.items() if str(command).startswith(start)), "")


def draw_screens(directory: Path, num_rows: int = 6) -> None:
    """Screens with one button and the click on it."""
    (directory / "images").mkdir(parents=True)
    lines = []
    for i in range(num_rows):
        image = Image.new("RGB", (256, 256), "white")
        ImageDraw.Draw(image).rectangle((10, 20 * i, 90, 20 * i + 16), fill="gray")
        image.save(directory / "images" / f"{i}.png")
        action = {"action": "click", "x": 50, "y": 20 * i + 8, "reasoning": "The button is there."}
        box = [10, 20 * i, 90, 20 * i + 16]
        lines.append({"instruction": "Click the button", "screenshot": f"images/{i}.png", "action": action, "box": box})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (directory / "dataset.jsonl").write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A clone with data of every kind and the runs that the pages speak of, each of one step."""
    place = tmp_path_factory.mktemp("workplace")
    for name in ("configs", "scripts", "examples", "benchmarks", "train.py", "eval.py"):
        (place / name).symlink_to(ROOT / name)
    with contextlib.chdir(place):
        save_dataset(place / "chat").rename(place / "my_data.jsonl")
        for picture in (place / "chat").glob("*.png"):
            picture.rename(place / picture.name)
        for name in ("data/computer_use", "data/clicks", "generated/ui_test", "generated/computer_use_tiny"):
            draw_screens(place / name)
        Image.new("RGB", (256, 256), "white").save(place / "browser.png")
        run("record", ["--config", "configs/safari_tiny.json", "--out", "generated/safari_tiny", "--episodes", "4"])
        run("record", ["--out", "data/safari", "--episodes", "2"])
        run("record", ["--task", "perception", "--out", "data/perception", "--episodes", "2"])
        for config in ("safari_tiny", "computer_use_tiny", "perception_2b"):
            run("train", small("train", ["--config", f"configs/{config}.json"]))
        for name, of, episodes in (
            ("trained", ["--policy", "noisy_oracle"], "40"),  # one step teaches nothing, and a won mission is drawn
            ("base", ["--model", "tiny"], "6"),
            ("oracle", ["--policy", "oracle"], "6"),
        ):
            config = ["--config", "configs/safari_tiny.json", "--set", "eval.max_new_tokens=4"]
            run("evaluate", [*of, *config, "--out", f"runs/safari_tiny/eval/{name}", "--episodes", episodes])
        run("evaluate", small("evaluate", ["--run", "runs/safari_tiny", "--suites", "difficulty/far"]))
        for name in ("safari_2b", "a", "b", "safari_2b_curriculum"):
            shutil.copytree(place / "runs" / "safari_tiny", place / "runs" / name, symlinks=True)
        shutil.copytree(place / "runs" / "computer_use_tiny", place / "runs" / "computer_use_2b", symlinks=True)
        shutil.copytree(place / "runs" / "safari_tiny", place / "kept" / "safari_tiny", symlinks=True)
    return place


def put_back(place: Path) -> None:
    """The runs that a training has begun anew, with their results."""
    for kept in (place / "kept").iterdir():
        if not (place / "runs" / kept.name / "eval").exists():
            shutil.rmtree(place / "runs" / kept.name, ignore_errors=True)
            shutil.copytree(kept, place / "runs" / kept.name, symlinks=True)


def run(program: str, argv: list[str]) -> None:
    status = main_of(program)(argv)
    assert status in (0, None), f"{program} {argv}: status {status}"


def run_in_small(command: Command, capfd) -> None:
    """Raise unless it ends well and has left what it names."""
    program, argv = program_of(command)
    argv = small(program, argv)
    if program == "export":  # several pages export to one folder, and none is overwritten
        shutil.rmtree(argv[argv.index("--out") + 1], ignore_errors=True)
    status = main_of(program)(argv)
    captured = capfd.readouterr()
    said = captured.err[-800:]
    well = (0, 1, None) if program == "predict" else (0, None)  # one step teaches no call
    assert status in well, f"{command.place}: {command}\nin small: {argv}\nstatus {status}: {said}"
    for before, after in zip(argv, argv[1:], strict=False):
        if before in WRITTEN and status != 1:
            assert Path(after).exists(), f"{command.place}: {command}: {after} was not written"
    if "--json" in argv:
        json.loads(captured.out)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if any(map(is_run, COMMANDS_OF[page]))])
def test_commands_run_in_a_small_form(page, workplace, monkeypatch, capfd):
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    for command in filter(is_run, COMMANDS_OF[page]):
        run_in_small(command, capfd)
        put_back(workplace)


@pytest.mark.browser
@pytest.mark.parametrize("page", [page for page in PAGES if any(map(is_run_in_chromium, COMMANDS_OF[page]))])
def test_commands_run_in_chromium_in_a_small_form(page, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    for name in ("configs", "scripts", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    for command in filter(is_run_in_chromium, COMMANDS_OF[page]):
        run_in_small(command, capfd)


def test_every_command_is_run_or_says_why_not(capsys):
    """Nothing is left over; `make test-docs` shows the counts."""
    counts = Counter(kind_of(command) for page in PAGES for command in COMMANDS_OF[page])
    inline = sum(len(documents.inline_commands(page)) for page in PAGES)
    with capsys.disabled():
        print(f"\n{sum(counts.values())} commands in blocks of {len(PAGES)} pages:")
        for what, number in counts.most_common():
            print(f"  {number:4} {what}")
        print(f"  and {inline} within sentences: parsed")


def kind_of(command: Command) -> str:
    """What is done with it."""
    needs = f"needs {', '.join(sorted(command.needs))}" if command.needs else ""
    if command.page in TRANSLATIONS:
        return "README.md's, in a translation"
    if is_run(command):
        return f"run in a small form{f', with the tiny base ({needs})' if needs else ''}"
    if is_run_in_chromium(command):
        return "run in a small form in Chromium"
    if program_of(command)[0] in LOOKED_UP:
        return "looked up: make, sbatch and programs that are not ours"
    if where := run_elsewhere(command):
        return f"run by {where}"
    assert needs, f"{command.place}: {command}: not run, and nothing says what it needs"
    return f"parsed; {needs}"


def test_a_run_leaves_what_the_pages_say(workplace):
    """The drawing of a run's folder, and whatever sentences name in `runs/NAME/`."""
    run_dir = workplace / "runs" / "safari_tiny"
    text = (ROOT / "docs/TRAINING.md").read_text(encoding="utf-8")
    drawn = re.search(r"## What a run leaves\n```\nruns/NAME/\n(.*?)```", text, re.S)[1]
    named = {line.split()[0] for line in drawn.splitlines()}
    for page in ("README.md", "docs/TRAINING.md", "docs/EVALUATION.md", "docs/METRICS.md"):
        named |= set(re.findall(r"`runs/NAME/([^\s`]+)`", (ROOT / page).read_text(encoding="utf-8"))) - {"STOP"}
    assert {"config.json", "checkpoints/best", "eval/SUITE/report.html"} <= named
    missing = [name for name in named if not (run_dir / name.replace("SUITE", "trained")).exists()]
    assert not missing


# links


LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.M)


def anchors_of(text: str) -> set[str]:
    """As GitHub makes them of headings: letters, digits, hyphens; spaces become hyphens; a second one gets -1."""
    anchors: Counter = Counter()
    found = set()
    for heading in HEADING.findall(documents.FENCED.sub("", text)):
        name = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()).replace(" ", "-")
        found.add(f"{name}-{anchors[name]}" if anchors[name] else name)
        anchors[name] += 1
    return found


@pytest.mark.parametrize("page", [*PAGES, *documents.HISTORY, "CHANGELOG.md"])
def test_links_lead_to_files_and_headings(page):
    text = documents.FENCED.sub("", (ROOT / page).read_text(encoding="utf-8"))
    faults = []
    for link in LINK.findall(re.sub(r"`[^`\n]*`", "", text)):
        name, _, anchor = link.partition("#")
        if ":" in name:
            continue
        target = ((ROOT / page).parent / name).resolve() if name else ROOT / page
        if not target.exists():
            faults.append(f"{link}: no such file")
        elif anchor and anchor not in anchors_of(target.read_text(encoding="utf-8")):
            faults.append(f"{link}: no such heading")
    assert not faults, (page, faults)


def test_anchors_are_githubs():
    assert anchors_of("# A `b.c` of d\n\n## 32B, and (so) on\n```bash\n# no\n```\n## A\n## A\n") == {
        *("a-bc-of-d", "32b-and-so-on", "a", "a-1"),
    }


# what sentences name


OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]+")
FOREIGN = {
    *("--logdir", "--project", "--deepspeed_config_file"),
    *("--enable-lora", "--mm-processor-kwargs"),
    *("--partition", "--account", "--time", "--mem", "--batch", "--signal"),
    "--no-install-recommends",
}
"""Options of TensorBoard, trackio, Accelerate, vLLM, Slurm and apt."""
SETTING = re.compile(r"(?<![\w./])(model|data|prompt|vision|train|eval|profile)\.([a-z_]+)(?![\w(])")
NO_SETTINGS = {"train.py", "eval.py", "prompt.py", "data.json", "train.train", "train.train_stages"}
NO_SETTINGS |= {"train.sbatch", "eval.sbatch", "model.bind_precision", "model.language_model"}
"""Files, functions and modules."""
FOLDERS = "docs|tests|scripts|configs|examples|benchmarks|worlds|data|training|evaluation|model|formats|inference|curation|studies|playground|cli"
FILE = re.compile(rf"(?<![\w/.-])(?:qwenvl_agent/)?(?:{FOLDERS})/[\w./-]+\.(?:py|md|html|sh|png|webp|sbatch)\b")
SOURCES = ("qwenvl_agent", "scripts", "benchmarks", "examples", "docs/tutorial")


def said_inline(page: str) -> list[str]:
    """What stands in `code` within sentences."""
    text = documents.FENCED.sub("", (ROOT / page).read_text(encoding="utf-8"))
    return [found[1] for found in documents.INLINE.finditer(text)]


def own_options() -> set[str]:
    """All that the sources name, without those that have another name now."""
    literals, former = set(), set()
    for path in [path for folder in SOURCES for path in (ROOT / folder).rglob("*.py")]:
        text = path.read_text(encoding="utf-8")
        literals |= set(re.findall(r'"(--[a-z][\w-]+)', text))
        former |= set(re.findall(r'"(--[\w-]+)": "--', text))
    return literals - (former - {"--set", "--draw", "--rows", "--world", "--size"})  # which others have


@pytest.mark.parametrize("page", [page for page in PAGES if page != "docs/COMMANDS.md"])
def test_options_in_sentences_are_there(page):
    named = {option for code in said_inline(page) for option in OPTION.findall(code)}
    assert named <= own_options() | FOREIGN


@pytest.mark.parametrize("page", PAGES)
def test_settings_in_sentences_are_there(page):
    groups = typing.get_type_hints(Config)
    named = {found for code in said_inline(page) for found in SETTING.findall(code)}
    known = {
        (group, field.name) for group in {group for group, _ in named} for field in dataclasses.fields(groups[group])
    }
    assert {f"{group}.{name}" for group, name in named - known} <= NO_SETTINGS


@pytest.mark.parametrize("page", [page for page in PAGES if page != "docs/COMPARISON.md"])
def test_files_in_sentences_are_there(page):
    named = {found[0] for code in said_inline(page) for found in FILE.finditer(code)}
    named = {name for name in named if not re.search(r"\b[A-Z]{2,}\b", Path(name).stem) or name.startswith("docs/")}
    assert not [name for name in named if not any((base / name).exists() for base in (ROOT, ROOT / "qwenvl_agent"))]


# what the pages say of the package


@pytest.mark.parametrize("translation", ["README.ko.md", "README.zh.md"])
def test_a_translation_has_the_readmes_blocks(translation):
    """Each of its blocks is one of README.md's but for the comments, in the same order; the first three are all there."""
    original = [bare(block) for block in documents.blocks("README.md")]
    translated = [bare(block) for block in documents.blocks(translation)]
    places = [original.index(block) for block in translated]
    assert places == sorted(places) and places[:3] == [0, 1, 2]


def bare(block: documents.Block) -> tuple:
    return tuple(command.words for command in documents.commands_of(block)), tuple(sorted(block.needs))


def test_figures_of_the_demo_stand_in_one_place():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    begin, end = "<!-- the demo's figures: here and nowhere else -->", "<!-- end of the demo's figures -->"
    figures = set(re.findall(r"\d[\d.]*", text.partition(begin)[2].partition(end)[0]))
    won = re.search(r"\| trained, 200 worlds \| ([\d.]+) %", text)[1]
    assert won in figures
    for page in ("README.ko.md", "README.zh.md", "docs/TRAINING.md"):
        assert f"{won} %" not in (ROOT / page).read_text(encoding="utf-8"), page


def test_every_command_is_in_the_table_of_commands():
    rows = re.findall(r"^\| `([a-z-]+)` \|", (ROOT / "docs/INSTALL.md").read_text(encoding="utf-8"), re.M)
    assert set(COMMANDS) <= set(rows)


def test_every_config_is_in_the_table_and_its_data_is_made_by_a_command():
    """By a command of the docs or of a demo, by the config's own stages, or by the reader's own hands (the page says so)."""
    text = (ROOT / "docs/TRAINING.md").read_text(encoding="utf-8")
    scripts = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "scripts").glob("demo*.sh"))
    made = {place for page in PAGES for command in COMMANDS_OF[page] for place in made_by(command)}
    for path in sorted((ROOT / "configs").glob("*.json")):
        if path.stem == "schema":
            continue
        assert f"| `{path.stem}` |" in text, path.name
        values = json.loads(path.read_text(encoding="utf-8"))
        own = {entry["out"] for stage in values.get("stages", ()) for entry in stage.get("record", ())}
        for source in values.get("data", {}).get("sources", ()):
            place = source["path"].removesuffix("/dataset.jsonl")
            assert place in made | own or f"{place}\n" in scripts or f"--out {place} " in scripts, (path.name, place)


def made_by(command: Command) -> list[str]:
    return [after for before, after in zip(command.words, command.words[1:], strict=False) if before == "--out"]
