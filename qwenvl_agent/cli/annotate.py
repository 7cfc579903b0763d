"""Mark instruction, action and target on screenshots by mouse: a page for one person on this machine.

    qwenvl-agent annotate screenshots --out data/clicks
    qwenvl-agent annotate a.png more/*.png --out data/clicks --no-open

Opens http://127.0.0.1:PORT/TOKEN/ in the browser: drag a box around the target, click the point (else it is the box's
middle), say what to do, Enter. A sample is on the disk once it stands in the list; the same command goes on where it was
left. The folder is a data source of kind `computer` (docs/DATA.md). Without the token nothing is answered, and other
machines are not listened to. The keys are in docs/ANNOTATE.md.
"""

import argparse
import json
import secrets
import sys
import webbrowser
from pathlib import Path

import qwenvl_agent
from qwenvl_agent.command import Parser, bounded, command, run_command
from qwenvl_agent.curation.annotation import Annotation, find_pictures, look_at
from qwenvl_agent.curation.sample_folder import SampleFolder
from qwenvl_agent.local_server import LocalHandler, LocalServer
from qwenvl_agent.progress import tracked

PAGE_PATH = Path(qwenvl_agent.__file__).parent / "assets" / "annotate.html"
HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": (
        "default-src 'none'; img-src 'self' data:; connect-src 'self'; style-src 'unsafe-inline'; "
        "script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
}


class AnnotationServer(LocalServer):
    """`address` holds the token, without which every answer is 403."""

    def __init__(self, annotation: Annotation, port: int = 0):
        self.annotation = annotation
        self.token = secrets.token_urlsafe(16)
        super().__init__(Handler, port)
        self.address = f"{self.origin}/{self.token}/"


class Handler(LocalHandler):
    server: AnnotationServer

    def do_GET(self):  # noqa: N802 (the base class's name)
        path = self.asked_path()
        if path is None:
            return
        if path == "":
            self.reply(200, PAGE_PATH.read_bytes(), "text/html; charset=utf-8")
        elif path == "state":
            self.reply_json(200, self.server.annotation.state())
        elif path.startswith("pictures/"):
            self.answer(lambda: self.server.annotation.picture(path.removeprefix("pictures/")))
        else:
            self.reply(404, b"no such page", "text/plain")

    def do_POST(self):  # noqa: N802
        path = self.asked_path()
        body = None if path is None else self.read_body()
        if body is None:
            return
        annotation = self.server.annotation
        act = {"put": annotation.put, "remove": annotation.remove, "skip": annotation.skip}.get(path)
        asked = object_in(body)
        if act is None or asked is None:
            self.reply(404 if act is None else 400, b"not understood", "text/plain")
            return
        self.answer(lambda: {"saved": act(asked), "state": annotation.state()})

    def asked_path(self) -> str | None:
        """What stands behind the token; None, and 403 is sent, without it."""
        token, _, path = self.path.partition("?")[0].removeprefix("/").partition("/")
        if secrets.compare_digest(token.encode(), self.server.token.encode()):
            return path
        self.refuse(403, "the address lacks its token: use the one that the program printed")
        return None

    def answer(self, act) -> None:
        """What `act` gives: bytes of a PNG, or JSON; a ValueError is told to the person."""
        try:
            value = act()
        except ValueError as error:
            self.reply_json(400, {"error": str(error)})
        except OSError as error:  # such as a full disk
            self.reply_json(500, {"error": f"not saved: {error}"})
        else:
            if isinstance(value, bytes):
                self.reply(200, value, "image/png")
            else:
                self.reply_json(200, value)

    def reply_json(self, status: int, value: object) -> None:
        self.reply(status, json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"), "application/json")

    def end_headers(self) -> None:
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()


def object_in(body: bytes) -> dict | None:
    """The JSON object sent; None if there is none."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    parser.add_argument("pictures", type=Path, nargs="+", help="screenshots, or folders of them")
    parser.add_argument("--out", type=Path, required=True, help="folder to write, or to go on with")
    parser.add_argument("--port", type=bounded(int, 0, 65535), default=0, help="default: any that is free")
    parser.add_argument("--no-open", action="store_true", help="print the address, open no browser")
    return parser


def open_annotation(args: argparse.Namespace, folder: SampleFolder) -> Annotation:
    """The pictures, each decoded once."""
    out = args.out.resolve()
    files = [(name, path) for name, path in find_pictures(args.pictures) if out not in path.resolve().parents]
    listed = list(tracked(look_at(files), "pictures", len(files)))
    for item in listed:
        if item.fault:
            print(f"left out: {item.fault}", file=sys.stderr)
    annotation = Annotation(listed, folder)
    if annotation.counts()["unusable"] == len(listed):
        raise ValueError("none of the pictures can be read: there is nothing to mark; see above")
    return annotation


def serve(server: AnnotationServer, should_open: bool) -> None:
    """Until Ctrl-C."""
    print(f"{server.address}\nCtrl-C ends; everything is saved as you go", flush=True)
    if should_open:
        webbrowser.open(server.address)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()
    finally:
        server.server_close()


@command("what was saved is kept; start it again with the same --out")
def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    with SampleFolder(args.out) as folder:
        annotation = open_annotation(args, folder)
        serve(AnnotationServer(annotation, args.port), not args.no_open)
        counts = annotation.counts()
    print(f"{args.out}: " + ", ".join(f"{number} {name}" for name, number in counts.items()))
    return 0


if __name__ == "__main__":
    run_command(main)
