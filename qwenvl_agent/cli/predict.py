"""One picture and one instruction to one action, as JSON in pixels of the picture.

    qwenvl-agent predict --run runs/computer_use_2b --image screen.png --instruction "open the menu"
    qwenvl-agent predict --model Qwen/Qwen3-VL-2B-Instruct --image screen.png --instruction "..." --draw out.png
    qwenvl-agent predict --endpoint http://127.0.0.1:8000/v1 --model exports/2b --image ... --instruction ...

--model takes a hub id, a folder with a model, merged weights, or an adapter. The exit status is 0 for an action, 1 for
an answer of which none could be read (the JSON has its error and its text), 2 for a mistake in what was asked.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from qwenvl_agent.command import Parser, bounded, command, run_command
from qwenvl_agent.computer import KINDS
from qwenvl_agent.computer.drawing import draw_action
from qwenvl_agent.config import FORMAT_NAMES
from qwenvl_agent.images import read_rgb
from qwenvl_agent.inference.agent import TEMPERATURE, load_agent
from qwenvl_agent.inference.load import run_of


@command("there is no answer")
def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    result = predict(args)
    if args.draw:
        draw_action(read_rgb(args.image, str(args.image)), result).save(args.draw)
    print(json.dumps(result, ensure_ascii=False))
    return 1 if result["action"] is None else 0


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("--run", type=Path, help="folder of a run, or of one of its checkpoints")
    who.add_argument("--model", help="hub id, folder of a model, of merged weights or of an adapter, or `tiny`")
    parser.add_argument("--image", type=Path, required=True, help="the screenshot")
    parser.add_argument("--instruction", required=True, help="what to do on it")
    parser.add_argument("--history", action="append", default=[], metavar="LINE", help="a step before; oldest first")
    parser.add_argument("--draw", type=Path, metavar="FILE", help="write the picture with the action marked")
    parser.add_argument("--endpoint", metavar="URL", default="", help="OpenAI-compatible server that has --model")
    parser.add_argument("--checkpoint", default="", help="of --run: best, last, step_000500 (default: best, else last)")
    parser.add_argument("--config", type=Path, help="settings for --model: picture budget, format")
    parser.add_argument("--format", choices=FORMAT_NAMES, default="", help="action format of --model")
    parser.add_argument("--actions", nargs="+", choices=KINDS, default=(), help="kinds that the tool offers")
    parser.add_argument(
        "--temperature", type=bounded(float, 0, 1e3), default=TEMPERATURE, help="default: %(default)s; 0: greedy"
    )
    parser.add_argument("--max-new-tokens", type=bounded(int, 0), default=0, help="default: the config's")
    parser.add_argument("--device", help="default: cuda if there is one, else cpu")
    return parser


def predict(args: argparse.Namespace) -> dict:
    read_rgb(args.image, f"picture {str(args.image)!r}")  # before a model is loaded for nothing
    check_out(args.draw)
    if args.run and run_of(args.run) is None:
        raise ValueError(
            f"--run {args.run} is no folder of a run: there is nothing to load; give runs/NAME, or --model"
        )
    if args.endpoint and not args.model:
        raise ValueError("--endpoint without --model: a server may have several models; give --model as it names it")
    agent = load_agent(
        args.run or args.model,
        checkpoint=args.checkpoint,
        endpoint=args.endpoint,
        config=args.config,
        format=args.format,
        actions=args.actions,
        temperature=args.temperature,
        max_new_tokens=args.max_new_tokens,
        device=args.device,
    )
    return agent.act(args.image, args.instruction, args.history)


def check_out(path: Path | None) -> None:
    if path is not None and (path.suffix.lower() not in Image.registered_extensions() or not path.parent.is_dir()):
        raise ValueError(f"--draw {path} cannot be written: name a .png or .jpg in a folder that exists")


if __name__ == "__main__":
    run_command(main)
