"""What may leave for a model hub, and the way there. One decision: what is not known to belong to a model stays here.

A list of what is forbidden would miss the next kind of file; so names are allowed one by one, and then looked into.
"""

import fnmatch
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from qwenvl_agent.inference.load import AGENT_CONFIG

REPO = r"[\w.-]+/[\w.-]+"

WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "adapter_model.safetensors")
TEXTS = (
    "README.md",
    "LICENSE*",
    AGENT_CONFIG,
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
)
NEEDED = ("README.md", AGENT_CONFIG)
KINDS = {
    "a state of an optimizer or of a run": (
        "optimizer*",
        "scheduler*",
        "rank_*.json",
        "state.json",
        "deepspeed/*",
        "checkpoints/*",
    ),
    "rows of data or pictures": (
        *("*.jsonl", "*.parquet", "*.arrow", "*.csv", "*.npy", "*.npz", "images/*", "data/*"),
        *("*.png", "*.jpg", "*.jpeg", "*.webp", "*.gif"),
    ),
    "a pickle, which runs code where it is loaded": ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt"),
    "a file that may hold secrets": (
        ".env*",
        "*.pem",
        "*.key",
        "id_*",
        "*token*",
        "*secret*",
        "*credential*",
        ".netrc",
        ".git*",
    ),
}
"""What a file that is not allowed is, for the message."""
SECRETS = {
    "a token of the Hugging Face hub": r"\bhf_[A-Za-z0-9]{30,}",
    "an API key": r"\b(?:sk|rk|pk)-(?:[a-z]+-)?[A-Za-z0-9_-]{20,}",
    "a key of AWS": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "a token of GitHub": r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{40,})",
    "a token of GitLab": r"\bglpat-[A-Za-z0-9_-]{20,}",
    "a token of Slack": r"\bxox[abprs]-[A-Za-z0-9-]{10,}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a password in an address": r"\b[a-z][a-z0-9+.-]*://[^\s/:@\"']+:[^\s/:@\"']+@",
}
VOCABULARIES = ("tokenizer.json", "vocab.json", "merges.txt")
"""Made of the words of the base's text: millions of pieces, in which anything may look like a key."""
PATH = re.compile(r'"(/(?:home|Users|root|mnt|scratch|data|work)[^"]*)"')


@dataclass(frozen=True)
class File:
    name: str
    size: int
    """In bytes."""


@dataclass(frozen=True)
class Parcel:
    """What goes, all of it looked at."""

    folder: Path
    repo: str
    files: tuple[File, ...]
    notes: tuple[str, ...]
    """What a person may want to know before it is public."""


def look_through(folder: Path, repo: str) -> Parcel:
    """Every file of an exported folder; ValueError that names all that must not go, and why."""
    if not re.fullmatch(REPO, repo):
        raise ValueError(f"{repo!r} is no repository of a hub: nothing can go there; write OWNER/NAME")
    if not folder.is_dir():
        raise ValueError(
            f"{folder} is no folder: there is nothing to push; name what `qwenvl-agent export` has written"
        )
    if (folder / "checkpoints").is_dir() or (folder / "state.json").is_file():
        raise ValueError(
            f"{folder} is a run or a checkpoint: its optimizer and its figures of training would go too; first "
            f"`qwenvl-agent export {folder} --out exports/NAME`, then push that"
        )
    paths = sorted(path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())
    faults = [fault for path in paths for fault in faults_of(path, path.relative_to(folder).as_posix())]
    if faults:
        raise ValueError(
            f"{folder}: nothing was pushed: {'; '.join(faults)}; take them out, or export into a new folder"
        )
    names = {path.relative_to(folder).as_posix() for path in paths}
    for needed in NEEDED:
        if needed not in names:
            raise ValueError(
                f"{folder} has no {needed}: nobody could tell what it is; push what `qwenvl-agent export` writes"
            )
    if not any(matches(name, WEIGHTS) for name in names):
        raise ValueError(f"{folder} has no weights: there is no model to push; push what `qwenvl-agent export` writes")
    files = tuple(File(path.relative_to(folder).as_posix(), path.stat().st_size) for path in paths)
    return Parcel(folder, repo, files, tuple(notes_of(folder)))


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def faults_of(path: Path, name: str) -> Iterator[str]:
    """Why it must not go, if so."""
    if path.is_symlink():
        yield f"{name} is a link, and what it points to would go"
    elif not matches(name, (*WEIGHTS, *TEXTS)):
        kind = next(
            (kind for kind, patterns in KINDS.items() if matches(name.lower(), patterns)), "no part of an export"
        )
        yield f"{name} is {kind}"
    elif matches(name, TEXTS) and name not in VOCABULARIES:
        text = path.read_text(encoding="utf-8", errors="replace")
        for what, pattern in SECRETS.items():
            if found := re.search(pattern, text):
                yield f"{name}:{text.count(chr(10), 0, found.start()) + 1} holds {what}"


def notes_of(folder: Path) -> Iterator[str]:
    """Paths of this machine, which the config names, are no secrets, but of no use to others."""
    paths = sorted({path for name in (AGENT_CONFIG, "adapter_config.json") for path in paths_in(folder / name)})
    if paths:
        yield f"paths of this machine stand in it: {', '.join(paths[:3])}{', ...' if len(paths) > 3 else ''}"
    if "license:" not in (folder / "README.md").read_text(encoding="utf-8").partition("\n---")[0]:
        yield "the card states no licence; export it with --license NAME if yours is settled"


def paths_in(path: Path) -> list[str]:
    return PATH.findall(path.read_text(encoding="utf-8")) if path.is_file() else []


def upload(parcel: Parcel, *, private: bool, revision: str | None, message: str) -> str:
    """One commit of just these files; its address. ValueError in one line for what the hub or the network refuses."""
    from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    if constants.HF_HUB_OFFLINE:
        refuse(parcel, "HF_HUB_OFFLINE is set", "unset it, or give --dry-run")
    if not get_token():
        refuse(
            parcel,
            "there is no token of the hub on this machine",
            "`hf auth login`, or set HF_TOKEN to one that may write",
        )
    api = HfApi()
    operations = [CommitOperationAdd(file.name, parcel.folder / file.name) for file in parcel.files]
    try:
        api.create_repo(parcel.repo, private=private, exist_ok=True)
        commit = api.create_commit(parcel.repo, operations, commit_message=message, revision=revision)
    except (HfHubHTTPError, HTTPError) as error:
        refuse(parcel, str(error), "look at the network, the token's rights and the repository's name")
    return str(commit.commit_url)


def refuse(parcel: Parcel, why: str, remedy: str) -> NoReturn:
    raise ValueError(f"{parcel.repo}: nothing was pushed ({' '.join(why.split())[:300]}); {remedy}")
