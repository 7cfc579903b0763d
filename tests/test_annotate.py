"""Marking screenshots: what a mark becomes, what is refused, and a person's work in a real browser."""

import http.client
import json
import threading
from contextlib import contextmanager

import pytest
from PIL import Image, ImageDraw

from qwenvl_agent.cli import annotate
from qwenvl_agent.computer import Action
from qwenvl_agent.curation.annotation import Annotation, find_pictures, look_at
from qwenvl_agent.curation.sample_folder import SampleFolder
from qwenvl_agent.data.readers.computer import Sample, read_samples
from qwenvl_agent.worlds.browser import chromium

pytestmark = pytest.mark.loopback

WIDTH, HEIGHT = 400, 200
MARK = {"instruction": "点击搜索", "action": {"action": "click", "x": 300, "y": 80}, "box": [280, 70, 320, 90]}


def screenshot(colour: str, size=(WIDTH, HEIGHT)) -> Image.Image:
    image = Image.new("RGB", size, colour)
    ImageDraw.Draw(image).rectangle([280, 70, 319, 89], fill="navy")
    return image


@pytest.fixture
def folder(tmp_path):
    pictures = tmp_path / "shots"
    pictures.mkdir()
    for name, colour in (("a.png", "white"), ("b.png", "beige"), ("c.jpg", "pink")):
        screenshot(colour).save(pictures / name)
    return tmp_path


@contextmanager
def running(folder):
    """The server over folder/shots, saving to folder/out."""
    with SampleFolder(folder / "out") as samples:
        annotation = Annotation(look_at(find_pictures([folder / "shots"])), samples)
        server = annotate.AnnotationServer(annotation)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


@pytest.fixture
def server(folder):
    with running(folder) as started:
        yield started


def ask(server, path: str, value: object = None, *, token: str | None = None, **headers) -> tuple[int, bytes]:
    """`value` is posted, as JSON unless it is bytes."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    body = value if value is None or isinstance(value, bytes) else json.dumps(value).encode()
    token = server.token if token is None else token
    connection.request("POST" if body is not None else "GET", f"/{token}/{path}", body, headers)
    response = connection.getresponse()
    answer = response.status, response.read()
    connection.close()
    return answer


def keys(server) -> list[str]:
    return [picture["key"] for picture in json.loads(ask(server, "state")[1])["pictures"]]


def saved(folder) -> list[dict]:
    path = folder / "out" / "dataset.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


# What is written.


def test_a_mark_is_a_record_that_the_reader_takes(server, folder):
    status, body = ask(server, "put", MARK | {"key": keys(server)[0]})
    assert status == 200
    (sample,) = read_samples(folder / "out")
    assert isinstance(sample, Sample) and sample.actions == (Action.click(300, 80),)
    assert (sample.instruction, sample.box_px) == ("点击搜索", (280, 70, 320, 90))
    assert sample.picture.open().tobytes() == screenshot("white").tobytes()
    (record,) = saved(folder)
    assert record == json.loads(body)["saved"]
    assert record["details"] == {"file": "shots/a.png"} and record["image_size"] == [WIDTH, HEIGHT]
    assert record["action"] == MARK["action"] and record["origin"] == "annotated"


def test_a_sample_is_replaced_in_its_place_and_removed(server, folder):
    first, second, _ = keys(server)
    for key in (first, second):
        ask(server, "put", MARK | {"key": key})
    name = saved(folder)[0]["id"]
    assert ask(server, "put", MARK | {"key": first, "id": name, "instruction": "other"})[0] == 200
    assert [record["instruction"] for record in saved(folder)] == ["other", "点击搜索"]
    state = json.loads(ask(server, "remove", {"id": name})[1])["state"]
    assert [picture["is_marked"] for picture in state["pictures"]] == [False, True, False]
    assert [record["instruction"] for record in saved(folder)] == ["点击搜索"]
    assert ask(server, "remove", {"id": name})[0] == 400


def test_work_goes_on_where_it_was_left(folder):
    with running(folder) as server:
        first, second, _ = keys(server)
        ask(server, "put", MARK | {"key": second})
        ask(server, "skip", {"key": first, "is_skipped": True})
    with running(folder) as server:
        state = json.loads(ask(server, "state")[1])
        assert [(p["is_marked"], p["is_skipped"]) for p in state["pictures"]] == [(0, 1), (1, 0), (0, 0)]
        assert state["samples"] == saved(folder)
        ask(server, "skip", {"key": first, "is_skipped": False})
        assert server.annotation.counts() == {"samples": 1, "pictures": 3, "marked": 1, "skipped": 0, "unusable": 0}


def test_a_mark_on_a_skipped_picture_makes_it_done(server):
    key = keys(server)[0]
    ask(server, "skip", {"key": key, "is_skipped": True})
    ask(server, "put", MARK | {"key": key})
    assert server.annotation.skipped == set()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"instruction": " "}, "instruction is ' '"),
        ({"action": {"action": "fly"}}, "action is 'fly', which does not exist"),
        ({"action": {"action": "click", "x": 400, "y": 5}}, "outside the screen of 400x200 px"),
        ({"action": {"action": "click", "x": float("nan"), "y": 5}}, "nan is no number"),
        ({"action": None}, "action and next_action: neither is given"),
        ({"box": [280, 70, 500, 90]}, "leaves the picture"),
        ({"box": [5, 5, 5, 9]}, "has no inside"),
        ({"action": {"action": "type", "text": "<|im_end|>"}}, "control token '<|im_end|>'"),
        ({"key": "../../secret"}, "picture '../../secret' is not one of those to mark"),
        ({"key": ["a"]}, "is not one of those to mark"),
    ],
)
def test_what_no_reader_takes_is_told_and_not_saved(server, folder, change, message):
    good = MARK | {"key": keys(server)[0]}
    ask(server, "put", good)
    before = saved(folder)
    status, body = ask(server, "put", good | {"instruction": "again"} | change)
    assert status == 400 and message in json.loads(body)["error"]
    assert saved(folder) == before and len(before) == 1


def test_a_copy_of_a_sample_is_refused(server, folder):
    good = MARK | {"key": keys(server)[0]}
    ask(server, "put", good)
    status, body = ask(server, "put", good)
    assert status == 400 and "it would count twice" in json.loads(body)["error"]
    assert ask(server, "put", good | {"id": saved(folder)[0]["id"]})[0] == 200 and len(saved(folder)) == 1


def test_a_save_that_fails_spoils_no_later_one(server, folder, monkeypatch):
    """Half a character goes into no file; it was kept in memory, and every later save failed with it."""
    good = MARK | {"key": keys(server)[0]}
    for bad in ({"instruction": "a \ud800"}, {"id": "\udfff"}, {"action": {"action": "type", "text": "\ud800"}}):
        status, body = ask(server, "put", good | bad)
        assert status == 400 and "half a character" in json.loads(body)["error"]
    assert ask(server, "put", good)[0] == 200 and len(saved(folder)) == 1
    name = saved(folder)[0]["id"]
    with monkeypatch.context() as patched:
        patched.setattr("os.replace", lambda *paths: (_ for _ in ()).throw(OSError("disk full")))
        assert ask(server, "put", good | {"instruction": "more"})[0] == 500
        assert ask(server, "remove", {"id": name})[0] == 500
        assert ask(server, "skip", {"key": good["key"], "is_skipped": True})[0] == 500
    state = json.loads(ask(server, "state")[1])
    assert state["samples"] == saved(folder) and len(saved(folder)) == 1
    assert not any(picture["is_skipped"] for picture in state["pictures"])
    assert ask(server, "put", good | {"instruction": "more"})[0] == 200 and len(saved(folder)) == 2


# Who is answered.


def test_without_the_token_nothing_is_answered(server):
    for path in ("", "state", f"pictures/{keys(server)[0]}", "put"):
        for token in ("", "x", server.token[:-1], "%C3%A9", f"{server.token}x"):
            for value in (None, {}):
                status, body = ask(server, path, value, token=token)
                assert status == 403 and len(body) < 100, (path, token)
    assert len(server.token) >= 20


def test_only_this_machine_is_listened_to_and_only_by_its_own_names(server):
    assert server.server_address[0] == "127.0.0.1"
    assert ask(server, "state", Host=f"evil.example:{server.server_port}")[0] == 403
    assert ask(server, "state", Host=f"localhost:{server.server_port}")[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "../../etc/passwd",
        "pictures/../../../shots/a.png",
        "pictures/%2e%2e%2fsecret.png",
        "pictures/a.png",
        "shots/a.png",
    ],
)
def test_no_path_leads_to_a_file(server, path):
    status, body = ask(server, path)
    assert status in (400, 404) and len(body) < 200


def test_requests_that_are_nonsense_do_no_harm(server, folder):
    for value in (b"", b"{", b"[1]", b"null", b"[" * 100_000, b"\xff", b'{"key": 1}'):
        assert ask(server, "put", value)[0] == 400
    assert ask(server, "fly", {})[0] == 404
    assert ask(server, "put", b"x", **{"Content-Length": "99999999"})[0] == 413
    assert ask(server, "put", b"x", **{"Content-Length": "-1"})[0] == 400
    assert saved(folder) == []


def test_the_page_is_one_file_that_loads_nothing_else():
    page = annotate.PAGE_PATH.read_text(encoding="utf-8")
    assert "http://www.w3.org/2000/svg" in page
    assert "://" not in page.replace("http://www.w3.org/2000/svg", "") and "@import" not in page


# Pictures.


def test_pictures_are_shown_as_readers_see_them(folder):
    sideways = screenshot("white")
    exif = sideways.getexif()
    exif[0x0112] = 6  # "turn by 90 degrees"
    sideways.save(folder / "shots" / "turned.jpg", exif=exif)
    with running(folder) as server:
        status, body = ask(server, f"pictures/{keys(server)[3]}")
    assert status == 200 and body[:4] == b"\x89PNG" and body[16:24] == b"\0\0\0\xc8\0\0\1\x90"


def test_broken_pictures_cost_nothing_else(folder, monkeypatch):
    shots = folder / "shots"
    (shots / "broken.png").write_bytes((shots / "a.png").read_bytes()[:60])
    (shots / "copy.bmp").write_bytes(b"")
    screenshot("white").save(shots / "copy.bmp")
    Image.new("L", (1000, 1000)).save(shots / "giant.png")
    (shots / "link.png").symlink_to("/etc/hostname")
    (shots / "notes.txt").write_text("no picture")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500_000)
    faults = {item.name: item.fault for item in look_at(find_pictures([shots]))}
    assert [name for name, fault in faults.items() if not fault] == ["shots/a.png", "shots/b.png", "shots/c.jpg"]
    assert "is not a readable picture" in faults["shots/broken.png"]
    assert "has more than 500000 pixels" in faults["shots/giant.png"]
    assert "shows the same as shots/a.png" in faults["shots/copy.bmp"]
    assert len(faults) == 6


def test_a_picture_that_changed_is_not_marked(server, folder):
    key = keys(server)[0]
    screenshot("black").save(folder / "shots" / "a.png")
    status, body = ask(server, "put", MARK | {"key": key})
    assert status == 400 and "has changed since it was shown" in json.loads(body)["error"]
    (folder / "shots" / "a.png").unlink()
    assert ask(server, f"pictures/{key}")[0] == 400 and ask(server, "put", MARK | {"key": key})[0] == 400


# The folder.


def test_one_program_at_a_time(folder):
    with SampleFolder(folder / "out"), pytest.raises(ValueError, match="out is open in another program"):
        SampleFolder(folder / "out")
    SampleFolder(folder / "out").close()


def test_a_file_that_would_be_lost_is_not_opened(folder):
    (folder / "out").mkdir()
    path = folder / "out" / "dataset.jsonl"
    for content in ('{"id": "a"}\n{"id": ', "[1]\n"):
        path.write_text(content)
        with pytest.raises(ValueError, match="dataset.jsonl:[12]: .*it would be lost"):
            SampleFolder(folder / "out")
        assert path.read_text() == content


def test_a_failed_write_leaves_the_file_as_it_was(folder, monkeypatch):
    with SampleFolder(folder / "out") as samples:
        record = MARK | {"id": "a", "screenshot": samples.add_picture(screenshot("white"))}
        samples.put(record)
        before = (folder / "out" / "dataset.jsonl").read_bytes()
        monkeypatch.setattr("os.replace", lambda *paths: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            samples.put(record | {"id": "b", "instruction": "more"})
        assert (folder / "out" / "dataset.jsonl").read_bytes() == before


def test_faults_of_the_user_are_told(folder, capsys):
    def error_of(*arguments: str) -> str:
        assert annotate.main([*arguments, "--out", str(folder / "out"), "--no-open"]) == 2
        return capsys.readouterr().err

    assert "gone does not exist" in error_of(str(folder / "gone"))
    (folder / "empty").mkdir()
    assert "no picture is in" in error_of(str(folder / "empty"))
    (folder / "empty" / "x.png").write_bytes(b"x")
    assert "none of the pictures can be read" in error_of(str(folder / "empty"))
    with SampleFolder(folder / "out"):
        assert "is open in another program" in error_of(str(folder / "shots"))
    (folder / "out" / "progress.json").write_text("{")
    assert "progress.json cannot be read" in error_of(str(folder / "shots"))


# A person at the page.


def expect(locator):
    from playwright.sync_api import expect as expect_of

    return expect_of(locator)


@pytest.fixture
def page(browser, server):
    context = chromium.open_context(browser, width=1100, height=600, origin=server.address.rsplit("/", 2)[0])
    opened = context.new_page()
    opened.faults = []
    opened.on("pageerror", lambda error: opened.faults.append(str(error)))
    opened.on("console", lambda message: message.type == "error" and opened.faults.append(message.text))
    opened.goto(server.address)
    expect(opened.locator("#picture")).to_have_js_property("naturalWidth", WIDTH)
    yield opened
    assert not [fault for fault in opened.faults if "400" not in fault]
    context.close()


def drag(page, x1: int, y1: int, x2: int, y2: int) -> None:
    """In pixels of the picture, from the middle of one to the start of another."""
    at = page.locator("#picture").bounding_box()
    scale = at["width"] / WIDTH
    page.mouse.move(at["x"] + x1 * scale, at["y"] + y1 * scale)
    page.mouse.down()
    page.mouse.move(at["x"] + x2 * scale, at["y"] + y2 * scale, steps=4)
    page.mouse.up()


def click(page, x: float, y: float) -> None:
    at = page.locator("#picture").bounding_box()
    page.mouse.click(at["x"] + x * at["width"] / WIDTH, at["y"] + y * at["height"] / HEIGHT)


def wait_saved(page, number: int) -> None:
    expect(page.locator("#count")).to_contain_text(f", {number} samples")


@pytest.mark.browser
def test_a_person_marks_three_pictures(page, folder):
    drag(page, 280, 70, 320, 90)
    page.keyboard.type("Click Search")  # the field has the focus
    page.keyboard.press("Control+Enter")
    wait_saved(page, 1)
    expect(page.locator("#name")).to_have_text("shots/b.png")
    click(page, 300.5, 80.5)
    page.keyboard.press("Escape")
    page.keyboard.press("5")
    page.keyboard.press("i")
    page.keyboard.type("Open it")
    page.get_by_label("Reasoning").fill("It is a file.")
    page.get_by_role("button", name="Save", exact=True).click()
    wait_saved(page, 2)
    page.keyboard.press("Escape")
    page.keyboard.press("n")
    page.keyboard.press("2")
    page.get_by_label("Text").fill("cats")
    page.get_by_label("Instruction").fill("Search for cats")
    page.keyboard.press("Enter")
    wait_saved(page, 3)
    first, second, third = read_samples(folder / "out")
    assert first.actions == (Action.click(300, 80),) and first.box_px == (280, 70, 320, 90)
    assert second.actions == (Action.click(300, 80, "double_click"),) and second.thought == "It is a file."
    assert third.actions == (Action("type", text="cats"),) and third.instruction == "Search for cats"
    assert "3 done" in page.locator("#count").text_content()


@pytest.mark.browser
def test_a_drag_a_scroll_and_keys_are_marked(page, folder):
    page.get_by_role("button", name="left_click_drag").click()
    click(page, 10.5, 20.5)
    page.keyboard.press("Escape")
    click(page, 30.5, 40.5)
    page.get_by_label("Instruction").fill("Move it")
    page.keyboard.press("Enter")
    wait_saved(page, 1)
    page.get_by_role("button", name="4 scroll").click()
    page.get_by_label("Pixels").fill("-300")
    page.get_by_label("Instruction").fill("Go down")
    page.keyboard.press("Enter")
    wait_saved(page, 2)
    page.get_by_role("button", name="3 key").click()
    page.get_by_label("Keys").fill("ctrl++")
    page.get_by_label("Instruction").fill("Zoom in")
    page.keyboard.press("Enter")
    wait_saved(page, 3)
    drag_, scroll, key = read_samples(folder / "out")
    assert drag_.actions == (Action("mouse_move", x_px=10, y_px=20), Action("left_click_drag", x_px=30, y_px=40))
    assert scroll.actions == (Action("scroll", scroll_px=-300),)
    assert key.actions == (Action("key", keys=("ctrl", "+")),)


@pytest.mark.browser
def test_a_sample_is_chosen_changed_and_deleted(page, folder):
    drag(page, 280, 70, 320, 90)
    page.keyboard.type("One")
    page.keyboard.press("Enter")
    wait_saved(page, 1)
    page.get_by_role("button", name="One — click").click()
    assert page.get_by_label("Instruction").input_value() == "One"
    page.locator("#name").click()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowUp")
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_contain_text("saved")
    (record,) = saved(folder)
    assert record["action"] == {"action": "click", "x": 301, "y": 70}
    page.get_by_role("button", name="One — click").click()
    page.locator("#name").click()
    page.keyboard.press("Delete")
    wait_saved(page, 0)
    assert saved(folder) == []


@pytest.mark.browser
def test_mistakes_are_told_on_the_page(page, folder):
    page.get_by_label("Instruction").fill("x")
    page.keyboard.press("Enter")
    assert "mark the target" in page.get_by_role("status").text_content()
    click(page, 5.5, 5.5)
    page.get_by_label("Instruction").fill("</think>")
    page.get_by_label("Reasoning").fill("<|im_end|>")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_role("status")).to_contain_text("control token")
    assert page.get_by_label("Instruction").input_value() == "</think>"  # it comes back, to be corrected
    assert saved(folder) == []


@pytest.mark.browser
def test_names_from_files_are_text_and_the_page_goes_on_at_the_first_to_do(browser, folder):
    screenshot("red").save(folder / "shots" / "<img src=x onerror=document.title=1>.png")
    with running(folder) as server:
        ask(server, "skip", {"key": keys(server)[0], "is_skipped": True})
        context = chromium.open_context(browser, width=1100, height=600, origin=server.address.rsplit("/", 2)[0])
        opened = context.new_page()
        opened.goto(server.address)
        expect(opened.locator("#name")).to_have_text("shots/a.png")
        assert "1/4" in opened.title()
        context.close()
