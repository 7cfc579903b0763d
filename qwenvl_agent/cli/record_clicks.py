"""Record a person in a browser: every click, key and scroll with the screenshot before it, as training data.

    qwenvl-agent record-clicks shop/ --out data/recorded --instruction "下载小猫图片"
    qwenvl-agent record-clicks http://127.0.0.1:8000/ --out data/recorded --viewport 1280 800
    qwenvl-agent record-clicks https://example.org --online --out data/recorded

A browser window opens; do the task in it, then close it: that is the last step (--end). Ctrl-C stops without one. Each
step is on the disk once it is printed. A folder is served on 127.0.0.1, to this browser only. Without --online its pages
reach their own server and nothing else. One run is one episode (`episode_id`, `step`, `history`); the same --out collects
episodes. The folder is a data source of kind `computer` (docs/DATA.md); refused steps are in its rejects.jsonl.

What stands on the screen is in the pictures. What is typed into fields for passwords, codes and cards is not recorded.
Needs Playwright and Chromium: pip install 'qwenvl-agent[browser]' and apt-get install chromium.
"""

import argparse
import hashlib
import io
import json
import re
import secrets
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.cookies import CookieError, SimpleCookie
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from urllib.parse import urlsplit

from PIL import Image

from qwenvl_agent.command import Parser, command, run_command
from qwenvl_agent.computer.dialects import to_seed
from qwenvl_agent.curation.sample_folder import SampleFolder
from qwenvl_agent.files import confined_path
from qwenvl_agent.local_server import LocalHandler, LocalServer
from qwenvl_agent.worlds.browser.chromium import is_local, open_browser, open_context, origin_of
from qwenvl_agent.worlds.browser.recorder import Recorder, Step
from qwenvl_agent.worlds.browser.window import Frame

COOKIE = "qwenvl_recorder"
ENDS = ("success", "failure", "none")
ORIGIN = "recorded"


class FolderServer(LocalServer):
    """A folder, for who has the token in a cookie: so its pages may name files from the root, too."""

    def __init__(self, folder: Path):
        self.token = secrets.token_urlsafe(16)
        super().__init__(partial(FolderHandler, directory=str(folder)))
        self.address = f"{self.origin}/"
        self.start("folder")


class FolderHandler(LocalHandler, SimpleHTTPRequestHandler):
    """GET and HEAD of what lies in the folder."""

    server: FolderServer

    def send_head(self):
        try:
            cookie = SimpleCookie(self.headers.get("Cookie", "")).get(COOKIE)
        except CookieError:
            cookie = None
        token = cookie.value if cookie else ""
        if not secrets.compare_digest(token.encode(), self.server.token.encode()):
            self.send_error(403, "only the browser that records may read this")
            return None
        try:
            inside = str(Path(self.translate_path(self.path)).relative_to(self.directory))
            path = confined_path(Path(self.directory), inside)
            if not (path.is_file() or path.is_dir()):  # a pipe would be waited for
                raise ValueError(path)
        except (ValueError, OSError):  # a link to the outside, a name that no file can have
            self.send_error(404)
            return None
        return super().send_head()

    def end_headers(self):
        self.send_header("Cache-Control", "no-store")
        super().end_headers()


class EpisodeWriter:
    """Writes the steps of one recording as they come; each is printed once it is on the disk."""

    def __init__(self, folder: SampleFolder, frame: Frame, instruction: str):
        self.folder, self.frame, self.instruction = folder, frame, instruction
        self.episode = f"{ORIGIN}_{secrets.token_hex(4)}"
        self.counts: Counter[str] = Counter()
        self.reasons: dict[int, str] = {}
        self._written: set[int] = set()
        self._untold: tuple[Step, str] | None = None
        self._pictures: dict[bytes, str] = {}
        """By the hash of a file: a page that did not change gives the same bytes."""

    def write(self, step: Step) -> None:
        """Add the step, or what it has become."""
        name = f"{self.episode}_{step.number:03d}"
        reason, fault = step.reason, step.fault
        if not reason and step.actions:
            try:
                self.folder.put(self.record(step, name))
                self._written.add(step.number)
            except ValueError as error:
                reason, fault = getattr(error, "reason", "bad_text"), str(error)
        if (reason or not step.actions) and step.number in self._written:
            self.folder.remove(name)
            self._written.discard(step.number)
        if reason and self.reasons.get(step.number) != reason:
            self.reasons[step.number] = reason
            self._reject(name, reason, fault)
        self._print(step, line_of(step, reason, fault))

    def _print(self, step: Step, line: str) -> None:
        """A step is told once nothing more is expected of it: its result is known, or the next one has come."""
        if self._untold and self._untold[0] is not step:
            self.tell(self._untold[1])
        self._untold = (step, line)
        if step.result:
            self.tell(line)
            self._untold = None

    def tell(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def _reject(self, name: str, reason: str, fault: str) -> None:
        row = {"source": name, "reason": reason, "message": fault}
        # What a page says may hold half a character; so written, it is an escape of JSON.
        with open(self.folder.folder / "rejects.jsonl", "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def _place(self, png: bytes) -> str:
        key = hashlib.sha256(png).digest()
        if key not in self._pictures:
            self._pictures[key] = self.folder.add_picture(Image.open(io.BytesIO(png)).convert("RGB"))
        return self._pictures[key]

    def record(self, step: Step, name: str) -> dict:
        """The step in the published form, with what was hit and what came of it."""
        screen, target = self.frame.screen, step.target
        actions = [to_seed(action, screen) for action in step.actions]
        if target and target.role and (target.name or target.is_known):
            actions[0]["target"] = re.sub(r"\W+", "_", f"{target.name} {target.role}").strip("_").lower()
        details = {"url": step.look.url, "title": step.look.title, "scale": self.frame.scale}
        if target:
            details |= {"role": target.role, "name": target.name, "is_known": target.is_known}
        if step.result:
            details["result"] = step.result | {"screenshot": self._place(step.after)}
        record = {
            "id": name,
            "instruction": self.instruction,
            "screenshot": self._place(step.look.png),
            "image_size": [screen.width_px, screen.height_px],
            "action": actions[0] if len(actions) == 1 else actions,
            "box": list(target.box) if target and target.box else None,
            "episode_id": self.episode,
            "step": step.number,
            "history": list(step.past),
            "origin": ORIGIN,
            "details": details,
        }
        return {key: value for key, value in record.items() if value not in (None, [])}

    def summary(self) -> dict:
        if self._untold:
            self.tell(self._untold[1])
        return {
            "episode_id": self.episode,
            "instruction": self.instruction,
            "steps": len(self._written),
            "rejects": dict(Counter(self.reasons.values())),
            "samples_in_folder": len(self.folder.records),
            **self.counts,
        }


def line_of(step: Step, reason: str, fault: str) -> str:
    """The step for the terminal."""
    what = ", ".join(json.dumps(told, ensure_ascii=False) for told in map(vars_of, step.actions)) or "nothing"
    target = f" on {step.target.role} “{step.target.name}”" if step.target else ""
    return f"{step.number:3d} {what}{target}" + (f" NOT RECORDED ({reason}): {fault}" if reason else "")


def vars_of(action) -> dict:
    values = {name: value for name, value in vars(action).items() if value is not None and name != "kind"}
    return {action.kind: {name: round(v) if isinstance(v, float) else v for name, v in values.items()}}


FORMER = {"--size": "--viewport"}
"""Options by their names before: still understood."""


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__, FORMER)
    parser.add_argument("page", help="an address, or a folder of pages (its index.html), or one page in a folder")
    parser.add_argument("--out", type=Path, required=True, help="folder to write, or to add to")
    parser.add_argument("--instruction", help="the task; asked for if it is not given")
    parser.add_argument("--end", choices=ENDS, default="success", help="the last step when the window is closed")
    parser.add_argument(
        "--viewport", type=int, nargs=2, default=(1280, 800), metavar=("WIDTH", "HEIGHT"), help="of the page, in CSS px"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="device scale: pixels of the picture for a CSS px")
    parser.add_argument("--online", action="store_true", help="let the browser load from the network")
    parser.add_argument("--headless", action="store_true", help="no window: for tests")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON at the end")
    return parser


def check(args: argparse.Namespace) -> None:
    width, height = args.viewport
    if not (100 <= width <= 8000 and 100 <= height <= 8000 and 0.5 <= args.scale <= 4):
        raise ValueError(f"window of {width}x{height} at scale {args.scale}: give 100 to 8000 CSS px, scale 0.5 to 4")
    is_address = urlsplit(args.page).scheme in ("http", "https")
    if not is_address and not Path(args.page).exists():
        raise ValueError(f"{args.page} is neither an address nor a folder: nothing opens; write http://... or a path")
    if is_address and not args.online and not is_local(args.page):
        raise ValueError(f"{args.page} is not on this machine, so it would not load; add --online to let it")
    if args.instruction is None:
        try:
            args.instruction = input("What is the task, as a person would say it? ")
        except EOFError:
            raise ValueError("no instruction was given: a recording needs its task; use --instruction") from None
    if not args.instruction.strip():
        raise ValueError("the instruction is empty: a recording without a task teaches nothing; give --instruction")


@contextmanager
def served(page: str) -> Iterator[tuple[str, list[dict]]]:
    """(address, cookies) of an address, a folder, or a page in one."""
    path = Path(page)
    if urlsplit(page).scheme in ("http", "https") or not path.exists():
        yield page, []
        return
    server = FolderServer((path if path.is_dir() else path.parent).resolve())
    try:
        cookie = {"name": COOKIE, "value": server.token, "url": server.address, "httpOnly": True, "sameSite": "Strict"}
        yield server.address + ("" if path.is_dir() else path.name), [cookie]
    finally:
        server.close()


def open_page(context, address: str) -> None:
    from playwright.sync_api import Error

    try:
        context.new_page().goto(address)
    except Error as error:
        raise ValueError(
            f"{address} does not open ({str(error).splitlines()[0]}): there is nothing to record"
        ) from error


def record(args: argparse.Namespace, act: Callable[[Recorder], None] = Recorder.watch) -> dict:
    """Open the window, record until `act` returns (a person has closed the window), and give the summary."""
    check(args)
    frame = Frame(width=args.viewport[0], height=args.viewport[1], scale=args.scale)
    blocked = Counter()
    opened = open_browser(headless=args.headless, reach="network" if args.online else "own")
    with SampleFolder(args.out) as folder, served(args.page) as (address, cookies), opened as browser:
        writer = EpisodeWriter(folder, frame, args.instruction.strip())
        size = {"width": frame.width, "height": frame.height}
        if args.online:
            context = browser.new_context(viewport=size, device_scale_factor=frame.scale)
        else:
            told = {"origin": origin_of(address), "on_blocked": lambda url: blocked.update([url])}
            context = open_context(browser, **size, scale=frame.scale, **told)
        context.add_cookies(cookies)
        downloads_dir = args.out / "downloads" / writer.episode
        recorder = Recorder(context, frame, writer.write, downloads_dir=downloads_dir, is_attended=not args.headless)
        open_page(context, address)
        writer.tell(f"recording to {args.out} as {writer.episode}: close the window when the task is done")
        try:
            act(recorder)
            if args.end != "none":
                recorder.finish(args.end)
        except KeyboardInterrupt:
            writer.tell("stopped")
        writer.counts.update(secrets_typed=recorder.num_secrets, requests_blocked=blocked.total())
        return writer.summary()


@command("the steps so far are kept")
def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    summary = record(args)
    if args.json:
        print(json.dumps(summary, ensure_ascii=False))
    else:
        print(", ".join(f"{name} {value}" for name, value in summary.items() if value))
    return 0


if __name__ == "__main__":
    run_command(main)
