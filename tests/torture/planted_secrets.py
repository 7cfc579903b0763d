"""What must stay at home: tokens, the user's name, the home folder, in every file that this package writes.

One home is made with a user's name, tokens in its environment and in the places where the hub keeps them, data and a tiny
checkpoint in it; the commands run there as a user would type them, by relative paths. Then every byte of every file that
they made is searched: plain, of archives, compressed chunks and base64 too. A case is one command and one kind of secret.
"""

import base64
import json
import os
import re
import subprocess
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from attack import Attack, Outcome
from tiny_run import save_config, save_dataset, save_tiny_checkpoint, tiny_config

ROOT = Path(__file__).resolve().parents[2]
USER = "zebra7731user"
SECRETS = {
    "a token": ("hf_zebra7731TOKENTOKEN", "sk-zebra7731KEY", "wb-zebra7731KEY", "zebra7731password"),
    "the user's name": (USER,),
    "the home folder": (f"/home_of_{USER}",),
}
ENVIRONMENT = {
    **dict.fromkeys(("USER", "LOGNAME", "USERNAME"), USER),
    **dict.fromkeys(("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"), "hf_zebra7731TOKENTOKEN"),
    **dict.fromkeys(("OPENAI_API_KEY", "ENDPOINT_API_KEY", "ANTHROPIC_API_KEY"), "sk-zebra7731KEY"),
    **dict.fromkeys(("WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD", "COMET_API_KEY"), "wb-zebra7731KEY"),
    **{"HTTP_PROXY": "http://me:zebra7731password@192.0.2.1:1/", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
}
SAFARI = ["--world", "safari", "--episodes", "2"]
COMMANDS: dict[str, list[list[str]]] = {
    "train": [["train", "--config", "config.json"]],
    "resume": [["train", "--config", "config.json", "--resume", "--set", "train.max_steps=4"]],
    "check-data": [["check-data", "data/dataset.jsonl", "--config", "config.json", "--write", "written.json"]],
    "show": [["show", "--config", "config.json", "--out", "samples.html"]],
    "evaluate steps": [["evaluate", "--run", "runs/run", "--suite", "steps", "--rows", "2"]],
    "report, rescore": [["report", "runs/run/eval/steps", "--out", "page.html"], ["rescore", "runs/run/eval/steps"]],
    "export": [["export", "runs/run", "--out", "exported"]],
    "record": [["record", *SAFARI, "--out", "recorded"]],
    "evaluate a baseline": [
        ["evaluate", "--policy", "oracle", "--suite", "safari", "--episodes", "2", "--out", "oracle"]
    ],
    "convert": [["convert", "--layout", "screenspot", "--data", "spot.json", "--pictures", "data", "--out", "screens"]],
    "evaluate clicks": [
        ["evaluate", "--policy", "oracle", "--suite", "clicks", "--data", "screens", "--out", "clicks"]
    ],
    "plan": [["plan", "--config", "config.json", "--json"]],
}


def home_in(scratch: Path) -> Path:
    """The home with what the commands read, made once."""
    home = scratch / f"home_of_{USER}"
    if home.exists():
        return home
    for folder in (".cache/huggingface", ".config"):
        (home / folder).mkdir(parents=True)
    (home / ".cache/huggingface/token").write_text("hf_zebra7731TOKENTOKEN")
    (home / ".netrc").write_text("machine api.wandb.ai login user password wb-zebra7731KEY\n")
    work = home / "work"
    save_tiny_checkpoint(work / "base")
    save_dataset(work / "data", 8)
    config = tiny_config(Path(), Path("base"), Path("data/dataset.jsonl"), train={"max_steps": 2, "save_every": 2})
    save_config(config, work / "config.json")
    spot = [
        {"img_filename": "0.png", "instruction": f"open {i}", "bbox": [4 + i, 4, 8, 8], "data_type": "icon"}
        for i in range(3)
    ]
    (work / "spot.json").write_text(json.dumps(spot))
    return home


def run_command(home: Path, words: Sequence[str]) -> str:
    """What it said, "" for status 0."""
    environment = {**os.environ, **ENVIRONMENT, "HOME": str(home), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "qwenvl_agent", *words]
    ran = subprocess.run(command, cwd=home / "work", env=environment, capture_output=True, text=True, timeout=900)
    return "" if ran.returncode == 0 else ran.stderr[-300:]


def contents(path: Path) -> Iterator[bytes]:
    """A file's bytes, and what is packed in them: PNG's and ZIP's deflated parts, base64."""
    content = path.read_bytes()
    yield content
    for start in (match.start() for match in re.finditer(rb"x[\x01\x5e\x9c\xda]", content[: 2**20])):
        try:
            yield zlib.decompressobj().decompress(content[start:], 2**22)
        except zlib.error:
            continue
    for text in re.findall(rb"[A-Za-z0-9+/]{64,}={0,2}", content[: 2**22])[:50]:
        yield base64.b64decode(text[: len(text) // 4 * 4])


def files_of(home: Path) -> Iterator[Path]:
    """What the commands wrote, and not what they read."""
    work = home / "work"
    for folder in ("runs", "exported", "recorded", "oracle", "screens", "clicks"):
        yield from (path for path in (work / folder).rglob("*") if path.is_file() and not path.is_symlink())
    yield from (path for path in work.glob("*.*") if path.is_file())


def told_by(home: Path, name: str) -> dict[str, str]:
    """Of each kind of secret the files that a command wrote it into, "" for none; or why the command failed."""
    before = {path: path.stat().st_mtime_ns for path in files_of(home)}
    said = next(filter(None, (run_command(home, words) for words in COMMANDS[name])), "")
    if said:
        return dict.fromkeys(SECRETS, f"it failed: {said}")
    written = [path for path in files_of(home) if before.get(path) != path.stat().st_mtime_ns]
    found: dict[str, list[str]] = {kind: [] for kind in SECRETS}
    for path in written:
        parts = list(contents(path))
        for kind, secrets in SECRETS.items():
            if any(secret.encode() in part for part in parts for secret in secrets):
                found[kind].append(str(path.relative_to(home)))
    return {kind: ", ".join(paths[:6]) for kind, paths in found.items()}


def run(seed: int, cases: Sequence[int], scratch: Path) -> Iterator[Outcome]:
    """A command runs behind those before it, once for all its cases."""
    home, names, kinds = home_in(scratch), list(COMMANDS), list(SECRETS)
    told: dict[str, dict[str, str]] = {}
    for case in cases:
        name, kind = names[case // len(kinds)], kinds[case % len(kinds)]
        for before in names[: names.index(name) + 1]:
            if before not in told:
                told[before] = told_by(home, before)
        yield Outcome(f"{kind}, in what {name} writes", not told[name][kind], told[name][kind])


ATTACK = Attack(
    "secrets",
    "planted tokens, a user's name and a home in all files that twelve commands write",
    full=len(COMMANDS) * len(SECRETS),
    quick=3,
    seconds=900,
    run=run,
    patience=900,
)
