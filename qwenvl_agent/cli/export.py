"""Turn a run into a folder that transformers, vLLM and `transformers serve` load as any other model.

    qwenvl-agent export runs/safari_2b --out exports/safari_2b
    qwenvl-agent export runs/safari_2b --out exports/safari_2b_adapter --adapter

Adapters are merged, weights are bfloat16, processor, chat template and model card lie beside them. The folder is read
back and its logits are compared with the live model's; if they differ, it is not kept. Takes memory for the run's
model and one bfloat16 copy of it. With --adapter nothing is merged and no weights are loaded. Up to a hub: push.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from qwenvl_agent.command import Parser, command, run_command
from qwenvl_agent.model_card import BASES

if TYPE_CHECKING:
    from qwenvl_agent.export import Export


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    parser.add_argument("run", type=Path, help="folder of a run (its best, else last checkpoint), or of a checkpoint")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument(
        "--base",
        choices=BASES,
        default="trained",
        help="of a QLoRA run, merge into the weights trained on (NF4, unpacked) or the original (default: %(default)s)",
    )
    parser.add_argument(
        "--parse-on-server",
        action="store_true",
        help="let `transformers serve` take calls out of the answers, as chat clients want it; a malformed call is "
        "then the server's internal error, and eval.py --endpoint sees no raw text",
    )
    parser.add_argument(
        "--adapter", action="store_true", help="the adapter alone, as peft loads it onto its base; nothing is merged"
    )
    parser.add_argument(
        "--license",
        default="",
        metavar="NAME",
        help="of these weights, for the card (default: what the base says of itself)",
    )
    parser.add_argument("--device", help="default: cuda if there is one, else cpu")
    parser.add_argument("--json", action="store_true", help="print the comparison on stdout, and nothing else there")
    return parser


@command("nothing was exported")
def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    if args.adapter and args.base != "trained":
        raise ValueError("--base original with --adapter: nothing is merged there; leave one of them out")
    from qwenvl_agent.export import export_adapter, export_run  # torch, which takes seconds

    messages = Console(stderr=True)
    options = {"parse_on_server": args.parse_on_server, "licence": args.license}
    if args.adapter:
        with messages.status("starting") as status:
            made = export_adapter(args.run, args.out, say=status.update, **options)
        about = {"directory": str(made.directory)}
        print(
            json.dumps(about, indent=1)
            if args.json
            else f"{made.directory}: the adapter, the bytes of the checkpoint's"
        )
        return 0
    with messages.status("starting") as status:
        export = export_run(
            args.run,
            args.out,
            base=args.base,
            device=args.device,
            say=status.update,
            **options,
        )
    print(json.dumps(as_json(export), indent=1) if args.json else summary(export))
    return 0


def as_json(export: "Export") -> dict:
    return asdict(export) | {"directory": str(export.directory)}


def summary(export: "Export") -> str:
    lines = [f"{export.directory}: {export.merged.mean_kl:.2g} nats a token from the model before the merge"]
    if export.base == "original":
        lines.append(f"{export.live.mean_kl:.2g} nats a token from the run's 4-bit model")
    if export.adapter:
        lines.append(f"(the adapter itself makes {export.adapter.mean_kl:.2g})")
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main)
