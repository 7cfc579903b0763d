"""Put an exported folder on a model hub. Every file is looked at first, and nothing goes if one of them should not.

    qwenvl-agent push exports/safari_2b NAME/safari-2b --dry-run       # what would go, and what is in the way; no network
    qwenvl-agent push exports/safari_2b NAME/safari-2b --private

What may go is what `qwenvl-agent export` writes: weights, processor, config, card, a licence. Rows of data, optimizer states,
pickles, links, and text in which a key or a token stands are refused by name. The token is huggingface_hub's: `hf auth
login`, or HF_TOKEN.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from qwenvl_agent.command import Parser, command, run_command
from qwenvl_agent.hub import Parcel, look_through, upload


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    parser.add_argument("folder", type=Path, help="what `qwenvl-agent export` has written")
    parser.add_argument("repo", metavar="OWNER/NAME", help="the model repository; made if it is not there")
    parser.add_argument("--dry-run", action="store_true", help="list what would go, and stop: no network")
    parser.add_argument("--private", action="store_true", help="of a repository that is made")
    parser.add_argument("--revision", metavar="BRANCH", help="commit to this branch (default: main)")
    parser.add_argument("--message", default="Upload an agent", help="of the commit (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print what goes, or has gone, as JSON and nothing else")
    return parser


@command("the hub has the whole commit or nothing of it")
def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    parcel = look_through(args.folder, args.repo)
    url = "" if args.dry_run else upload(parcel, private=args.private, revision=args.revision, message=args.message)
    print(json.dumps(as_json(parcel, url)) if args.json else "\n".join(lines_of(parcel, url)))
    return 0


def as_json(parcel: Parcel, url: str) -> dict:
    files = [{"name": file.name, "bytes": file.size} for file in parcel.files]
    return {"repo": parcel.repo, "files": files, "notes": list(parcel.notes), "commit": url or None}


def lines_of(parcel: Parcel, url: str) -> list[str]:
    lines = [f"{file.size:>14,}  {file.name}" for file in parcel.files]
    lines += [f"note: {note}" for note in parcel.notes]
    total = sum(file.size for file in parcel.files)
    return [
        *lines,
        f"{'commit ' + url if url else 'would go to ' + parcel.repo}: {len(parcel.files)} files, {total:,} bytes",
    ]


if __name__ == "__main__":
    run_command(main)
