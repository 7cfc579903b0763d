"""Screens with actions: both published forms, and each fault with its place."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont
from source_rows import read_rows

from qwenvl_agent.computer import Action, build_tool
from qwenvl_agent.computer.context import SYSTEM_PROMPT
from qwenvl_agent.config import DataConfig, PromptConfig, SourceConfig
from qwenvl_agent.data.dataset import build_rows
from qwenvl_agent.data.pictures import KnownPictures, see
from qwenvl_agent.data.readers.computer import Rejected, Sample, SampleWriter, read_samples, summary

WIDTH, HEIGHT = 400, 200
SEARCH = {
    "instruction": "在浏览器中搜索'天气预报'",
    "initial_screenshot": "a.png",
    "next_action": {"action": "click", "x": 300, "y": 80, "reasoning": "点击搜索框"},
}
KITTEN = {
    "instruction": "下载小猫图片",
    "screenshot": "a.png",
    "action": {"type": "click", "x": 300, "y": 40, "target": "cat_image"},
}


def screenshot(colour: str = "white", size=(WIDTH, HEIGHT), button=(300, 80)) -> Image.Image:
    image = Image.new("RGB", size, colour)
    x, y = button
    ImageDraw.Draw(image).rectangle([x - 20, y - 10, x + 20, y + 10], fill="navy")
    return image


@pytest.fixture
def folder(tmp_path):
    screenshot().save(tmp_path / "a.png")
    screenshot("beige").save(tmp_path / "b.jpg")
    return tmp_path


@pytest.fixture
def read(folder):
    """Write records to a file of that name; return what the reader makes of it."""

    def read(*records, name: str = "dataset.jsonl"):
        lines = [r if isinstance(r, bytes) else json.dumps(r, ensure_ascii=False).encode() for r in records]
        (folder / name).write_bytes(b"\n".join(lines))
        return list(read_samples(folder / name))

    return read


def test_both_forms_become_clicks_in_pixels(read):
    search, kitten = read(SEARCH, KITTEN)
    assert search.actions == (Action.click(300, 80),) and search.thought == "点击搜索框" and search.notes == ()
    assert kitten.actions == (Action.click(300, 40),)
    assert kitten.thought == "The target is cat_image." and kitten.notes == ("thought_from_target",)
    assert search.turn.tool_calls[0].arguments == {"action": "left_click", "coordinate": [750, 400]}
    assert (search.instruction, search.picture.width, search.picture.height) == ("在浏览器中搜索'天气预报'", 400, 200)


def test_a_row_is_what_the_agent_is_asked(read, folder):
    read(SEARCH, {**KITTEN, "history": ["open the page"], "actions": ["left_click"], "id": "k"})
    search, kitten = read_rows(folder, "computer")
    assert search.system_prompt == SYSTEM_PROMPT and search.tools == (build_tool(),)
    assert search.step.observation.text == "Task: 在浏览器中搜索'天气预报'"
    assert search.step.observation.pictures[0].path == str(folder / "a.png")
    assert kitten.step.observation.text == "Task: 下载小猫图片\nSteps so far:\n1. open the page"
    assert kitten.tools == (build_tool(["left_click"]),)
    assert (search.split_key, search.turn_index) == (kitten.split_key, 0) and search.episode_id != kitten.episode_id


def test_a_json_list_is_read_with_the_lines_of_its_items(read, folder):
    text = json.dumps([SEARCH, {**KITTEN, "screenshot": "gone.png"}], indent=2).encode()
    sample, reject = read(text, name="samples.json")
    assert sample.source == f"{folder}/samples.json:2" and reject.source == f"{folder}/samples.json:12"
    (single,) = read(json.dumps(KITTEN, indent=2).encode(), name="one.json")
    assert single.source.endswith("one.json:1")
    first, broken = read(b'[{"a": 1},\n {"b" 2}, {"c": 3}]', name="broken.json")
    assert broken.source.endswith(":2") and "the rest of the file is not read" in broken.message


def test_dialects_are_read_and_counted(read):
    (sample,) = read({**KITTEN, "action": "pyautogui.click(300, 80)"})
    assert sample.actions == (Action.click(300, 80),)
    assert sample.notes == ("python_call", "renamed_action", "xy_keys")
    (two,) = read({**KITTEN, "action": [{"action": "click", "x": 1, "y": 2}, {"action": "type", "text": "cats"}]})
    assert [a.kind for a in two.actions] == ["left_click", "type"] and two.notes == ()


def with_action(**fields):
    return {**KITTEN, "action": {**KITTEN["action"], **fields}}


FAULTS = [
    (b"{", "not_json", "not JSON"),
    (b'{"a": "\xff"}', "not_json", "byte 7 is not UTF-8"),
    (b"[" * 100_000, "not_json", "nested too deep"),
    ([1], "bad_record", "a list instead of an object"),
    ({**KITTEN, "instruction": " "}, "no_instruction", "instruction is ' '"),
    ({**KITTEN, "screenshot": None}, "bad_record", "screenshot and initial_screenshot: neither is given"),
    ({**KITTEN, "next_action": {}}, "bad_record", "action and next_action: both are given"),
    ({**KITTEN, "screenshot": 3}, "no_picture", "no file is named"),
    ({**KITTEN, "screenshot": "gone.png"}, "bad_picture", "screenshot 'gone.png' does not exist"),
    ({**KITTEN, "screenshot": "../a.png"}, "bad_picture", "leaves the dataset folder"),
    ({**KITTEN, "screenshot": "dataset.jsonl"}, "bad_picture", "is not a readable picture"),
    ({**KITTEN, "screenshot": "cut.png"}, "bad_picture", "is not a readable picture"),
    ({**KITTEN, "image_size": [200, 400]}, "size_differs", "the picture is 400x200 px, annotated as 200x400"),
    ({**KITTEN, "image_size": "big"}, "bad_size", "not a size"),
    (with_action(type="fly"), "unknown_action", "action is 'fly', which does not exist"),
    (with_action(x=None), "missing_argument", "left_click lacks coordinate"),
    (with_action(x=float("nan")), "bad_argument", "nan is no number"),
    (with_action(x=-3), "outside_screen", "is outside the screen of 400x200 px"),
    (with_action(x=400), "outside_screen", "is outside the screen"),
    (with_action(y=1e30), "bad_argument", "is no number that could be used"),
    ({**KITTEN, "box": [10, 10, 420, 50]}, "box_outside", "leaves the picture of 400x200 px"),
    ({**KITTEN, "box": [-5, 10, 40, 50]}, "box_outside", "leaves the picture"),
    ({**KITTEN, "box": [50, 10, 40, 50]}, "empty_box", "has no inside"),
    ({**KITTEN, "box": [400, 10, 400.5, 50]}, "empty_box", "lies on the picture's edge"),
    ({**KITTEN, "box": [1, 2, float("nan"), 4]}, "bad_box", "not four numbers"),
    ({**KITTEN, "box": [1, 2, 3]}, "bad_box", "not four numbers"),
    ({**KITTEN, "history": "none"}, "bad_record", "history is"),
    ({**KITTEN, "episode_id": "e", "step": -1}, "bad_record", "step is -1"),
    ({**KITTEN, "split": "dev"}, "bad_record", "split is 'dev'"),
    ({**KITTEN, "actions": ["fly"]}, "bad_record", "not actions of the tool"),
    ({**KITTEN, "actions": ["key"]}, "bad_record", "actions lacks left_click"),
    ({**KITTEN, "details": 3}, "bad_record", "details is 3"),
    ({**KITTEN, "reasoning": 5}, "bad_text", "reasoning is '5'"),
]


@pytest.mark.parametrize(("record", "reason", "message"), FAULTS, ids=[f"{r}-{m[:20]}" for _, r, m in FAULTS])
def test_faults_cost_one_record_and_are_told_with_place_and_reason(read, folder, record, reason, message):
    Image.effect_noise((64, 64), 90).save(folder / "cut.png")
    (folder / "cut.png").write_bytes((folder / "cut.png").read_bytes()[:2000])
    first, reject, last = read(SEARCH, record, KITTEN)
    assert isinstance(first, Sample) and isinstance(last, Sample)
    assert isinstance(reject, Rejected) and reject.source == f"{folder}/dataset.jsonl:2"
    assert reject.reason == reason and message in reject.message


def test_a_giant_picture_is_not_decoded(read, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", WIDTH * HEIGHT - 1)
    (reject,) = read(KITTEN)
    assert reject.reason == "bad_picture" and "has more than 79999 pixels" in reject.message


def test_boxes_may_round_over_the_edge_by_one_pixel(read):
    (sample,) = read({**KITTEN, "box": [-0.5, 10, 400.9, 50]})
    assert sample.box_px == (0, 10, 400, 50) and "box_cut" in sample.notes


def test_copies_are_found_by_their_pixels(read, folder):
    screenshot().save(folder / "copy.bmp")
    first, twice, other_file, elsewhere = read(
        KITTEN, KITTEN, {**KITTEN, "screenshot": "copy.bmp"}, {**with_action(x=7), "screenshot": "copy.bmp"}
    )
    for reject in (twice, other_file):
        assert reject.reason == "duplicate" and f"as {first.source}" in reject.message
    assert elsewhere.split_key == first.split_key and "picture_under_two_names" in elsewhere.notes


def test_words_that_must_not_be_taught_are_rejected(read, folder):
    read({**KITTEN, "reasoning": "</think>"}, {**KITTEN, "action": {"action": "type", "text": "<|im_end|>"}}, SEARCH)
    thought, text, row = read_rows(folder, "computer")
    assert thought.reason == text.reason == "bad_text" and "control token '<|im_end|>'" in text.message
    assert row.source.endswith(":3")


def test_a_test_sample_is_never_trained_on(read, folder):
    read({**KITTEN, "split": "test"}, SEARCH)
    reject, row = read_rows(folder, "computer")
    assert reject.reason == "test" and row.step.turn.tool_calls


def test_what_is_written_is_read_the_same(read, folder, tmp_path_factory):
    originals = read(
        SEARCH,
        {**KITTEN, "box": [280, 30, 320, 50.25], "id": "k", "details": {"kind": "icon"}, "group": "site"},
        {**KITTEN, "screenshot": "b.jpg", "episode_id": "e", "step": 1, "history": ["a"], "actions": ["left_click"]},
        {**KITTEN, "action": [{"action": "mouse_move", "x": 1, "y": 2}, {"action": "left_click_drag", "x": 9, "y": 9}]},
        {**KITTEN, "action": {"action": "scroll", "pixels": -300}, "split": "test", "licence": "MIT"},
    )
    out = tmp_path_factory.mktemp("out")
    with SampleWriter(out) as writer:
        for sample in originals:
            writer.write(sample)
    again = list(read_samples(out))

    def content(sample: Sample):
        names = (
            "actions",
            "thought",
            "box_px",
            "id",
            "episode_id",
            "step",
            "past",
            "group",
            "kinds",
            "split",
            "details",
        )
        return [getattr(sample, name) for name in names] + [sample.seen]

    assert [content(s) for s in again] == [content(s) for s in originals]
    assert sorted(p.suffix for p in (out / "images").iterdir()) == [".jpg", ".png"]


def test_training_reads_them_and_splits_by_screenshot(folder):
    """Twenty elements on each of ten screenshots: no screenshot stands on both sides."""
    lines = []
    for page in range(10):
        screenshot(button=(100 + 10 * page, 80)).save(folder / f"{page}.png")
        lines += [
            {"instruction": f"{x}", "screenshot": f"{page}.png", "action": {"type": "click", "x": x, "y": 5}}
            for x in range(20)
        ]
    (folder / "dataset.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\nbroken")
    data = DataConfig(
        sources=(SourceConfig(path=str(folder), kind="computer"),), eval_fraction=0.3, cache_dir=str(folder / "cache")
    )
    rows = build_rows(data, PromptConfig())
    pages = [{r.request.observation.pictures[0].path for r in side} for side in (rows.train, rows.held_out)]
    assert len(rows.train) + len(rows.held_out) == 200 and not pages[0] & pages[1] and all(pages)
    assert "rejected 1 x not JSON" in rows.summary()
    assert rows.train[0].turn.tool_calls[0].name == "computer_use"


def test_steps_of_an_episode_are_linked(folder):
    steps = [
        {**KITTEN, "action": {"type": "click", "x": x, "y": 5}, "episode_id": "e", "step": x, "screenshot": name}
        for x, name in enumerate(["a.png", "b.jpg"])
    ]
    (folder / "dataset.jsonl").write_text("\n".join(map(json.dumps, steps)))
    source = SourceConfig(path=str(folder), kind="computer")
    data = DataConfig(sources=(source,), eval_fraction=0, cache_dir=str(folder / "cache"))
    rows = build_rows(data, PromptConfig(history_steps=2))
    assert [len(row.request.history) for row in rows.train] == [0, 1]


def page(words: list[str]) -> Image.Image:
    image = Image.new("RGB", (1280, 720), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(16)
    for i, word in enumerate(words):
        draw.text((40 + i % 6 * 200, 30 + i // 6 * 40), word, fill="black", font=font)
    return image


def test_scaled_and_compressed_copies_are_known_and_one_other_word_is_not(folder):
    words = ["save", "open file", "delete", "invoice 2031", "kitten photo", "Maria Lopez", "cancel"] * 10
    original, known = page(words), KnownPictures()
    known.add(original, "original")
    for size, quality in (((1280, 720), 50), ((640, 360), 75), ((427, 240), 90), ((1000, 563), 75)):
        original.resize(size).save(folder / "copy.jpg", quality=quality)
        assert known.find(Image.open(folder / "copy.jpg")) == "original"
    assert known.find(page([*words[:30], "settings", *words[31:]])) == ""


def test_hashes_tell_pixels_and_sizes_apart():
    assert see(screenshot()) == see(screenshot()) != see(screenshot(button=(301, 80)))
    assert see(Image.new("RGB", (2, 3))).pixels != see(Image.new("RGB", (3, 2))).pixels
    assert KnownPictures().find(screenshot()) == ""


def test_the_summary_counts_everything():
    text = summary(3, Counter(box_outside=2), Counter(box_cut=1))
    assert text == "3 samples, 2 rejected\n  rejected 2 x box_outside\n  box_cut: 1"


# Wrong types, at each field

NOTHING = (None, "")
EMPTY = (None, "", [], {})
TAKEN = {
    "instruction": lambda v: isinstance(v, str) and v.strip(),
    "screenshot": lambda v: False,
    "action": lambda v: False,
    "reasoning": lambda v: v is None or isinstance(v, str),
    "image_size": lambda v: v is None,
    "box": lambda v: v is None,
    "id": lambda v: v is None or isinstance(v, str) or type(v) is int,
    "episode_id": lambda v: v is None or isinstance(v, str) or type(v) is int,
    "group": lambda v: v is None or isinstance(v, str) or type(v) is int,
    "origin": lambda v: v is None or isinstance(v, str) or type(v) is int,
    "licence": lambda v: v is None or isinstance(v, str) or type(v) is int,
    "step": lambda v: v is None or type(v) is int and 0 <= v <= 10**9,
    "history": lambda v: v in NOTHING or isinstance(v, list) and all(isinstance(line, str) for line in v),
    "actions": lambda v: v in NOTHING or v == [],
    "split": lambda v: v is None,
    "details": lambda v: v in EMPTY or isinstance(v, dict),
}
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text("aZ0 <>[]{}'\"", max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "x", "bytes"]), inner, max_size=2)
    ),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wrong")
    screenshot().save(folder / "a.png")
    return folder


@given(field=st.sampled_from(sorted(TAKEN)), value=JUNK)
def test_a_wrong_type_in_any_field_costs_its_record_alone_with_place_and_message(pictures, field, value):
    record = KITTEN | {field: value}
    (pictures / "dataset.jsonl").write_text("\n".join(map(json.dumps, (record, SEARCH, record | {field: value}))))
    items = list(read_samples(pictures))
    assert len(items) == 3 and isinstance(items[1], Sample)
    if TAKEN[field](value):
        assert isinstance(items[0], Sample) and items[2].reason == "duplicate"
    else:
        assert [type(items[0]), items[0].source] == [Rejected, f"{pictures}/dataset.jsonl:1"]
        assert len(items[0].message) > 20 and "nothing here reads" not in items[0].message


@pytest.mark.parametrize("boxes", [3, [], [3], [None], [[1, 2, 3]], [[5, 5, 1, 9]], [[1, 2, True, 4]], {"a": 1}, [[]]])
def test_hit_boxes_of_another_form_are_rejected_where_the_file_is_read(read, boxes):
    (reject,) = read({**KITTEN, "details": {"hit_boxes": boxes}})
    assert reject.reason == "bad_hit_boxes" and "details.hit_boxes" in reject.message
