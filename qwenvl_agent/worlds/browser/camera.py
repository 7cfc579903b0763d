"""Pictures of generated pages, with what can be clicked on them."""

import base64
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qwenvl_agent import png
from qwenvl_agent.worlds.browser.chromium import SAMPLES, check_fonts, open_context
from qwenvl_agent.worlds.browser.elements import Layout, evaluate, read_answer, reading_function
from qwenvl_agent.worlds.browser.pages import Page

if TYPE_CHECKING:
    from playwright.sync_api import Browser

SCROLL = "share => scrollTo(0, share * (document.documentElement.scrollHeight - innerHeight))"
# As Playwright's set_content, in one round trip with the scrolling and the reading, and without its limit of 30 s: a
# machine may be busy. At share 0, too: the tab keeps the last page's position.
SHOW = f"""async (html, share) => {{
  document.open();
  document.write(html);
  document.close();
  if (document.readyState !== 'complete') await new Promise(done => addEventListener('load', done, {{once: true}}));
  ({SCROLL})(share);
  return readElements();
}}"""
CLEAR = "document.open(); document.close(); null"


@dataclass(frozen=True)
class Shot:
    """A page as it was seen: the picture as PNG, and the layout in its pixels."""

    page: Page
    png: bytes
    layout: Layout


class Camera:
    """Renders pages one after another in one tab."""

    def __init__(self, browser: "Browser", scripts: tuple[str, ...] = tuple(SAMPLES)):
        """`scripts`: what the fonts must be able to draw; ValueError if they cannot."""
        context = open_context(browser, width=800, height=600)
        self._tab = context.new_page()
        self._session = context.new_cdp_session(self._tab)
        self._metrics: dict = {}
        # Kept in the tab, where the engine finds it compiled for every page.
        evaluate(self._session, f"readElements = {reading_function()}; showPage = {SHOW}; null")
        check_fonts(self._tab, scripts)

    def shoot(self, page: Page) -> Shot:
        self._resize(page)
        layout = read_answer(self._session, f"showPage({json.dumps(page.html)}, {page.scroll})")
        # Playwright's own screenshot compresses harder and takes twice as long.
        picture = self._session.send("Page.captureScreenshot", {"format": "png", "optimizeForSpeed": True})
        evaluate(self._session, CLEAR)  # else a resize would draw this page again
        content = base64.b64decode(picture["data"])
        size = png.size_in(content)
        assert size == (layout.width, layout.height), (page.family, page.seed, size, layout.width, layout.height)
        return Shot(page, content, layout)

    def _resize(self, page: Page) -> None:
        # Playwright cannot change a tab's device scale; the protocol can, for pictures taken through the same session.
        metrics = {"width": page.width, "height": page.height, "deviceScaleFactor": page.scale, "mobile": False}
        if metrics != self._metrics:
            self._session.send("Emulation.setDeviceMetricsOverride", metrics)
            self._metrics = metrics
