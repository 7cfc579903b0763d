"""Generated pages without a browser: what is drawn, how colours and words are told, and which instructions are unique."""

import json
import random
import re
from collections import Counter
from urllib.parse import unquote

import pytest

from qwenvl_agent.worlds.browser import chromium, instructions, pages, samples, words
from qwenvl_agent.worlds.browser.elements import Element, Group, Layout, parse_rgb, pixel_box
from qwenvl_agent.worlds.browser.instructions import PHRASES, WAYS, Scene, Speaker, requests, write_instructions
from qwenvl_agent.worlds.browser.pages import BLOCKS, FAMILIES, OVERLAYS, draw_page


def element(box=(0, 0, 40, 20), **values) -> Element:
    """A button of 40x20 px at the top left, but for what is given; `shown` is its text."""
    defaults = dict.fromkeys(
        ("name", "text", "value", "placeholder", "label", "picture", "picture_text", "backdrop", "icon", "intent"), ""
    )
    defaults |= {"item": "", "item_picture": "", "is_label_seen": False, "background": None, "state": ()}
    centre = ((box[0] + box[2]) // 2, (box[1] + box[3]) // 2)
    defaults |= {"role": "button", "box": box, "point": centre, "visible": 1.0, "hit_boxes": (box,), "group": -1}
    return Element(**defaults | values)


def layout(*elements: Element, groups=(), hidden=0) -> Layout:
    return Layout(elements, tuple(groups), hidden, 400, 300, 1.0)


def said(target: Element, kind: str, around: Layout, language="en") -> list[str]:
    """Every instruction of a kind, in its first wording."""
    return requests(Scene(around), target, kind, FirstWording(language))


class FirstWording(Speaker):
    def __init__(self, language: str):
        super().__init__(language, random.Random(0))
        self.rng.choice = lambda options: options[0]


# Pages.


@pytest.mark.parametrize("family", FAMILIES)
def test_a_seed_is_a_page(family):
    first, again = draw_page(family, 7), draw_page(family, 7)
    assert first == again
    assert len({draw_page(family, seed).html for seed in range(20)}) == 20


@pytest.mark.parametrize("family", FAMILIES)
def test_pages_need_no_network(family):
    for seed in range(30):
        html = unquote(draw_page(family, seed).html).replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|//\w|file:|@import|url\(", html)


def test_every_block_is_drawn_by_some_family():
    drawn = Counter()
    for family in FAMILIES.values():
        drawn.update((*family.blocks, *family.frame, *family.overlays))
    assert set(drawn) == set(BLOCKS)
    assert set(OVERLAYS) < set(BLOCKS)


def test_screens_are_whole_pixels():
    for family in FAMILIES.values():
        for width, height, scale in family.screens:
            assert width * scale % 1 == height * scale % 1 == 0, (width, height, scale)


def test_boards_stand_on_the_grid_apart_from_each_other():
    for seed in range(100):
        family = FAMILIES["simple"]
        width, height, _ = family.screens[0]
        draw = pages.Draw(random.Random(seed), "en", family, width, height)
        places = [tuple(place.values()) for place in pages.draw_places(draw, 4)]
        assert all(value % family.grid_px == 0 for place in places for value in place)
        assert all(x + w <= width and y + h <= height for x, y, w, h in places)
        for i, (x, y, w, h) in enumerate(places):
            for a, b, c, d in places[:i]:
                assert x > a + c or a > x + w or y > b + d or b > y + h


def test_a_page_in_one_language_holds_no_other():
    for seed in range(20):
        html = draw_page("desktop", seed, ("en",)).html
        assert not re.search("[가-힣一-鿿]", unquote(html))


@pytest.mark.parametrize(("family", "languages", "named"), [("watch", ("en",), "watch"), ("mobile", ("fr",), "fr")])
def test_what_does_not_exist_is_named(family, languages, named):
    with pytest.raises(ValueError, match=f"'{named}' is unknown: no page can be drawn; choose one of"):
        draw_page(family, 0, languages)


def test_words_exist_in_every_language():
    def leaves(value):
        children = value.values() if isinstance(value, dict) else value
        for child in children:
            yield from leaves(child) if not isinstance(child, str) else (child,)

    table = words.words()
    assert all(word and all(word.split("|")) for word in leaves(table))
    entries = [entry for name in ("actions", "fields") for value in table[name].values() for entry in value[:2]]
    entries += [entry for name in ("roles", "colours", "groups", "phrases") for entry in table[name].values()]
    entries += [entry for name in ("nav", "options", "headlines", "people", "places") for entry in table[name]]
    assert {len(entry) for entry in entries} == {len(words.LANGUAGES)}
    assert {len(entry) for entry in table["pictures"].values()} == {len(words.LANGUAGES) + 2}
    assert set(table["colours"]) == set(pages.PALETTES["muted"]) == set(pages.PALETTES["vivid"])
    assert json.loads(json.dumps(table)) == table


# Pixels and colours.


def test_boxes_are_whole_pixels_inside_the_picture():
    assert pixel_box([10.4, 10.6, 20.4, 20.6], 100, 50) == (10, 11, 20, 21)
    assert pixel_box([-3, 49.9, 120, 60], 100, 50) == (0, 49, 100, 50)
    assert pixel_box([30.2, 5, 30.4, 9], 100, 50) == (30, 5, 31, 9)


def test_colours_have_the_names_of_the_palettes():
    assert parse_rgb("rgb(21, 101, 192)") == (21, 101, 192)
    assert parse_rgb("rgba(0, 0, 0, 0)") is None
    assert instructions.colour_of(None) == ""
    assert instructions.colour_of((128, 128, 128)) == ""
    for palette in pages.PALETTES.values():
        for name, value in palette.items():
            assert instructions.colour_of(tuple(bytes.fromhex(value[1:]))) == name


def test_korean_particles_follow_the_last_letter():
    assert instructions.with_particle("저장 버튼", "를") == "저장 버튼을"
    assert instructions.with_particle("“링크”", "를") == "“링크”를"
    assert instructions.with_particle("“Save”", "는") == "“Save”은(는)"


# Instructions.


def test_a_name_is_used_only_if_it_is_the_only_one():
    save, other = element(text="Save"), element((100, 0, 140, 20), text="Back")
    assert said(save, "name", layout(save, other)) == ["Click “Save”.", "Click the “Save” button."]
    assert said(save, "name", layout(save, element(text="SAVE"), other)) == []
    assert said(save, "name", layout(save, element(text="Save", role="link"))) == ["Click the “Save” button."]
    assert said(element(name="Save"), "name", layout(element(name="Save"))) == []  # not written anywhere


def test_a_name_that_is_cut_off_is_not_used():
    cut = element(text="Save", visible=0.5)
    assert said(cut, "name", layout(cut)) == []


def test_what_is_in_a_row_is_meant_by_its_title():
    groups = [
        Group(role="row", title=name, is_title_seen=seen, parent=-1) for name, seen in [("Kim", True), ("Lee", False)]
    ]
    first, second = element(text="Delete", group=0), element((0, 50, 40, 70), text="Delete", group=1)
    rows = layout(first, second, groups=groups)
    assert said(first, "name", rows) == []
    assert said(first, "group", rows) == ["Click the “Delete” button that belongs to “Kim”."]
    assert said(first, "group", rows, "zh") == ["点击“Kim”的“Delete”按钮。"]
    assert said(second, "group", rows) == []  # the title cannot be seen
    twice = layout(first, second, groups=[groups[0], groups[0]])
    assert said(first, "group", twice) == []


def test_pictures_are_told_apart_by_their_background():
    cat = element(role="image", picture="kitten", picture_text="kitten", backdrop="red")
    dog = element(role="image", picture="puppy", picture_text="puppy", backdrop="red")
    blue = element(role="image", picture="kitten", picture_text="kitten", backdrop="blue")
    assert said(cat, "picture", layout(cat, dog), "zh") == ["点击小猫的图片。"]
    assert said(cat, "picture", layout(cat, dog, blue)) == ["Click the picture of the kitten on the red background."]
    assert said(cat, "picture", layout(cat, cat)) == []


def test_a_purpose_that_two_elements_serve_is_not_stated():
    download = element(intent="download", item_picture="kitten")
    kitten = element(role="image", picture="kitten")
    close, cancel = element(intent="close"), element(intent="dismiss")
    assert said(download, "intent", layout(download, kitten), "zh") == ["下载小猫图片。"]
    assert said(download, "intent", layout(download)) == []  # no kitten in sight
    assert said(close, "intent", layout(close, download)) != []
    assert said(close, "intent", layout(close, cancel)) == []
    assert said(element(intent="buy"), "intent", layout(element(intent="buy"))) == []  # buy what?


def test_switches_are_turned_to_what_they_are_not():
    on, off = element(role="switch", text="Sound", state=("checked",)), element(role="switch", text="Offline")
    assert said(on, "switch", layout(on, off)) == ["Turn off “Sound”."]
    assert said(off, "switch", layout(on, off), "ko") == ["“Offline” 항목을 켜 주세요."]


def test_places_hold_only_with_clear_margins():
    corner, middle = element((5, 5, 45, 25)), element((180, 140, 220, 160))
    near = element((120, 5, 160, 25))  # its middle is in the top middle, within the margin of the top left
    assert said(corner, "place", layout(corner, middle)) == ["Click the button at the top left of the screen."]
    assert said(corner, "place", layout(corner, middle, near)) == []
    assert said(corner, "place", layout(corner, middle, hidden=1)) == []  # a dimmed one might be meant
    assert said(corner, "extreme", layout(corner, middle)) == [
        "Click the leftmost button.",
        "Click the topmost button.",
    ]
    assert said(corner, "extreme", layout(corner, middle, near)) == ["Click the leftmost button."]


def test_counting_needs_a_line_that_is_wholly_in_view():
    bar = [Group(role="navigation", title="", is_title_seen=False, parent=-1)]
    links = [element((x, 0, x + 40, 20), role="link", text=str(x), group=0) for x in (0, 50, 100)]
    assert said(links[1], "order", layout(*links, groups=bar)) == ["Click the second link in the navigation bar."]
    assert said(links[2], "order", layout(*links, groups=bar), "ko") == [
        "내비게이션 바의 세 번째 링크를 클릭하세요.",
        "내비게이션 바의 마지막 링크를 클릭하세요.",
    ]
    assert said(links[1], "order", layout(*links, groups=bar * 2)) == []
    assert said(links[1], "order", layout(*links[:2], groups=bar)) == []


def test_neighbours_are_the_nearest_by_far():
    field = element((100, 100, 200, 120), role="textbox", label="City", is_label_seen=True)
    right, far = element((210, 100, 250, 120), text="A"), element((300, 100, 340, 120), text="A")
    close = element((256, 100, 290, 120), text="A")
    assert said(right, "neighbour", layout(field, right, far)) == ["Click the button to the right of the “City” field."]
    assert said(far, "neighbour", layout(field, right, far)) == []
    assert said(right, "neighbour", layout(field, right, far, close)) != []
    tight = element((216, 110, 250, 130), text="A")
    assert said(right, "neighbour", layout(field, right, tight)) == []


def random_layout(rng: random.Random) -> Layout:
    """Elements that are easily confused; every third layout is a bar."""
    is_bar = rng.random() < 0.3
    groups = [
        Group(
            role=rng.choice(["row", "navigation", "form"]),
            title=rng.choice(["A", "B", ""]),
            is_title_seen=True,
            parent=-1,
        )
        for _ in range(3)
    ]
    found = []
    for i in range(rng.randint(2, 12)):
        x, y = (30 * i, 0) if is_bar else (20 * rng.randrange(18), 20 * rng.randrange(14))
        is_picture = rng.random() < 0.3
        found.append(
            element(
                (x, y, x + 20 * (1 if is_bar else rng.randint(1, 3)), y + 20),
                role="image"
                if is_picture
                else rng.choice(["button", "link", "textbox", "checkbox"][: 1 if is_bar else 4]),
                text="" if is_picture else rng.choice(["Save", "Back", "save", ""]),
                picture=rng.choice(["kitten", "puppy"]) if is_picture else "",
                picture_text="picture" if is_picture else "",
                backdrop=rng.choice(["red", "blue"]),
                icon=rng.choice(["", "", "menu"]),
                intent=rng.choice(["save", "submit", "menu", "field city"]),
                background=rng.choice([None, (255, 0, 0), (0, 0, 255)]),
                group=rng.randint(-1, 2),
            )
        )
    return layout(*found, groups=groups, hidden=rng.choice([0, 0, 1]))


def test_no_instruction_means_two_elements():
    total = Counter()
    for seed in range(300):
        scene = Scene(random_layout(random.Random(seed)))
        for kind in WAYS:
            meant = {}
            for target in scene.elements:
                for text in requests(scene, target, kind, FirstWording("en")):
                    assert meant.setdefault(text, target) is target, (seed, text)
            total[kind] += len(meant)
    assert all(total[kind] > 10 for kind in WAYS), total


def test_instructions_are_written_for_different_elements_first():
    found = [element((60 * i, 0, 60 * i + 40, 20), text=f"B{i}") for i in range(5)]
    written = write_instructions(layout(*found), ["en", "ko"], 5, random.Random(0))
    assert len({instruction.element for instruction in written}) == 5
    assert {instruction.language for instruction in written} <= {"en", "ko"}
    again = write_instructions(layout(*found), ["en", "ko"], 5, random.Random(0))
    assert written == again
    assert write_instructions(layout(element(state=("disabled",), text="A")), ["en"], 5, random.Random(0)) == []


def test_reasoning_names_what_is_clicked_and_where():
    save = element((300, 250, 380, 280), text="Save")
    scene = Scene(layout(save))
    assert instructions.reason(scene, save, FirstWording("en")) == (
        "The “Save” button is at the bottom right. I click it."
    )
    assert instructions.reason(scene, save, FirstWording("ko")) == "“Save” 버튼은 오른쪽 아래에 있다. 클릭한다."


def test_phrases_are_a_part_of_all_ways():
    assert set(PHRASES) < set(WAYS) and set(instructions.MEANS) == set(WAYS)
    assert set(instructions.MEANS.values()) == {"name", "description", "position", "relation"}


def test_reading_order_is_line_by_line():
    a, b, c = element((200, 0, 240, 20)), element((0, 4, 40, 24)), element((0, 60, 40, 80))
    assert samples.in_reading_order([c, a, b]) == [b, a, c]


def test_targets_are_named_as_in_the_published_form():
    assert samples.target_name(element(role="image", picture="kitten")) == "kitten_image"
    assert samples.target_name(element(role="textbox", intent="field email")) == "email_textbox"


# The browser, as far as it can be told without one.


@pytest.mark.parametrize(
    ("url", "is_local"),
    [
        ("http://127.0.0.1:8000/page", True),
        ("http://localhost/", True),
        ("http://[::1]:99/", True),
        ("ws://127.0.0.1/live", False),
        ("data:text/html,x", False),
        ("about:blank", False),
        ("http://127.0.0.1.example.org/", False),
        ("http://localhost@example.org/", False),
        ("http://192.168.1.1/", False),
        ("https://example.org/", False),
        ("file:///etc/passwd", False),
        ("chrome://settings", False),
        ("http://[broken/", False),
    ],
)
def test_only_pages_of_this_machine_are_local(url, is_local):
    assert chromium.is_local(url) is is_local


def test_a_wrong_executable_is_named(monkeypatch):
    monkeypatch.setenv("QWENVL_CHROMIUM", "/no/such/chromium")
    with pytest.raises(ValueError, match="QWENVL_CHROMIUM names '/no/such/chromium', which cannot be run"):
        chromium.find_chromium()
