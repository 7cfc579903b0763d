"""Find Chromium, launch it through Playwright, and keep its pages at their own server.

Three walls stand between a page and all else, the network and other servers of this machine alike. A context refuses
requests before they start, so that they are told with their whole address; what no context sees (workers that pages
share, WebSockets, prefetching, TURN) goes to a proxy that lets one server through (`gate.py`); and where this process
may make a network for the browser alone, nothing else leads out of it (`namespace.py`).
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from qwenvl_agent.worlds.browser.gate import Gate
from qwenvl_agent.worlds.browser.namespace import Namespace, open_namespace

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page, Request, Route

EXECUTABLE_VARIABLE = "QWENVL_CHROMIUM"
EXECUTABLES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
INSTALL = (
    "install it with `apt-get install -y --no-install-recommends chromium fonts-noto-color-emoji fonts-noto-cjk` "
    f"(Debian), or with `playwright install chromium`, or name an executable in {EXECUTABLE_VARIABLE}"
)
FLAGS = (
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--mute-audio",
    # The same pixels on every machine.
    "--force-color-profile=srgb",
    "--font-render-hinting=none",  # known to Playwright's headless shell; Chromium 156 has no such switch any more
)
CONFINED = (
    # A context has a proxy of its own; what belongs to none, such as the browser's own updates, has one that does not exist.
    "--proxy-server=http://none.invalid:1",
    "--proxy-bypass-list=<-loopback>",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--disable-quic",
)
LOCAL = ("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1, EXCLUDE [::1]",)
NO_UDP = (
    "--webrtc-ip-handling-policy=disable_non_proxied_udp",
    "--force-webrtc-ip-handling-policy=disable_non_proxied_udp",  # its name before
)
"""Without a namespace; in one, what WebRTC sends is better seen than left out."""
POPUPS = "--disable-popup-blocking"
"""Playwright's own; without it a page opens a window at a click, as with people, and none by itself."""
Reach = Literal["own", "machine", "network"]
SAMPLES = {"en": "Ag", "zh": "点击", "ko": "클릭", "emoji": "\U0001f431"}
"""Text that a font must be able to draw before pages of a language are worth a picture."""
MISSING_GLYPHS = """samples => {
  const context = new OffscreenCanvas(40, 40).getContext('2d', {willReadFrequently: true});
  const pixels = character => {
    context.clearRect(0, 0, 40, 40);
    context.font = '24px sans-serif';
    context.fillText(character, 4, 30);
    return context.getImageData(0, 0, 40, 40).data.join();
  };
  const missing = pixels('\\u0378');  // never assigned: drawn as the sign for a missing glyph
  return Object.keys(samples).filter(key => [...samples[key]].some(character => pixels(character) === missing));
}"""


def find_chromium() -> str:
    """Path of the browser to run: QWENVL_CHROMIUM, a system's Chromium or Chrome, or Playwright's own download."""
    named = os.environ.get(EXECUTABLE_VARIABLE)
    if named:
        found = shutil.which(named)
        if not found:
            raise ValueError(f"{EXECUTABLE_VARIABLE} names {named!r}, which cannot be run: no page opens; correct it")
        return found
    for name in EXECUTABLES:
        found = shutil.which(name)
        if found:
            return found
    with _playwright() as playwright:
        own = playwright.chromium.executable_path
    if Path(own).exists():
        return own
    raise ValueError(f"no Chromium is on this machine: no page can be opened; {INSTALL}")


def _playwright():
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise ValueError(
            "Playwright is not installed: no browser can be driven; pip install 'qwenvl-agent[browser]'"
        ) from None
    return sync_playwright()


@dataclass
class Confinement:
    """What a browser is kept in; `ways` are the open contexts' ways out of it."""

    namespace: Namespace | None
    ways: set[ExitStack] = field(default_factory=set)

    def open_way(self, origin: str, tell: Callable[[str], None]) -> tuple[str, Callable[[], None]]:
        """(address of a proxy that passes to `origin`, what closes it)."""
        way = ExitStack()
        self.ways.add(way)
        gate = Gate(origin, tell, self.namespace.listen() if self.namespace else None)
        way.callback(gate.close)
        if self.namespace:
            way.enter_context(self.namespace.told(tell))

        def close() -> None:
            self.ways.discard(way)
            way.close()

        return gate.origin, close

    def close(self) -> None:
        while self.ways:
            self.ways.pop().close()
        if self.namespace:
            self.namespace.close()


_confinements: "WeakKeyDictionary[Browser, Confinement]" = WeakKeyDictionary()


@contextmanager
def open_browser(
    *,
    headless: bool = True,
    sandbox: bool | None = None,
    reach: Reach = "machine",
    has_namespace: bool | None = None,
) -> "Iterator[Browser]":
    """A running Chromium, closed at the end of the block.

    `reach`: of its pages. "own", for pages that are not ours: what their context is opened for (`open_context`) and
    nothing else; "machine": servers of this machine; "network": all. `has_namespace`, with "own": whether by a network of
    its own, too; None: where this process may make one and no window is shown, which may need the machine's. Its sandbox is on unless this process runs as root, for whom Chromium has none; a container without
    user namespaces needs `sandbox=False`. ValueError where the browser or Playwright is missing or does not start.
    """
    from_root = hasattr(os, "geteuid") and os.geteuid() == 0
    executable = find_chromium()
    is_confined = reach == "own"
    with ExitStack() as stack:
        namespace = open_namespace() if is_confined and (headless if has_namespace is None else has_namespace) else None
        if has_namespace and not namespace:
            raise ValueError("this process may make no network of its own: run it as root on Linux, or leave it out")
        confinement = Confinement(namespace)
        stack.callback(confinement.close)
        # What the thread starts inside stays inside.
        with namespace.entered() if namespace else nullcontext():
            playwright = stack.enter_context(_playwright())
            flags = [
                *FLAGS,
                *{"own": CONFINED, "machine": LOCAL, "network": ()}[reach],
                *(() if namespace else NO_UDP),
            ]
            browser = _launch(
                playwright,
                executable_path=executable,
                headless=headless,
                args=flags,
                ignore_default_args=[POPUPS] if is_confined else [],
                chromium_sandbox=not from_root if sandbox is None else sandbox,
            )
        stack.callback(browser.close)
        if is_confined:
            _confinements[browser] = confinement
        yield browser


def _launch(playwright, executable_path: str, **settings) -> "Browser":
    from playwright.sync_api import Error

    try:
        return playwright.chromium.launch(executable_path=executable_path, **settings)
    except Error as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{executable_path} does not start ({reason}): no page can be opened; {INSTALL}") from error


def is_local(url: str) -> bool:
    """Whether it is a loopback address."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        return parts.scheme in ("http", "https") and (host == "localhost" or ip_address(host).is_loopback)
    except ValueError:
        return False


def origin_of(url: str) -> str:
    """http://HOST:PORT of an address."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def open_context(
    browser: "Browser",
    *,
    width: int,
    height: int,
    scale: float = 1.0,
    origin: str = "",
    on_blocked: Callable[[str], None] = lambda url: None,
    **settings,
) -> "BrowserContext":
    """Pages of width x height CSS px at a device scale, in a browser of the reach "own"; `settings` are Playwright's.

    They reach the server at `origin` (http://HOST:PORT) and what they hold themselves, else nothing. `on_blocked` is told
    of every try, from any thread: an address, or a place such as "udp 192.0.2.1:53".
    """
    if browser not in _confinements:
        raise ValueError('this browser\'s pages reach more than their own server: open it with reach="own"')
    proxy, close_way = _confinements[browser].open_way(origin, on_blocked)
    context = browser.new_context(
        viewport={"width": width, "height": height},
        device_scale_factor=scale,
        service_workers="block",
        proxy={"server": proxy, "bypass": "<-loopback>"},
        **settings,
    )
    context.on("close", lambda context: close_way())

    def is_foreign(url: str) -> bool:
        return not ((origin and url.startswith(f"{origin}/")) or url.startswith(("about:", "data:", "blob:")))

    context.route(is_foreign, lambda route: _refuse(route, on_blocked))
    return context


def _refuse(route: "Route", on_blocked: Callable[[str], None]) -> None:
    request = route.request
    on_blocked(request.url)
    if _is_of_a_shown_page(request):
        route.fulfill(status=204)  # "no content": the page stays where it is, instead of an error page
    else:
        route.abort("blockedbyclient")


def _is_of_a_shown_page(request: "Request") -> bool:
    """Whether a page asks to be another one. A window that is just opened asks before it has a frame."""
    from playwright.sync_api import Error

    if not request.is_navigation_request():
        return False
    try:
        return request.frame.parent_frame is None
    except Error:
        return False


def check_fonts(page: "Page", scripts: tuple[str, ...] = tuple(SAMPLES)) -> None:
    """ValueError if a script (a key of SAMPLES) would be drawn as empty boxes."""
    missing = page.evaluate(MISSING_GLYPHS, {script: SAMPLES[script] for script in scripts})
    if missing:
        raise ValueError(
            f"no font on this machine draws {', '.join(missing)}: pictures would show empty boxes; "
            "apt-get install -y fonts-noto-color-emoji fonts-noto-cjk, or leave these languages out"
        )
