"""How the commands that make a data set begin and end: nothing is lost unasked, and manifest.json says what was made."""

import argparse
import hashlib
from pathlib import Path

from qwenvl_agent.coordinates import BOX_ORDERS
from qwenvl_agent.data.readers.units import UNIT_NAMES
from qwenvl_agent.files import write_json


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


def write_manifest(out: Path, about: dict) -> dict:
    """`about`, with the hash of dataset.jsonl, as manifest.json; returns it."""
    with open(out / "dataset.jsonl", "rb") as file:
        manifest = about | {"sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    write_json(out / "manifest.json", manifest)
    return manifest
