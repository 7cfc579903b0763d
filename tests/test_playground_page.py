"""The playground's page in Chromium: a mission is played, two are compared, a screenshot is asked about, and nobody else is."""

import sys
import threading

import pytest
from PIL import Image
from test_looks import FAINT, LEAST_CONTRAST, OUTSIDE

from qwenvl_agent.playground.playground import Playground, WorldChoice

pytestmark = pytest.mark.browser
REACH = "machine"
"""Of this file's browser: its pages are our own servers'."""
pytest.importorskip("gradio", reason="pip install '.[play]'")

CORRIDOR = "tests/corridor_world.py:make_world"
PATIENCE_MS = 60_000
connected = []
"""Addresses beyond this machine to which this process has connected."""


def watch(event: str, arguments: tuple) -> None:
    if event == "socket.connect" and isinstance(arguments[1], tuple) and arguments[1][0] not in ("127.0.0.1", "::1"):
        connected.append(arguments[1])


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    from tiny_run import save_tiny_checkpoint

    from qwenvl_agent.inference.load import find
    from qwenvl_agent.playground.server import PlaygroundServer

    sys.addaudithook(watch)
    model = find(str(save_tiny_checkpoint(tmp_path_factory.mktemp("model"))), overrides=["eval.max_new_tokens=4"])
    playground = Playground({"untrained": model}, {"corridor": WorldChoice(CORRIDOR)}, device="cpu")
    started = PlaygroundServer(playground)
    thread = threading.Thread(target=started.serve)
    thread.start()
    yield started
    started.stop()
    thread.join()
    playground.close()


def open_page(browser, server, width=1280, scheme="light"):
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    page.asked, page.faults = [], []
    page.on("request", lambda request: page.asked.append(request.url))
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.goto(server.address)
    page.locator(".state").first.wait_for()
    return page


@pytest.fixture
def page(browser, server):
    opened = open_page(browser, server)
    yield opened
    own = server.address.split("/")[2]
    assert not [url for url in opened.asked if own not in url and not url.startswith(("data:", "blob:"))]
    assert not opened.faults and not connected
    opened.context.close()


def choose(page, label: str, option: str) -> None:
    page.get_by_label(label, exact=True).click()
    page.get_by_role("option", name=option, exact=True).last.click()  # the list of another may still be closing


def button(page, name: str):
    return page.get_by_role("button", name=name, exact=True).locator("visible=true")


def test_a_mission_is_played_by_a_policy_and_by_hand(page):
    choose(page, "agent", "oracle")
    button(page, "Ask").click()
    page.locator("#answer", has_text="as the oracle").wait_for()
    assert page.locator("#turns .step").count() == 0
    button(page, "Play its turn").click()
    page.locator("#turns .step").first.wait_for()
    page.get_by_text("By hand", exact=True).click()
    choose(page, "begin with", "the oracle's turn")
    page.locator(".cm-content", has_text="right").wait_for()
    button(page, "Play by hand").click()
    page.locator("#turns .step").nth(1).wait_for()
    assert "by hand" in page.locator("#turns .step").first.inner_text()
    button(page, "To the end").click()
    page.locator(".state .tag.good").first.wait_for()
    button(page, "Play its turn").click()
    page.get_by_text("the mission is over").last.wait_for()


def test_what_is_seen_can_be_changed_and_a_prompt_looked_at(page):
    """By a model of random weights, whose answers cannot be read."""
    page.get_by_text("Change what is seen, and ask again").click()
    context = page.get_by_label("context", exact=True)
    context.locator("visible=true").wait_for()
    page.wait_for_function(
        "() => [...document.querySelectorAll('textarea')].some(one => one.value.includes('Mission:'))"
    )
    context.fill("Mission: stay")
    button(page, "Ask about this").click()
    page.locator("#other", has_text="of what is changed").wait_for()
    page.get_by_text("The prompt, token by token").click()
    button(page, "Show the tokens and their weights").click()
    page.locator("#tokens pre span[title]").first.wait_for()
    assert page.locator("#turns .step").count() == 0


def test_two_players_are_compared_on_one_seed(page):
    page.get_by_role("tab", name="Compare").click()
    choose(page, "agent A", "oracle")
    choose(page, "agent B", "random")
    button(page, "Start").click()
    page.locator("#stateB .state").wait_for()
    button(page, "Play a turn of both").click()
    page.locator("#turnsB .step").first.wait_for()
    button(page, "Both to the end").click()
    page.locator("#stateA .tag.good").wait_for()


def test_a_screenshot_is_asked_about(page, tmp_path):
    Image.new("RGB", (320, 200), "white").save(tmp_path / "screen.png")
    page.get_by_role("tab", name="Screenshot").click()
    page.locator("input[type=file]").last.set_input_files(tmp_path / "screen.png")
    page.get_by_label("instruction").fill("open the menu")
    page.locator("button[aria-label='Remove Image'], .image-frame img").locator("visible=true").first.wait_for()
    button(page, "Ask").click()
    page.locator("#action", has_text="image_size").wait_for()
    page.locator("#drawn img").wait_for()


@pytest.mark.parametrize(("width", "scheme"), [(400, "dark"), (400, "light"), (1280, "dark")])
def test_the_page_fits_narrow_screens_and_follows_the_readers_colours(browser, server, width, scheme):
    page = open_page(browser, server, width, scheme)
    choose(page, "agent", "oracle")
    button(page, "Play its turn").click()
    page.locator("#turns .step").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert page.evaluate(OUTSIDE) == []
    faint = page.evaluate(FAINT, LEAST_CONTRAST)
    assert [one for one in faint if "tag" in one or "soft" in one or one.startswith(("CODE", "PRE"))] == []
    page.context.close()
