"""One browser window as an agent has it: a screenshot, a pointer, a keyboard. Nothing here knows a task.

What a person would see at the window's edge and no screenshot shows is told in `events`: message boxes and how they
were answered, windows that were closed at once (the agent has one), addresses that were refused, files that arrived.
All of it runs in the browser's own thread (`session.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qwenvl_agent.coordinates import Screen
from qwenvl_agent.envs.browser.chromium import open_context
from qwenvl_agent.envs.computer import Action
from qwenvl_agent.envs.computer.keys import browser_key

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Dialog, Download, Page, Route

MAX_EVENTS = 20
"""Told of one action; a page can make any number."""
MAX_EVENT_CHARS = 200
SETTLE_MS = 50
MAX_LOOKS = 8
"""Screenshots until two are the same; a page that goes on moving is taken as it is."""
LOAD_MS = 5000
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
    """A context with one page; `origin` is all that the page may load from."""

    def __init__(self, browser: "Browser", frame: Frame, origin: str, downloads_dir: Path):
        self.frame, self.origin, self.downloads_dir = frame, origin, downloads_dir
        self.events: list[str] = []
        self.num_more_events = 0
        self.files: list[Path] = []
        self.is_crashed = False
        self._downloads: list[Download] = []
        self.context = open_context(browser, width=frame.width, height=frame.height, scale=frame.scale)
        # Asked before the wall of open_context: other servers on this machine are no business of the page either.
        self.context.route(self._is_foreign, self._refuse)
        self.page: Page = self.context.new_page()
        self.context.on("page", self._close_other)
        self.page.on("dialog", self._answer)
        self.page.on("download", lambda download: self._downloads.append(download))
        self.page.on("crash", lambda page: setattr(self, "is_crashed", True))

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

    def _is_foreign(self, url: str) -> bool:
        return not (url.startswith(f"{self.origin}/") or url.startswith(("about:", "data:", "blob:")))

    def _refuse(self, route: "Route") -> None:
        self.tell(f"blocked: {route.request.url}")
        request = route.request
        if request.is_navigation_request() and request.frame.parent_frame is None:
            route.fulfill(status=204)  # "no content": the page stays where it is, instead of an error page
        else:
            route.abort("blockedbyclient")

    def _close_other(self, page: "Page") -> None:
        if page is not self.page:
            self.tell(f"new window closed: {page.url}")
            page.close()

    def _answer(self, dialog: "Dialog") -> None:
        """Messages are read and left; nothing is agreed to, but nobody is kept from leaving a page."""
        is_accepted = dialog.type in ("alert", "beforeunload")
        self.tell(f"{dialog.type} {'accepted' if is_accepted else 'cancelled'}: {dialog.message}")
        if is_accepted:
            dialog.accept()
        else:
            dialog.dismiss()

    def _keep_downloads(self) -> None:
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
        self.page.goto(url)
        self.page.mouse.move(self.frame.width / 2, self.frame.height / 2)
        return self.look()

    def do(self, action: Action) -> bytes:
        """Do it, wait until the page is quiet, and give the screenshot."""
        from playwright.sync_api import Error

        try:
            HANDS[action.kind](self, action)
        except Error as error:
            if self.page.is_closed() or self.is_crashed:
                raise
            self.tell(f"not done: {str(error).splitlines()[0]}")  # such as a key that this browser does not know
        return self.look()

    def look(self) -> bytes:
        """A screenshot (PNG) of the page at rest."""
        self.page.wait_for_timeout(SETTLE_MS)
        self._wait_for_page()
        self._keep_downloads()
        before = self._shoot()
        for _ in range(MAX_LOOKS - 1):
            now = self._shoot()
            if now == before:
                break
            before = now
        return before

    def _wait_for_page(self) -> None:
        from playwright.sync_api import TimeoutError as PlaywrightTimeout

        try:
            self.page.wait_for_load_state("load", timeout=LOAD_MS)
        except PlaywrightTimeout:
            self.tell("the page is still loading")

    def _shoot(self) -> bytes:
        if self.frame.shown is None:
            return self.page.screenshot()
        width, height = self.frame.shown
        return self.page.screenshot(clip={"x": 0, "y": 0, "width": width, "height": height})

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
    """A path inside the folder that no file has yet. The name comes from a page: only its last part counts."""
    name = name.replace("\\", "/").rsplit("/", 1)[-1].strip(". ") or "download"
    path, number = folder / name, 2
    while path.exists():
        path, number = folder / f"{Path(name).stem}_{number}{Path(name).suffix}", number + 1
    return path
