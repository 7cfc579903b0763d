"""Find Chromium, launch it through Playwright, and keep its pages on this machine.

Two walls stand between a page and the network: the browser resolves no name and no address but the loopback ones
(`--host-resolver-rules`, which also holds for redirects and for what the browser itself would like to fetch), and a
context refuses requests to anything else before they start, so that they can be counted and reported.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

EXECUTABLE_VARIABLE = "QWENVL_CHROMIUM"
EXECUTABLES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
INSTALL = (
    "install it with `apt-get install -y --no-install-recommends chromium fonts-noto-color-emoji fonts-noto-cjk` "
    f"(Debian), or with `playwright install chromium`, or name an executable in {EXECUTABLE_VARIABLE}"
)
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
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
    "--font-render-hinting=none",
    "--force-webrtc-ip-handling-policy=disable_non_proxied_udp",
    "--host-resolver-rules=MAP * ~NOTFOUND, " + ", ".join(f"EXCLUDE {name}" for name in LOOPBACK_NAMES),
)
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


@contextmanager
def open_browser(
    *, headless: bool = True, sandbox: bool | None = None, flags: Sequence[str] = FLAGS
) -> "Iterator[Browser]":
    """A running Chromium, closed at the end of the block.

    By its `flags` it reaches nothing but this machine. Its sandbox is on unless this process runs as root, for whom Chromium has none; a container without user namespaces
    needs `sandbox=False`. ValueError where the browser or Playwright is missing or does not start.
    """
    from_root = hasattr(os, "geteuid") and os.geteuid() == 0
    executable = find_chromium()
    with _playwright() as playwright:
        from playwright.sync_api import Error

        try:
            browser = playwright.chromium.launch(
                executable_path=executable,
                headless=headless,
                args=list(flags),
                chromium_sandbox=not from_root if sandbox is None else sandbox,
            )
        except Error as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"{executable} does not start ({reason}): no page can be opened; {INSTALL}") from error
        try:
            yield browser
        finally:
            browser.close()


def is_local(url: str) -> bool:
    """Whether a page may load it: a loopback address, or content that is already in the page. Files are not."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return False
    if parts.scheme in ("about", "data", "blob"):
        return True
    if parts.scheme not in ("http", "https", "ws", "wss"):
        return False
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def open_context(
    browser: "Browser",
    *,
    width: int,
    height: int,
    scale: float = 1.0,
    on_blocked: Callable[[str], None] = lambda url: None,
    **settings,
) -> "BrowserContext":
    """Pages of width x height CSS px at a device scale, kept on this machine; `settings` are Playwright's.

    `on_blocked` is told the address of every request that was refused.
    """
    context = browser.new_context(
        viewport={"width": width, "height": height}, device_scale_factor=scale, service_workers="block", **settings
    )

    def refuse(route):
        on_blocked(route.request.url)
        route.abort("blockedbyclient")

    context.route(lambda url: not is_local(url), refuse)
    context.route_web_socket(lambda url: not is_local(url), lambda socket: (on_blocked(socket.url), socket.close()))
    return context


def check_fonts(page: "Page", scripts: tuple[str, ...] = tuple(SAMPLES)) -> None:
    """ValueError if a script (a key of SAMPLES) would be drawn as empty boxes."""
    missing = page.evaluate(MISSING_GLYPHS, {script: SAMPLES[script] for script in scripts})
    if missing:
        raise ValueError(
            f"no font on this machine draws {', '.join(missing)}: pictures would show empty boxes; "
            "apt-get install -y fonts-noto-color-emoji fonts-noto-cjk, or leave these languages out"
        )
