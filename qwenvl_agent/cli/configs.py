"""The configs that come with the package: list them, or copy them into a folder to run and to change them there.

qwenvl-agent configs
qwenvl-agent configs --out configs
qwenvl-agent plan --config configs/safari_2b.json --gpu-gb 24
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import qwenvl_agent
from qwenvl_agent.command import Parser, command, run_command

CONFIGS_DIR = Path(qwenvl_agent.__file__).parent / "configs"


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    parser.add_argument("--out", type=Path, metavar="DIR", help="copy them into this folder, which must be new")
    parser.add_argument("--json", action="store_true", help="print the list as JSON and nothing else")
    return parser


@command("no config was copied")
def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    if args.out:
        copy_to(args.out)
    if args.json:
        print(json.dumps([as_json(path, args.out or CONFIGS_DIR) for path in shipped()]))
        return 0
    for path in shipped():
        print(args.out / path if args.out else f"{path.as_posix():40}{about(CONFIGS_DIR / path)}".rstrip())
    return 0


def as_json(path: Path, folder: Path) -> dict:
    model = json.loads((CONFIGS_DIR / path).read_text(encoding="utf-8")).get("model") or {}
    return {
        "name": path.as_posix(),
        "path": str(folder / path),
        "model": model.get("path"),
        "method": model.get("method"),
    }


def shipped() -> list[Path]:
    """Their places under `CONFIGS_DIR`; the schemas are copied with them and are none."""
    paths = (path.relative_to(CONFIGS_DIR) for path in CONFIGS_DIR.rglob("*.json"))
    return sorted(path for path in paths if path.name != "schema.json")


def about(path: Path) -> str:
    """The model and the way it is trained, of a config that names one."""
    model = json.loads(path.read_text(encoding="utf-8")).get("model")
    return f"{model['path']}, {model.get('method', '')}" if isinstance(model, dict) and "path" in model else ""


def copy_to(out: Path) -> None:
    if out.exists():
        raise ValueError(f"{out} exists: what is there would be mixed with the package's; name a new folder")
    shutil.copytree(CONFIGS_DIR, out)


if __name__ == "__main__":
    run_command(main)
