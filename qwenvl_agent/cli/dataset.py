"""How the commands that make a data set begin and end: nothing is lost unasked, and manifest.json says what was made."""

import hashlib
from pathlib import Path

from qwenvl_agent.files import write_json


def refuse_to_lose(out: Path, overwrite: bool) -> None:
    """ValueError if a data set is there that nobody said may go."""
    if (out / "dataset.jsonl").exists() and not overwrite:
        raise ValueError(f"{out}/dataset.jsonl exists and would be lost; give another --out or --overwrite")


def write_manifest(out: Path, about: dict) -> dict:
    """`about`, with the hash of dataset.jsonl, as manifest.json; returns it."""
    with open(out / "dataset.jsonl", "rb") as file:
        manifest = about | {"sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    write_json(out / "manifest.json", manifest)
    return manifest
