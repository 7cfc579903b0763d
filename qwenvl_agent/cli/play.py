"""A playground on this machine: missions by hand or by a trained agent, screenshots, two runs beside each other.

    qwenvl-agent play                                        # runs/safari_tiny, which make demo trains
    qwenvl-agent play --run runs/a --run runs/b              # two to compare; --run runs/computer_use_tiny for screenshots
    qwenvl-agent play --world examples/worlds/minigrid/world.py:make_world      # a world of your own; without a run by hand
    qwenvl-agent play --model exports/2b --endpoint http://127.0.0.1:8000/v1    # a served model

Opens http://127.0.0.1:PORT/TOKEN/ in the browser. Without the token nothing is answered, other machines are not listened
to, and the page loads nothing from elsewhere. Models are loaded when they are first asked. docs/PLAYGROUND.md
"""

import argparse
import json
import os
import threading
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from qwenvl_agent.command import Parser, bounded, command, run_command
from qwenvl_agent.config import FORMAT_NAMES
from qwenvl_agent.inference.load import Source, find, find_run, run_of
from qwenvl_agent.playground.playground import Playground, find_worlds

DEFAULT_RUN = Path("runs/safari_tiny")
QUIET = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    who = parser.add_argument_group("who plays, beside you and the worlds' own policies")
    who.add_argument(
        "--run",
        type=Path,
        action="append",
        default=[],
        help=f"a run or checkpoint; again for more (default: {DEFAULT_RUN})",
    )
    who.add_argument(
        "--model", action="append", default=[], help="hub id, folder of a model, merged weights, an adapter, `tiny`"
    )
    who.add_argument(
        "--checkpoint", default="", help="of every --run: best, last, step_000500 (default: best, else last)"
    )
    who.add_argument("--endpoint", metavar="URL", default="", help="OpenAI-compatible server of every --model")
    who.add_argument("--config", type=Path, help="settings for --model: picture budget, format, world")
    who.add_argument("--format", choices=FORMAT_NAMES, default="", help="action format of --model")
    who.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY.PATH=VALUE",
        help="how models answer, such as eval.temperature=0.7",
    )
    who.add_argument("--device", help="default: cuda if there is one, else cpu")
    where = parser.add_argument_group("where")
    where.add_argument(
        "--world", action="append", default=[], metavar="NAME", help="a world to choose, or path/to/file.py:make_world"
    )
    where.add_argument("--rules", type=json.loads, default={}, help="rules of every --world, as one JSON object")
    page = parser.add_argument_group("page")
    page.add_argument("--port", type=bounded(int, 0, 65535), default=0, help="default: any that is free")
    page.add_argument("--no-open", action="store_true", help="print the address, open no browser")
    return parser


def find_sources(args: argparse.Namespace) -> dict[str, Source]:
    """Models by the name that the page shows; ValueError if one is not there, before anything is opened."""
    if args.endpoint and not args.model:
        raise ValueError("--endpoint without --model: a server may have several models; give --model as it names it")
    sources: dict[str, Source] = {}
    for path in args.run or ([] if args.model or args.world else [DEFAULT_RUN]):
        if run_of(path) is None:
            raise ValueError(
                f"{path} is no folder of a run: there is no agent to play with; train one (make demo), name one with --run, or "
                "play by hand (--world safari)"
            )
        source = find_run(path, checkpoint=args.checkpoint, overrides=args.set)
        sources[unused(path.resolve().name, str(path), sources)] = source
    for model in args.model:
        source = find(model, endpoint=args.endpoint, config=args.config, format=args.format, overrides=args.set)
        sources[unused(Path(model).name, model, sources)] = source
    return sources


def unused(short: str, whole: str, names: dict) -> str:
    """The short name, or the whole path where another has it."""
    name = whole if short in names else short
    if name in names:
        raise ValueError(f"{whole} is named twice: it would play against itself; name it once")
    return name


@command("missions in play are not kept")
def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    os.environ.update(QUIET)  # before gradio is imported
    sources = find_sources(args)
    worlds = find_worlds(sources, args.world, args.rules)
    check_gradio()
    from qwenvl_agent.playground.server import PlaygroundServer

    playground = Playground(sources, worlds, device=args.device)
    try:
        server = PlaygroundServer(playground, args.port)
        print(f"{server.address}\nCtrl-C ends", flush=True)
        if not args.no_open:
            threading.Timer(1, webbrowser.open, [server.address]).start()
        server.serve()
    finally:
        playground.close()
    return 0


def check_gradio() -> None:
    try:
        import gradio  # noqa: F401
    except ImportError:
        raise ValueError(
            "gradio is not installed: there is no page to play on; pip install 'qwenvl-agent[play]'"
        ) from None


if __name__ == "__main__":
    run_command(main)
