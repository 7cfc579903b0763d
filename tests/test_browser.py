"""In a real headless Chromium: what can be clicked, and where; what is generated; and that pages stay on this machine."""

import http.server
import io
import json
import math
import random
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import pytest
from PIL import Image
from source_rows import read_rows

from qwenvl_agent.data.readers.computer import read_samples
from qwenvl_agent.data.source import Reject
from qwenvl_agent.worlds.browser import chromium
from qwenvl_agent.worlds.browser.camera import SCROLL, Camera
from qwenvl_agent.worlds.browser.elements import evaluate, read_layout
from qwenvl_agent.worlds.browser.instructions import WAYS, Scene, Speaker, requests
from qwenvl_agent.worlds.browser.namespace import open_namespace
from qwenvl_agent.worlds.browser.pages import draw_page
from qwenvl_agent.worlds.browser.samples import ask_list

pytestmark = pytest.mark.browser
ROOT = Path(__file__).parents[1]
PLAIN = "<style>* { margin: 0; padding: 0; border: 0; box-sizing: border-box } button { position: absolute }</style>"
# What a click reached, as the page itself saw it.
WATCH = """() => addEventListener('click', event => {
  event.preventDefault();
  const hit = event.target.closest('a,button,input,select,textarea,summary') ?? event.target;
  const box = hit.getBoundingClientRect(), pieces = [...hit.querySelectorAll('img')].map(e => e.getBoundingClientRect());
  const sides = [box, ...pieces];
  window.reached = {
    text: hit.matches('input,select,textarea') ? '' : hit.innerText.replace(/\\s+/g, ' ').trim(),
    intent: hit.dataset.intent ?? '',
    box: [Math.min(...sides.map(s => s.left)), Math.min(...sides.map(s => s.top)),
          Math.max(...sides.map(s => s.right)), Math.max(...sides.map(s => s.bottom))],
  };
}, {capture: true})"""

# Text and purpose of what clicks would reach.
REACHED = """places => places.map(([x, y]) => {
  const hit = document.elementFromPoint(x, y)?.closest('a,button,input,select,textarea,summary,img');
  if (!hit) return null;
  const text = hit.matches('input,select,textarea') ? '' : hit.innerText.replace(/\\s+/g, ' ').trim();
  return [text, hit.dataset.intent ?? ''];
})"""


@pytest.fixture(scope="module")
def camera(browser):
    return Camera(browser)


@pytest.fixture
def tab(browser):
    context = chromium.open_context(browser, width=400, height=300)
    yield context.new_page()
    context.close()


def button(text: str, left: int, top: int, width: int, height: int, style: str = "") -> str:
    place = f"left:{left}px;top:{top}px;width:{width}px;height:{height}px;{style}"
    return f'<button style="{place}">{text}</button>'


def cover(left: int, top: int, width: int, height: int, style: str = "") -> str:
    return f'<div style="position:absolute;left:{left}px;top:{top}px;width:{width}px;height:{height}px;{style}"></div>'


def seen(tab, html: str) -> dict[str, tuple]:
    """(box, point, share in view) of every element by its accessible name."""
    tab.set_content(PLAIN + html)
    return {e.name: (e.box, e.point, round(e.visible, 2)) for e in read_layout(tab).elements}


def test_a_free_element_is_seen_whole(tab):
    assert seen(tab, button("A", 40, 60, 100, 40)) == {"A": ((40, 60, 140, 100), (90, 80), 1.0)}


def test_rounded_corners_do_not_make_it_smaller(tab):
    assert seen(tab, button("A", 40, 60, 100, 40, "border-radius:20px"))["A"] == ((40, 60, 140, 100), (90, 80), 1.0)


def test_of_a_covered_element_the_free_part_is_labelled(tab):
    box, point, visible = seen(tab, button("A", 0, 0, 200, 100) + cover(0, 0, 150, 100))["A"]
    assert box == (150, 0, 200, 100) and point == (175, 50) and abs(visible - 0.25) < 0.02


def test_of_an_angular_region_the_largest_rectangle_is_labelled(tab):
    box, point, _ = seen(tab, button("A", 0, 0, 200, 100) + cover(0, 0, 120, 70))["A"]
    assert box == (120, 0, 200, 100) and point == (160, 50)


def test_what_no_click_reaches_is_not_labelled(tab):
    tab.set_content(PLAIN + button("A", 0, 0, 80, 40) + button("B", 100, 0, 80, 40) + cover(0, 0, 90, 60))
    layout = read_layout(tab)
    assert [e.name for e in layout.elements] == ["B"] and layout.num_hidden == 1


def test_a_button_over_the_middle_of_another_takes_it(tab):
    found = seen(tab, button("Under", 0, 0, 200, 100) + button("Over", 60, 30, 80, 40))
    assert found["Over"][:2] == ((60, 30, 140, 70), (100, 50))
    x, y = found["Under"][1]
    assert not (60 <= x < 140 and 30 <= y < 70)


def is_in(boxes, x: int, y: int) -> bool:
    return any(x1 <= x < x2 and y1 <= y < y2 for x1, y1, x2, y2 in boxes)


def hit_boxes(tab, html: str, name: str) -> set[tuple]:
    tab.set_content(PLAIN + html)
    return {box for e in read_layout(tab).elements if e.name == name for box in e.hit_boxes}


def test_of_a_free_element_all_is_hit(tab):
    assert hit_boxes(tab, button("A", 40, 60, 100, 40), "A") == {(40, 60, 140, 100)}


# Chromium tests the square of 1 CSS px to the right of and below a click, so what lies over an element takes clicks from
# less than 1 px before its own left and top side on.


def test_around_an_overlay_each_side_is_hit(tab):
    """To the pixel, wherever the overlay's sides fall between the samples; the mouse finds the same."""
    html = button("Under", 10, 10, 301, 103) + cover(67, 41, 83, 37)
    boxes = hit_boxes(tab, html, "Under")
    assert boxes == {(10, 10, 311, 40), (10, 40, 66, 78), (150, 40, 311, 78), (10, 78, 311, 113)}
    tab.evaluate("addEventListener('click', event => window.reached = event.target.tagName, {capture: true})")
    for x, y in [(65, 60), (66, 60), (149, 60), (150, 60), (100, 39), (100, 40), (100, 77), (100, 78)]:
        tab.mouse.click(x + 0.5, y + 0.5)
        assert tab.evaluate("window.reached") == ("BUTTON" if is_in(boxes, x, y) else "DIV"), (x, y)


def test_of_an_angular_region_all_is_hit(tab):
    html = button("A", 0, 0, 200, 100) + cover(0, 0, 121, 71)
    assert hit_boxes(tab, html, "A") == {(121, 0, 200, 71), (0, 71, 200, 100)}


def test_a_strip_along_a_side_is_not_hit(tab):
    """Narrower than the distance of the first samples."""
    assert hit_boxes(tab, button("A", 0, 0, 200, 100) + cover(0, 0, 5, 100), "A") == {(5, 0, 200, 100)}
    assert hit_boxes(tab, button("A", 0, 0, 200, 100) + cover(0, 98, 200, 9), "A") == {(0, 0, 200, 97)}


def test_rounded_corners_are_not_hit(tab):
    """To 3 px."""
    boxes = hit_boxes(tab, button("A", 40, 60, 100, 40, "border-radius:20px"), "A")
    inside = {(x, y) for x1, y1, x2, y2 in boxes for x in range(x1, x2) for y in range(y1, y2)}
    for x in range(40, 140):
        for y in range(60, 100):
            beyond = ((x + 0.5 - min(max(x + 0.5, 60), 120)) ** 2 + (y + 0.5 - 80) ** 2) ** 0.5 - 20
            assert (x, y) in inside or beyond > -3, (x, y)
            assert (x, y) not in inside or beyond < 3, (x, y)


def test_hit_boxes_are_pixels_at_any_scale(browser):
    context = chromium.open_context(browser, width=200, height=100, scale=2.5)
    html = button("A", 40, 20, 100, 40) + cover(80, 20, 100, 80)
    assert hit_boxes(context.new_page(), html, "A") == {(100, 50, 198, 150)}  # 79 px * 2.5
    context.close()


def test_what_lets_clicks_through_covers_nothing(tab):
    html = button("A", 0, 0, 100, 40) + cover(0, 0, 100, 40, "pointer-events:none")
    assert seen(tab, html)["A"] == ((0, 0, 100, 40), (50, 20), 1.0)
    assert seen(tab, button("A", 0, 0, 100, 40, "pointer-events:none")) == {}
    assert seen(tab, button("A", 0, 0, 100, 40, "opacity:0") + button("B", 0, 50, 100, 40, "visibility:hidden")) == {}


def test_clipping_and_the_edge_of_the_viewport_cut(tab):
    clipped = '<div style="position:absolute;left:10px;top:10px;width:60px;height:60px;overflow:hidden">{}</div>'
    assert seen(tab, clipped.format(button("A", 0, 0, 120, 40)))["A"] == ((10, 10, 70, 50), (40, 30), 0.5)
    assert seen(tab, clipped.format(button("A", 0, 80, 120, 40))) == {}
    assert seen(tab, button("A", 350, 0, 100, 40))["A"] == ((350, 0, 400, 40), (375, 20), 0.5)
    assert seen(tab, button("A", 0, 5000, 100, 40)) == {}


def test_a_link_around_a_picture_is_as_large_as_the_picture(tab):
    picture = "data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg'/>"
    html = f'<a href="#"><img alt="kitten" src="{picture}" style="width:120px;height:90px"></a>'
    tab.set_content(PLAIN + html)
    (link,) = read_layout(tab).elements
    assert (link.role, link.name, link.picture_text) == ("link", "kitten", "kitten")
    assert link.box[:2] == (0, 0) and link.box[2] == 120 and link.box[3] >= 90 and link.point == (60, 45)


def test_a_link_over_two_lines_is_clicked_on_one_of_them(tab):
    html = '<p style="width:200px;font:20px monospace">aaaa aaaa aaaa <a href="#">bbbb bbbb bbbb</a> cccc</p>'
    tab.set_content(PLAIN + html)
    (link,) = read_layout(tab).elements
    hit = tab.evaluate("([x, y]) => document.elementFromPoint(x, y).tagName", [v + 0.5 for v in link.point])
    assert hit == "A" and link.visible == 1


def test_roles_names_labels_and_states_are_the_browsers(tab):
    tab.set_content(
        '<form aria-label="Bill"><h2>Bill</h2><label>City <input value="Oslo"></label>'
        '<label><input type="checkbox" checked> <span>Gift</span></label><button disabled aria-label="Send">→</button>'
        "<details><summary>More</summary></details><select><option>A</option></select></form>"
    )
    layout = read_layout(tab)
    assert [(e.role, e.name, e.shown, e.value, e.state) for e in layout.elements] == [
        ("textbox", "City", "City", "Oslo", ()),
        ("checkbox", "Gift", "Gift", "", ("checked",)),
        ("button", "Send", "→", "", ("disabled",)),
        ("summary", "More", "More", "", ()),
        ("combobox", "", "", "A", ()),
    ]
    assert {layout.groups[e.group].title for e in layout.elements} == {"Bill"}
    assert tab.evaluate("document.documentElement.outerHTML.includes('qwenvl')") is False


def test_an_element_belongs_to_the_innermost_group_and_that_to_the_next(tab):
    """Also where the outer one is first met through the inner one."""
    tab.set_content(
        '<section aria-label="People"><h2>People</h2><table><tr><th scope="row">Kim</th>'
        "<td><button>Delete</button></td></tr></table></section>"
    )
    layout = read_layout(tab)
    (button,) = layout.elements
    row = layout.groups[button.group]
    assert (row.role, row.title) == ("row", "Kim")
    section = layout.groups[row.parent]
    assert (section.role, section.title, section.parent) == ("region", "People", -1)


def test_an_element_may_be_a_group_too(tab):
    tab.set_content('<div role="group" tabindex="0" aria-label="Kim"><p>Kim</p><button>Delete</button></div>')
    layout = read_layout(tab)
    around, button = layout.elements
    assert (around.role, around.name, button.name) == ("group", "Kim", "Delete")
    assert layout.groups[button.group].role == "group"


def test_scripts_of_the_page_do_not_change_what_is_read(tab):
    script = "JSON.stringify = () => 'no'; Array.prototype.toJSON = () => 'no'; document.elementFromPoint = () => null"
    assert list(seen(tab, f"<script>{script}</script>" + button("A", 0, 0, 80, 40))) == ["A"]


def test_what_the_page_throws_is_raised(tab):
    from playwright.sync_api import Error

    session = tab.context.new_cdp_session(tab)
    with pytest.raises(Error, match="TypeError: no such page"):
        evaluate(session, "(async () => { throw new TypeError('no such page') })()")
    assert evaluate(session, "1 + 1")["value"] == 2


def test_boxes_are_pixels_of_the_picture_at_any_scale(browser):
    context = chromium.open_context(browser, width=200, height=100, scale=2.5)
    tab = context.new_page()
    tab.set_content(PLAIN + button("A", 40, 20, 100, 40))
    layout = read_layout(tab)
    assert (layout.width, layout.height) == Image.open(io.BytesIO(tab.screenshot())).size == (500, 250)
    assert [(e.box, e.point) for e in layout.elements] == [((100, 50, 350, 150), (225, 100))]
    context.close()


def test_a_click_in_a_hit_box_reaches_the_element(browser, camera):
    """Places drawn in the elements' boxes: reached if they are in a hit box, but beside curves."""
    page = draw_page("desktop", 3)
    assert page.scale == 1
    shot = camera.shoot(page)
    assert sum(len(element.hit_boxes) > 1 for element in shot.layout.elements) > 3
    context = chromium.open_context(browser, width=page.width, height=page.height)
    tab = context.new_page()
    tab.set_content(page.html)
    tab.evaluate(SCROLL, page.scroll)
    rng, num_near = random.Random(0), 0
    for element in shot.layout.elements:
        x1, y1, x2, y2 = element.box
        assert is_in(element.hit_boxes, *element.point)
        places = [(rng.randrange(x1, x2), rng.randrange(y1, y2)) for _ in range(12)]
        reached = tab.evaluate(REACHED, [[x + 0.5, y + 0.5] for x, y in places])
        dx, dy = (max(4, math.ceil((high - low) / 40)) for low, high in [(x1, x2), (y1, y2)])
        for (x, y), found in zip(places, reached, strict=True):
            if is_in(element.hit_boxes, x, y) == (found == [element.text, element.intent]):
                continue
            around = product((x - dx, x, x + dx), (y - dy, y, y + dy))
            assert len({is_in(element.hit_boxes, *place) for place in around}) == 2, (element, x, y)
            num_near += 1
    context.close()
    assert num_near <= 0.06 * 12 * len(shot.layout.elements)


@pytest.mark.parametrize("family", ["desktop", "mobile", "simple"])
def test_a_click_at_every_point_reaches_its_element(browser, camera, family):
    """With the mouse, in a tab of its own: not by the function that found the point."""
    num_clicks = 0
    for seed in range(2):
        page = draw_page(family, seed)
        shot = camera.shoot(page)
        context = chromium.open_context(browser, width=page.width, height=page.height, scale=page.scale)
        tab = context.new_page()
        tab.set_content(page.html)
        tab.evaluate(WATCH)
        for element in shot.layout.elements:
            tab.evaluate(SCROLL, page.scroll)  # a field that gets the focus scrolls into view
            tab.evaluate("window.reached = null")
            tab.mouse.click(*((v + 0.5) / page.scale for v in element.point))
            reached = tab.evaluate("window.reached")
            tab.keyboard.press("Escape")  # an open list of a select would take the next click
            assert (reached["text"], reached["intent"]) == (element.text, element.intent), element
            x1, y1, x2, y2 = (v * page.scale for v in reached["box"])
            assert x1 - 1 <= element.box[0] and y1 - 1 <= element.box[1]
            assert element.box[2] <= x2 + 1 and element.box[3] <= y2 + 1
            num_clicks += 1
        context.close()
    assert num_clicks >= 4


def test_no_instruction_on_a_page_means_two_elements(camera):
    for family, seed in [("desktop", 1), ("mobile", 2), ("simple", 3)]:
        scene = Scene(camera.shoot(draw_page(family, seed)).layout)
        for language in ("en", "zh", "ko"):
            speaker = Speaker(language, random.Random(0))
            meant = {}
            for kind in WAYS:
                for target in scene.elements:
                    for text in requests(scene, target, kind, speaker):
                        assert meant.setdefault(text, target) is target, text


def test_a_seed_gives_the_same_picture_and_labels(camera):
    page = draw_page("mobile", 5)
    first = camera.shoot(page)
    camera.shoot(draw_page("desktop", 5))
    again = camera.shoot(page)
    assert (first.png, first.layout) == (again.png, again.layout)
    assert Image.open(io.BytesIO(first.png)).size == (first.layout.width, first.layout.height)


def test_pictures_show_what_is_labelled(camera):
    """The colour in the corner of a board's button is the one that its instruction may name."""
    shot = camera.shoot(draw_page("simple", 4))
    image = Image.open(io.BytesIO(shot.png)).convert("RGB")
    assert len(shot.layout.elements) >= 2
    for element in shot.layout.elements:
        assert image.getpixel((element.box[2] - 2, element.box[3] - 2)) == element.background


def test_lists_of_elements_are_on_the_grid(camera):
    shot = camera.shoot(draw_page("desktop", 6))
    question, found = next(ask_list(shot, Speaker("en", random.Random(0)), random.Random(0)))
    assert question == "List every element that can be clicked, as JSON."
    assert len(found) == len(shot.layout.elements) > 5
    for item in found:
        x1, y1, x2, y2 = item["bbox_2d"]
        assert 0 <= x1 < x2 <= 1000 and 0 <= y1 < y2 <= 1000
        assert item["type"] and set(item) <= {"type", "text", "description", "state", "image", "bbox_2d"}


def test_fonts_that_are_missing_are_named(tab, monkeypatch):
    monkeypatch.setitem(chromium.SAMPLES, "none", "͹")
    with pytest.raises(ValueError, match="no font on this machine draws none: pictures would show empty boxes"):
        chromium.check_fonts(tab, ("en", "none"))
    chromium.check_fonts(tab, ("en", "zh", "ko", "emoji"))


class Redirect(http.server.BaseHTTPRequestHandler):
    def do_GET(self):  # noqa: N802 (the base class's name)
        self.server.asked.append(self.path)
        self.send_response(302 if self.path == "/away" else 200)
        if self.path == "/away":
            self.send_header("Location", f"http://127.0.0.1:{self.server.other_port}/stolen")
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(b"here")

    def log_message(self, *args):
        pass


@pytest.fixture
def two_servers():
    servers = [http.server.ThreadingHTTPServer(("127.0.0.1", 0), Redirect) for _ in range(2)]
    for server, other in zip(servers, reversed(servers), strict=True):
        server.asked, server.other_port = [], other.server_port
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield servers
    for server in servers:
        server.shutdown()
        server.server_close()


def walls() -> list[bool]:
    """With a network of its own, where there may be one, and by the proxy alone."""
    namespace = open_namespace()
    if namespace:
        namespace.close()
    return [False, True] if namespace else [False]


@pytest.mark.parametrize("has_namespace", walls())
def test_a_page_reaches_its_own_server_and_nothing_else(two_servers, has_namespace):
    """What the context refuses is told by its address and the page stays; what it does not see, the proxy tells."""
    with ThreadPoolExecutor(1) as thread:  # Playwright has one loop in this one already
        thread.submit(stay_at_home, two_servers, has_namespace).result()


def stay_at_home(two_servers, has_namespace: bool) -> None:
    from playwright.sync_api import Error

    own, other = two_servers
    home, away = (f"http://127.0.0.1:{server.server_port}" for server in two_servers)
    told = []
    with chromium.open_browser(reach="own", has_namespace=has_namespace) as browser:
        context = chromium.open_context(browser, width=200, height=100, origin=home, on_blocked=told.append)
        tab = context.new_page()
        tab.goto(home)
        assert tab.inner_text("body") == "here" and told == []
        for address in (f"{away}/", "file:///etc/hostname", "http://example.invalid/"):
            with pytest.raises(Error, match="ERR_ABORTED"):
                tab.goto(address)
        assert told == [f"{away}/", "file:///etc/hostname", "http://example.invalid/"]
        assert tab.url == f"{home}/"
        with pytest.raises(Error, match="ERR_HTTP_RESPONSE_CODE_FAILURE|ERR_ABORTED|403"):
            response = tab.goto(f"{home}/away")
            raise Error(str(response.status))
        assert told.pop() == f"{away}/stolen"
        with pytest.raises(Error, match="ERR_PROXY_CONNECTION_FAILED"):  # of no context of ours
            browser.new_context().new_page().goto(home)
    assert other.asked == [] and "/away" in own.asked


def test_a_context_without_a_server_reaches_none(two_servers, browser):
    told = []
    tab = chromium.open_context(browser, width=200, height=100, on_blocked=told.append).new_page()
    address = f"http://127.0.0.1:{two_servers[0].server_port}/a.png"
    tab.set_content(f'<img src="{address}">')
    tab.wait_for_timeout(200)
    assert told == [address] and two_servers[0].asked == []
    tab.context.close()


def generate(out: Path, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "scripts/generate_ui.py", "--out", str(out), "--json", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_what_is_generated_can_be_learned_from(tmp_path, browser):
    done = generate(tmp_path, "--pages", "4", "--family", "mobile", "simple", "--draw", "1")
    assert done.returncode == 0, done.stderr
    manifest = json.loads(done.stdout)
    found = list(read_samples(tmp_path))
    assert not [item for item in found if isinstance(item, Reject)]
    assert len(found) == manifest["rows"] >= 8
    for sample in found:
        (action,) = sample.actions
        x1, y1, x2, y2 = sample.box_px
        assert action.kind == "left_click" and x1 <= action.x_px < x2 and y1 <= action.y_px < y2
        assert sample.thought and not sample.notes
    rows = list(read_rows(tmp_path / "questions.jsonl", "chat"))
    assert len(rows) == manifest["questions"] >= 8 and not [row for row in rows if isinstance(row, Reject)]
    lines = [json.loads(line) for line in (tmp_path / "elements.jsonl").read_text(encoding="utf-8").splitlines()]
    assert sum(len(line["elements"]) for line in lines) == manifest["elements"]
    assert [path.name for path in (tmp_path / "drawn").iterdir()] == ["mobile_0000000.png"]


def test_data_that_is_there_is_not_lost(tmp_path, browser):
    (tmp_path / "dataset.jsonl").write_text("mine")
    done = generate(tmp_path, "--pages", "1")
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "would be lost" in done.stderr
    assert (tmp_path / "dataset.jsonl").read_text() == "mine"
    mixed = generate(tmp_path / "mixed", "--pages", "2", "--seed-start", "999999")
    assert mixed.returncode == 2 and "not all of one seed set" in mixed.stderr
