"""One browser window as an agent has it: a screenshot, a pointer, a keyboard. Nothing here knows a task.

What a person would see at the window's edge and no screenshot shows is told in `events`: message boxes and how they
were answered, windows that were closed at once (the agent has one), addresses that were refused, files that arrived.
All of it runs in the browser's own thread (`session.py`).
"""

import base64
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qwenvl_agent.computer import Action
from qwenvl_agent.computer.keys import browser_key
from qwenvl_agent.coordinates import Screen
from qwenvl_agent.worlds.browser.chromium import open_context

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Dialog, Download, Page, Request

MAX_EVENTS = 20
"""Told of one action; a page can make any number."""
MAX_EVENT_CHARS = 200
# The page is asked to draw twice and its server to answer once: what an action set off has begun by then, however slow
# the machine is.
SETTLE = """(async () => {
  await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 20))));
  if (location.protocol === 'http:') await fetch('/settled').catch(() => null);
})()"""
POLL_MS = 20
MAX_LOOKS = 8
"""Screenshots until two are the same; a page that goes on moving is taken as it is."""
MAX_TRIES = 50
"""To take one of them."""
MAX_NAME_BYTES = 200
"""Of a file that a page sends; 255 are a file system's most, and a number may follow."""
LOAD_MS = 20000
OPEN_MS = 60000
"""For the first page to be whole; what is there then is taken as it is."""
WINDOW_MS = 3000
"""Until a window that a page opens is there to be closed."""
DRAG_STEPS = 10
BUTTONS = {
    "left_click": ("left", 1),
    "right_click": ("right", 1),
    "middle_click": ("middle", 1),
    "double_click": ("left", 2),
    "triple_click": ("left", 3),
}
"""Mouse button and number of clicks."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The window's size in CSS px, its device scale, and the part from the top left corner that is on the pictures."""

    width: int
    height: int
    scale: float = 1.0
    shown: tuple[int, int] | None = None

    @property
    def screen(self) -> Screen:
        width, height = self.shown or (self.width, self.height)
        return Screen(round(width * self.scale), round(height * self.scale), self.scale)


class Window:
    """A context with one page; `origin` is all that the page may load from.

    `num_sent` is how many files the site has sent to be kept; the window waits for as many downloads.
    """

    def __init__(
        self,
        browser: "Browser",
        frame: Frame,
        origin: str,
        downloads_dir: Path,
        num_sent: Callable[[], int] = lambda: 0,
    ):
        self.frame, self.origin, self.downloads_dir, self._num_sent = frame, origin, downloads_dir, num_sent
        self.events: list[str] = []
        self.num_more_events = 0
        self.files: list[Path] = []
        self.is_crashed = False
        self._downloads: list[Download] = []
        self._num_downloads = 0
        size = {"width": frame.width, "height": frame.height, "scale": frame.scale}
        self.context = open_context(browser, **size, origin=origin, on_blocked=lambda url: self.tell(f"blocked: {url}"))
        self.page: Page = self.context.new_page()
        self._session = self.context.new_cdp_session(self.page)
        self._num_opened = self._num_closed = 0
        self._told_windows: list[str] = []
        self._loading: set[Request] = set()
        self.resize(frame)
        self._session.send("Page.enable")
        self._session.on("Page.windowOpen", self._note_window)
        self.page.on("request", self._handler(self._note_request))
        self.page.on("requestfinished", lambda request: self._loading.discard(request))
        self.page.on("requestfailed", lambda request: self._loading.discard(request))
        self.context.on("page", self._handler(self._close_other))
        self.page.on("dialog", self._handler(self._answer))
        self.page.on("download", self._note_download)
        self.page.on("crash", lambda page: setattr(self, "is_crashed", True))

    def _handler(self, act: Callable) -> Callable:
        """What it is about may be gone before it is done; an error would end whatever waits for the browser meanwhile."""
        from playwright.sync_api import Error

        def handle(subject) -> None:
            with suppress(Error):
                act(subject)

        return handle

    def resize(self, frame: Frame) -> None:
        """Through the session that takes the pictures, because the device scale is that session's own."""
        self.frame = frame
        metrics = {"width": frame.width, "height": frame.height, "deviceScaleFactor": frame.scale, "mobile": False}
        self._session.send("Emulation.setDeviceMetricsOverride", metrics)

    @property
    def is_gone(self) -> bool:
        return self.is_crashed or self.page.is_closed()

    def close(self) -> None:
        self.context.close()

    def tell(self, event: str) -> None:
        if len(self.events) < MAX_EVENTS:
            self.events.append(event[:MAX_EVENT_CHARS])
        else:
            self.num_more_events += 1

    def take_events(self) -> list[str]:
        """What happened since the last call."""
        events = self.events + ([f"and {self.num_more_events} more"] if self.num_more_events else [])
        self.events, self.num_more_events = [], 0
        return events

    # At the edges.

    def _note_window(self, event: dict) -> None:
        """Asked for by the page; without a click of the agent's before, the browser opens none."""
        self.tell(f"new window closed: {event['url']}")
        if event["userGesture"]:
            self._num_opened += 1
            self._told_windows.append(event["url"])

    def _close_other(self, page: "Page") -> None:
        if page is self.page:
            return
        self._num_closed += 1
        if page.url in self._told_windows:
            self._told_windows.remove(page.url)
        elif self._told_windows and not page.url.startswith(("http:", "https:")):  # refused, or not yet there
            self._told_windows.pop(0)
        else:  # by a middle click, by a frame of another process
            self.tell(f"new window closed: {page.url}")
        page.close()

    def _note_request(self, request: "Request") -> None:
        """Stop a page that does not come, as a person would: until then the browser answers nothing about the old one.

        Runs beside whatever waits for the browser, as Playwright's handlers do.
        """
        if not request.is_navigation_request() or request.frame.parent_frame is not None:
            return
        self._loading.add(request)
        if not self._wait_until(lambda: request not in self._loading):
            self.tell(f"stopped loading, there was no answer: {request.url}")
            self._session.send("Page.stopLoading")

    def _answer(self, dialog: "Dialog") -> None:
        """Messages are read and left; nothing is agreed to, but nobody is kept from leaving a page."""
        is_accepted = dialog.type in ("alert", "beforeunload")
        self.tell(f"{dialog.type} {'accepted' if is_accepted else 'cancelled'}: {dialog.message}")
        if is_accepted:
            dialog.accept()
        else:
            dialog.dismiss()

    def _note_download(self, download: "Download") -> None:
        self._downloads.append(download)
        self._num_downloads += 1

    def _wait_until(self, is_so: Callable[[], bool], limit_ms: float | None = None) -> bool:
        """Whether it became so; Playwright's own waits end only when a page answers."""
        deadline = time.monotonic() + (limit_ms or LOAD_MS) / 1000
        while not is_so() and time.monotonic() < deadline:
            self.page.wait_for_timeout(POLL_MS)
        return is_so()

    def _keep_downloads(self) -> None:
        self._wait_until(lambda: self._num_downloads >= self._num_sent())
        while self._downloads:
            download = self._downloads.pop(0)
            path = free_path(self.downloads_dir, download.suggested_filename)
            failure = download.failure()  # waits for the end of it
            if failure:
                self.tell(f"download failed: {path.name} ({failure})")
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            download.save_as(path)
            self.files.append(path)
            self.tell(f"downloaded: {path.name}")

    # The agent's hands and eyes.

    def open(self, url: str) -> bytes:
        from playwright.sync_api import Error

        try:
            self.page.goto(url, timeout=OPEN_MS)
        except Error as error:  # it went on to another page meanwhile, or does not come to an end
            if self.is_gone:
                raise
            self.tell(f"not loaded: {str(error).splitlines()[0]}")
        self.page.mouse.move(self.frame.width / 2, self.frame.height / 2)
        return self.look()

    def do(self, action: Action) -> bytes:
        """Do it, wait until the page is quiet, and give the screenshot."""
        from playwright.sync_api import Error

        try:
            HANDS[action.kind](self, action)
        except Error as error:
            if self.is_gone:
                raise
            self.tell(f"not done: {str(error).splitlines()[0]}")  # such as a key that this browser does not know
        return self.look()

    def look(self) -> bytes:
        """A screenshot (PNG) of the page at rest."""
        self._settle()
        self._keep_downloads()
        before = self._shoot()
        for _ in range(MAX_LOOKS - 1):
            now = self._shoot()
            if now == before:
                break
            before = now
        return before

    def _settle(self) -> None:
        for _ in range(MAX_LOOKS):
            self._evaluate(SETTLE)
            self._wait_until(lambda: not self._loading)
            if self._evaluate("document.readyState") == "complete":
                break
            self.page.wait_for_timeout(POLL_MS)
        self._wait_until(lambda: self._num_closed >= self._num_opened, WINDOW_MS)
        self._num_opened = self._num_closed = 0
        self._told_windows.clear()  # of one that came under another address; it must not hide a later one

    def _evaluate(self, expression: str) -> object:
        """None if the page went on to another meanwhile."""
        from playwright.sync_api import Error

        options = {"expression": expression, "awaitPromise": True, "returnByValue": True}
        try:
            return self._session.send("Runtime.evaluate", options)["result"].get("value")
        except Error:
            if self.is_gone:
                raise
            return None

    def _shoot(self) -> bytes:
        """A screenshot; of a page that goes from one to the next without rest some tries fail."""
        from playwright.sync_api import Error

        for _ in range(MAX_TRIES - 1):
            try:
                return self._capture()
            except Error:
                if self.is_gone:
                    raise
                self.page.wait_for_timeout(POLL_MS)
        return self._capture()

    def _capture(self) -> bytes:
        """Playwright's own screenshot compresses harder and takes twice as long."""
        width, height = self.frame.shown or (self.frame.width, self.frame.height)
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        scrolled = self._session.send("Page.getLayoutMetrics")["cssVisualViewport"]
        clip |= {"x": scrolled["pageX"], "y": scrolled["pageY"]}
        options = {"format": "png", "optimizeForSpeed": True, "clip": clip}
        return base64.b64decode(self._session.send("Page.captureScreenshot", options)["data"])

    def _css(self, action: Action) -> tuple[float, float]:
        return self.frame.screen.to_css(*action.point_px)

    def _move(self, action: Action) -> None:
        if action.point_px is not None:
            self.page.mouse.move(*self._css(action))

    def _click(self, action: Action) -> None:
        button, number = BUTTONS[action.kind]
        self.page.mouse.click(*self._css(action), button=button, click_count=number)

    def _drag(self, action: Action) -> None:
        self.page.mouse.down()
        self.page.mouse.move(*self._css(action), steps=DRAG_STEPS)
        self.page.mouse.up()

    def _scroll(self, action: Action) -> None:
        self._move(action)
        self.page.mouse.wheel(*(length / self.frame.scale for length in action.wheel_px))

    def _press(self, action: Action) -> None:
        keys = [browser_key(key) for key in action.keys]
        for key in keys:
            self.page.keyboard.down(key)
        for key in reversed(keys):
            self.page.keyboard.up(key)


HANDS: dict[str, Callable[[Window, Action], None]] = {
    **dict.fromkeys(BUTTONS, Window._click),
    "mouse_move": Window._move,
    "left_click_drag": Window._drag,
    "scroll": Window._scroll,
    "hscroll": Window._scroll,
    "key": Window._press,
    "type": lambda window, action: window.page.keyboard.type(action.text),
    "wait": lambda window, action: window.page.wait_for_timeout(1000 * action.seconds),
}
"""What the window does on an action; terminate and answer are not its business."""


def free_path(folder: Path, name: str) -> Path:
    """A path inside the folder that no file has yet. The name comes from a page: only its last part counts, cut to what a
    file system takes."""
    name = name.replace("\\", "/").rsplit("/", 1)[-1]
    name = "".join(filter(str.isprintable, name)).strip(". ") or "download"
    suffix = cut(Path(name).suffix, MAX_NAME_BYTES // 4)
    stem = cut(Path(name).stem, MAX_NAME_BYTES - len(suffix.encode()))
    path, number = folder / f"{stem}{suffix}", 2
    while path.exists():
        path, number = folder / f"{stem}_{number}{suffix}", number + 1
    return path


def cut(text: str, num_bytes: int) -> str:
    return text.encode(errors="replace")[:num_bytes].decode(errors="ignore")
