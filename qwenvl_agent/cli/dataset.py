"""How the commands that make a data set begin and end: nothing is lost unasked, and manifest.json says what was made."""

import argparse
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qwenvl_agent.coordinates import BOX_ORDERS
from qwenvl_agent.data.readers.units import UNIT_NAMES
from qwenvl_agent.files import read_json, sha256_of


def add_unit_options(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """What a source says of its places (`data.sources[].unit` and so on), where a command names the file itself."""
    default = "default: px, if nothing in the file speaks against it"
    parser.add_argument("--unit", choices=UNIT_NAMES, default="", help=f"of the data's places ({default})")
    parser.add_argument("--box-unit", choices=UNIT_NAMES, default="", help="of its boxes (default: --unit)")
    parser.add_argument("--box-order", choices=BOX_ORDERS, default="", help="of a box's four numbers (default: xyxy)")


def refuse_to_lose(out: Path, overwrite: bool) -> None:
    """ValueError if a data set is there that nobody said may go."""
    if (out / "dataset.jsonl").exists() and not overwrite:
        raise ValueError(f"{out}/dataset.jsonl exists and would be lost; give another --out or --overwrite")


def digest(about: dict) -> str:
    """Of all that was asked, whatever options there are."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def find_recorded(out: Path, about: dict) -> dict | None:
    """The manifest of the dataset in `out`, None if there is none; ValueError if it is not the one that `about` asks for,
    or not as it was written."""
    if not (out / "dataset.jsonl").exists():
        return None
    remedy = "give another folder, or record it anew with --overwrite"
    if not (out / "manifest.json").exists():
        raise ValueError(f"{out} has a dataset and no manifest.json: what it was recorded from is not known; {remedy}")
    manifest, asked = read_json(out / "manifest.json"), json.loads(json.dumps(about))
    if manifest.get("asked", digest(asked)) != digest(asked) or any(manifest.get(key) != asked[key] for key in asked):
        others = [
            f"{key} {manifest.get(key)!r} (not {asked[key]!r})" for key in asked if manifest.get(key) != asked[key]
        ]
        what = ", ".join(others)[:400] or "other options"
        raise ValueError(f"{out} is another dataset, with {what}: something else would be learned; {remedy}")
    if manifest["sha256"] != sha256_of(out):
        raise ValueError(f"{out}/dataset.jsonl is not as it was recorded (another SHA-256): {remedy}")
    return manifest


@contextmanager
def written_whole(out: Path, is_whole: bool) -> Iterator[Path]:
    """If `is_whole`, a folder beside `out`, which takes its place when the block ends: a kill leaves no half of a dataset
    under that name; else `out` itself."""
    if not is_whole:
        yield out
        return
    part = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(part, ignore_errors=True)
    yield part
    if out.is_dir() and not any(out.iterdir()):
        out.rmdir()
    part.rename(out)
