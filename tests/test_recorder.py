"""A person's work in a real headless Chromium becomes samples: each kind of deed, and what must not be recorded."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from source_rows import read_rows

from qwenvl_agent.cli import record_clicks
from qwenvl_agent.computer import Action
from qwenvl_agent.data.readers.computer import Sample, read_samples
from qwenvl_agent.data.source import Reject
from qwenvl_agent.worlds.browser import chromium, recorder
from qwenvl_agent.worlds.browser.recorder import typing_actions

pytestmark = pytest.mark.loopback

needs_browser = pytest.mark.browser
ROOT = Path(__file__).parents[1]
STYLE = """<style>* { margin: 0; box-sizing: border-box; font: 16px sans-serif }
  body > * { position: absolute } body { background: white }
  button, input, select, textarea, a, .plain { width: 160px; height: 40px; border: 1px solid black; background: #eee }
  button:hover { background: red }</style>"""


def at(left: int, top: int, more: str = "") -> str:
    return f'style="left:{left}px;top:{top}px;{more}"'


SHOP = f"""<!doctype html><title>Shop</title>{STYLE}
<input aria-label="Search" {at(20, 20)}> <button id="go" {at(200, 20)} onclick="this.textContent = 'Found'">Go</button>
<a href="second.html" {at(20, 80)}>Second page</a>
<div class="plain" {at(200, 80)} onmousedown="document.title = 'pressed'">Plain</div>
<input type="password" aria-label="Password" {at(20, 140)}>
<textarea aria-label="Note" {at(200, 140)}>old</textarea>
<select aria-label="City" {at(20, 200)}><option>Seoul<option>Paris</select>
<a href="kitten.png" download {at(200, 200)}>Save picture</a>
<div {at(20, 1500)}>far below</div>"""
SECOND = f"<!doctype html><title>Second</title>{STYLE}<button {at(50, 50)}>Back</button>"


@pytest.fixture
def pages(tmp_path):
    try:
        chromium.find_chromium()
    except ValueError as error:
        pytest.skip(str(error))
    folder = tmp_path / "pages"
    folder.mkdir()
    (folder / "index.html").write_text(SHOP)
    (folder / "second.html").write_text(SECOND)
    Image.new("RGB", (8, 8), "orange").save(folder / "kitten.png")
    return folder


class Person:
    """Hands at the recorded window."""

    def __init__(self, running: recorder.Recorder):
        self.recorder = running

    @property
    def page(self):
        return self.recorder.tabs[-1].page

    @property
    def mouse(self):
        return self.page.mouse

    @property
    def keyboard(self):
        return self.page.keyboard

    def rest(self) -> None:
        """A person looks at what came of it; twice, as a page may go on after a moment."""
        for _ in range(2):
            self.recorder.watch(self.recorder.is_settled)
            self.page.wait_for_timeout(60)

    def click(self, x: int, y: int, **settings) -> None:
        self.mouse.move(x, y)
        self.mouse.click(x, y, **settings)
        self.rest()


@pytest.fixture
def record(pages, tmp_path, capsys):
    """Record what `deeds(person)` does; returns (summary, samples, rejects) of the folder."""

    def record(deeds, *options: str, page: str | None = None):
        def act(running):
            person = Person(running)
            person.rest()
            deeds(person)

        arguments = [page or str(pages), "--out", str(tmp_path / "out"), "--headless", "--size", "400", "300"]
        args = record_clicks.build_parser().parse_args(
            [*arguments, "--instruction", "Do it", "--end", "none", *options]
        )
        summary = record_clicks.record(args, act)
        items = list(read_samples(tmp_path / "out")) if summary["samples_in_folder"] else []
        assert not [item for item in items if isinstance(item, Reject)], items
        path = tmp_path / "out" / "rejects.jsonl"
        rejects = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return summary, items, rejects

    return record


def kinds(samples: list[Sample]) -> list[str]:
    return ["+".join(action.kind for action in sample.actions) for sample in samples]


@needs_browser
def test_a_click_is_the_screenshot_before_it_the_element_and_what_came_of_it(record):
    summary, (sample,), rejects = record(lambda person: person.click(280, 40))
    assert sample.actions == (Action.click(280, 40),) and sample.box_px == (200, 20, 360, 60)
    assert sample.details["role"] == "button" and sample.details["name"] == "Go" and sample.details["is_known"]
    assert sample.thought == "The target is go_button." and sample.instruction == "Do it"
    image = sample.picture.open()
    assert image.size == (400, 300) and image.getpixel((210, 30)) == (0xEE,) * 3  # not lit up by the pointer
    result = sample.details["result"]
    assert result["is_changed"] and result["title"] == "Shop" and result["url"].endswith("/")
    after = Image.open(Path(sample.picture.path).parents[1] / result["screenshot"])
    assert after.convert("RGB").getpixel((210, 30)) == (255, 0, 0)  # the pointer is on it now
    assert not rejects and summary["steps"] == 1


@needs_browser
def test_keys_become_one_text_and_corrections_do_not_count(record):
    def deeds(person):
        person.click(100, 40)
        person.keyboard.type("cats")
        for key in ("Backspace", "ArrowLeft", "ArrowRight"):
            person.keyboard.press(key)
        person.keyboard.insert_text("喵😺")  # as an input method does
        person.rest()
        person.keyboard.press("Enter")
        person.rest()

    _, samples, rejects = record(deeds)
    assert kinds(samples) == ["left_click", "type", "key"] and not rejects
    assert samples[1].actions == (Action("type", text="cat喵😺"),)
    assert samples[1].box_px == (20, 20, 180, 60) and samples[1].details["name"] == "Search"
    assert samples[2].actions == (Action("key", keys=("enter",)),)
    assert samples[2].past == (
        '{"action": "left_click", "coordinate": [250, 133]}',
        '{"action": "type", "text": "cat喵😺"}',
    )
    assert [s.step for s in samples] == [0, 1, 2] and len({s.episode_id for s in samples}) == 1


@needs_browser
def test_text_in_the_middle_and_a_text_written_anew(record):
    def deeds(person):
        person.click(280, 160)
        person.keyboard.press("Home")
        person.rest()
        person.keyboard.type("be")
        person.keyboard.press("Enter")
        person.rest()
        person.click(100, 40)  # elsewhere
        person.click(280, 175)
        person.keyboard.press("Control+End")
        person.rest()
        for _ in range(3):
            person.keyboard.press("Backspace")
        person.keyboard.type("new")
        person.rest()

    _, samples, _ = record(deeds)
    assert kinds(samples) == ["left_click", "key", "type", "left_click", "left_click", "key", "key+type"]
    assert samples[2].actions == (Action("type", text="be\n"),)
    assert samples[6].actions == (Action("key", keys=("ctrl", "a")), Action("type", text="be\nnew"))


def test_what_keys_make_of_a_text():
    event = {"text": "a", "isWhole": False, "isEmptied": False}
    every = Action("key", keys=("ctrl", "a"))
    backspace = Action("key", keys=("backspace",))
    assert typing_actions(event) == (Action("type", text="a"),)
    assert typing_actions(event | {"isWhole": True}) == (every, Action("type", text="a"))
    assert typing_actions(event | {"isWhole": True, "text": ""}) == (every, backspace)
    assert typing_actions(event | {"isEmptied": True, "text": ""}) == (backspace,)
    assert typing_actions(event | {"text": ""}) == ()
    with pytest.raises(ValueError, match="text of 2001 characters"):
        typing_actions(event | {"text": "x" * 2001})


@needs_browser
@pytest.mark.parametrize(("within_ms", "found"), [(60_000, ["double_click"]), (-1, ["left_click"] * 2)])
def test_clicks_at_one_spot_in_time_are_a_double_click_on_the_first_picture(record, monkeypatch, within_ms, found):
    monkeypatch.setattr(recorder, "DOUBLE_CLICK_MS", within_ms)

    def deeds(person):
        person.mouse.dblclick(280, 40)
        person.rest()
        person.click(280, 100, button="right")
        person.click(280, 40)
        person.click(240, 40)  # another spot

    _, samples, _ = record(deeds)
    assert kinds(samples) == [*found, "right_click", "left_click", "left_click"]
    assert samples[0].picture.open().getpixel((210, 30)) == (0xEE,) * 3
    assert samples[-3].details["name"] == "Plain" and samples[-3].box_px == (200, 80, 360, 120)


@needs_browser
@pytest.mark.parametrize(("within_ms", "found"), [(60_000, [-250]), (-1, [-100, -100, -100, 50])])
def test_the_wheel_becomes_one_scroll_unless_it_rests(record, monkeypatch, within_ms, found):
    monkeypatch.setattr(recorder, "WHEEL_MS", within_ms)

    def deeds(person):
        person.mouse.move(100, 250)
        for pixels in (100, 100, 100, -50):
            person.mouse.wheel(0, pixels)
            person.rest()

    _, samples, _ = record(deeds)
    assert [a for s in samples for a in s.actions] == [Action("scroll", 100, 250, scroll_px=px) for px in found]
    # At last nothing but white is in view, before and after.
    assert [s.details["result"]["is_changed"] for s in samples] == [True, True, True, False][: len(found)]


@needs_browser
def test_a_press_that_moves_is_a_drag(record):
    def deeds(person):
        person.mouse.move(30, 280)
        person.mouse.down()
        person.mouse.move(90, 290, steps=3)
        person.mouse.up()
        person.rest()

    _, (drag,), _ = record(deeds)
    assert drag.actions == (Action("mouse_move", 30, 280), Action("left_click_drag", 90, 290))
    assert drag.box_px is None  # nothing but the page is there


@needs_browser
def test_secrets_are_not_recorded(record, tmp_path):
    def deeds(person):
        person.click(100, 160)
        person.keyboard.type("hunter2")
        person.rest()
        person.keyboard.press("Enter")
        person.rest()

    summary, samples, rejects = record(deeds)
    assert kinds(samples) == ["left_click", "key"] and summary["secrets_typed"] == 1
    assert [reject["reason"] for reject in rejects] == ["secret"]
    for path in (tmp_path / "out").rglob("*.jsonl"):
        assert "hunter2" not in path.read_text() and "hunter" not in path.read_text()


@needs_browser
def test_pages_follow_each_other_and_a_download_is_a_result(record, tmp_path):
    def deeds(person):
        person.click(280, 220)
        person.click(100, 100)
        person.click(100, 70)

    _, samples, rejects = record(deeds, "--end", "success")
    assert kinds(samples) == ["left_click"] * 3 + ["terminate"] and not rejects
    download, link, back, end = samples
    assert download.details["result"]["events"] == ["downloaded: kitten.png"]
    (saved,) = (tmp_path / "out" / "downloads").rglob("kitten.png")
    assert Image.open(saved).getpixel((0, 0)) == (255, 165, 0)
    assert link.past[0].endswith("(downloaded: kitten.png)")
    assert link.details["result"]["title"] == "Second" == back.details["title"]
    assert (back.details["name"], back.box_px) == ("Back", (50, 50, 210, 90))
    assert end.actions == (Action("terminate", status="success"),) and end.box_px is None


@needs_browser
def test_an_option_is_typed_unless_keys_chose_it(record):
    def deeds(person):
        select = person.page.locator("select")
        select.focus()
        person.rest()
        person.keyboard.press("ArrowDown")
        person.rest()
        # What a list of the system, which opens over the window, tells the page when an option is clicked.
        person.recorder._events.append((person.page, person.page.main_frame, choice(person, "Seoul")))
        person.rest()

    def choice(person, text: str) -> dict:
        (tab,) = person.recorder.tabs
        document, version = tab.looks[-1].states[person.page.main_frame]
        place = {"role": "select", "name": "City", "box": [20, 200, 180, 240], "isPlaced": True}
        return {"type": "choice", "text": text, "document": document, "version": version, "time": 9e15, **place}

    _, (key, option), _ = record(deeds)
    assert key.actions == (Action("key", keys=("down",)),)
    assert option.actions == (Action("type", text="Seoul"),) and option.box_px == (20, 200, 180, 240)


@needs_browser
def test_what_the_picture_does_not_show_is_refused_and_counted(record, pages):
    (pages / "index.html").write_text(
        f"<!doctype html>{STYLE}<button id=b {at(20, 20)}>Moves</button><button {at(20, 200)}>Stays</button>"
        "<script>addEventListener('mousemove', () => { b.style.top = '100px'; b.style.left = '200px' })</script>"
    )

    def deeds(person):
        person.mouse.move(280, 120)
        person.mouse.click(280, 120)  # it has just come under the pointer: no picture shows it there
        person.mouse.click(100, 220)  # the page has changed, but this stands where the picture shows it
        person.rest()

    summary, (sample,), rejects = record(deeds)
    assert sample.details["name"] == "Stays" and sample.step == 1 and len(sample.past) == 1
    assert [reject["reason"] for reject in rejects] == ["not_in_picture"] and summary["rejects"] == {
        "not_in_picture": 1
    }


@needs_browser
def test_a_page_that_never_rests_is_recorded(record, pages):
    ticking = "<p id=t>0</p><script>setInterval(() => t.textContent++, 20)</script>"
    (pages / "index.html").write_text(f"<!doctype html>{STYLE}{ticking}<button {at(20, 100)}>Stop</button>")

    def deeds(person):
        person.mouse.click(100, 120)
        person.recorder.watch(lambda: bool(person.recorder.steps and person.recorder.steps[-1].result))

    def act(running):
        running.watch(lambda: bool(running.tabs and running.tabs[-1].looks))
        deeds(Person(running))

    args = ["--headless", "--size", "400", "300", "--instruction", "x", "--end", "none"]
    summary = record_clicks.record(
        record_clicks.build_parser().parse_args([str(pages), "--out", str(pages.parent / "out"), *args]), act
    )
    assert summary["steps"] == 1 and not summary["rejects"]


@needs_browser
def test_frames_and_other_windows_are_followed(record, pages):
    (pages / "index.html").write_text(
        f"<!doctype html>{STYLE}<iframe src=second.html {at(100, 100, 'border:5px solid;width:250px;height:150px')}></iframe>"
        f"<a href=second.html target=_blank {at(20, 20)}>New window</a>"
    )

    def deeds(person):
        person.click(170, 170)
        person.click(60, 40)
        person.recorder.watch(lambda: len(person.recorder.tabs) == 2)
        person.rest()
        person.click(100, 70)

    _, (inside, link, other), _ = record(deeds)
    assert (inside.details["name"], inside.box_px) == ("Back", (155, 155, 315, 195))
    assert not inside.details["is_known"] and link.details["name"] == "New window"
    assert other.details["name"] == "Back" and other.details["url"].endswith("second.html")


@needs_browser
def test_pixels_are_the_pictures_at_any_scale(record):
    _, (sample,), _ = record(lambda person: person.click(280, 40), "--scale", "2")
    assert (sample.picture.width, sample.picture.height) == (800, 600)
    assert sample.actions == (Action.click(560, 80),) and sample.box_px == (400, 40, 720, 120)


@needs_browser
def test_rows_can_be_trained_on_and_episodes_gather(record, tmp_path):
    def deeds(person):
        person.click(280, 40)
        person.click(280, 100)

    record(deeds)
    _, _, rejects = record(deeds)
    assert [reject["reason"] for reject in rejects] == ["duplicate"] * 2  # the very same again
    summary, samples, _ = record(deeds, "--instruction", "Do it again")
    assert summary["samples_in_folder"] == len(samples) == 4 and len({s.episode_id for s in samples}) == 2
    rows = list(read_rows(tmp_path / "out", "computer"))
    assert [row.turn_index for row in rows] == [0, 1, 0, 1]
    assert rows[1].step.observation.text.endswith('1. {"action": "left_click", "coordinate": [700, 133]}')


KILLED = """
import os, sys
from qwenvl_agent.cli import record_clicks
def act(recorder):
    recorder.watch(recorder.is_settled)
    page = recorder.tabs[-1].page
    page.mouse.click(280, 40)
    page.mouse.click(100, 40)
    page.keyboard.type("unfinished")
    recorder.watch(lambda: recorder.steps and recorder.steps[-1].kind == "typing" and recorder.steps[-1].result)
    os.kill(os.getpid(), 9)
record_clicks.record(record_clicks.build_parser().parse_args(sys.argv[1:]), act)
"""


@needs_browser
def test_a_killed_recording_loses_nothing(pages, tmp_path):
    options = ["--headless", "--size", "400", "300", "--instruction", "x", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(pages), *options], cwd=ROOT, capture_output=True, timeout=120
    )
    assert done.returncode == -9, done.stderr.decode()
    assert kinds(list(read_samples(tmp_path / "out"))) == ["left_click", "left_click", "type"]


# The folder's server.


def fetch(server, path: str, cookie: str = "") -> tuple[int, bytes]:
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.request("GET", path, headers={"Cookie": cookie} if cookie else {})
    response = connection.getresponse()
    found = response.status, response.read()
    connection.close()
    return found


def test_a_folder_is_served_to_who_has_the_token_and_no_further(tmp_path):
    folder = tmp_path / "pages"
    (folder / "sub").mkdir(parents=True)
    (folder / "index.html").write_text("start")
    (folder / "sub" / "a b.txt").write_text("inside")
    (tmp_path / "secret.txt").write_text("outside")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    server = record_clicks.FolderServer(folder.resolve())
    try:
        cookie = f"{record_clicks.COOKIE}={server.token}"
        assert server.server_address[0] == "127.0.0.1"
        assert fetch(server, "/", cookie) == (200, b"start")
        assert fetch(server, "/sub/a%20b.txt?x=1", cookie) == (200, b"inside")
        for wrong in ("", f"{record_clicks.COOKIE}=", f"{cookie}x", "other=1", '"'):
            status, body = fetch(server, "/index.html", wrong)
            assert status == 403 and b"start" not in body
        for path in ("/../secret.txt", "/%2e%2e/secret.txt", "/link.txt", "/sub/../../secret.txt", "/gone"):
            status, body = fetch(server, path, cookie)
            assert status == 404 and b"outside" not in body, path
    finally:
        server.close()


def test_faults_of_the_user_are_told(tmp_path, capsys, monkeypatch):
    def error_of(*arguments: str) -> str:
        assert record_clicks.main([*arguments, "--out", str(tmp_path / "out"), "--headless"]) == 2
        return capsys.readouterr().err

    task = ("--instruction", "x")
    assert "gone is neither an address nor a folder" in error_of(str(tmp_path / "gone"), *task)
    assert "https://example.org is not on this machine" in error_of("https://example.org", *task)
    assert "file:///etc is neither" in error_of("file:///etc", *task)
    assert "window of 5x5" in error_of(str(tmp_path), *task, "--size", "5", "5")
    assert "scale nan" in error_of(str(tmp_path), *task, "--scale", "nan")
    assert "the instruction is empty" in error_of(str(tmp_path), "--instruction", " ")
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert "no instruction was given" in error_of(str(tmp_path))


@needs_browser
def test_an_address_that_does_not_open_is_told(pages, tmp_path, capsys):
    options = ["--headless", "--instruction", "x", "--out", str(tmp_path / "out")]
    assert record_clicks.main(["http://127.0.0.1:9/", *options]) == 2
    assert "http://127.0.0.1:9/ does not open" in capsys.readouterr().err
