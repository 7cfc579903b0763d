"""Screens with actions: both published forms, every published data set's shape, and each fault with its place."""

import json
from collections import Counter

import pytest
from PIL import Image, ImageDraw, ImageFont
from source_rows import read_rows

from qwenvl_agent.computer import Action, build_tool
from qwenvl_agent.computer.context import SYSTEM_PROMPT
from qwenvl_agent.config import DataConfig, PromptConfig, SourceConfig
from qwenvl_agent.curation.convert import LAYOUTS, convert, known_pictures
from qwenvl_agent.data.dataset import build_rows
from qwenvl_agent.data.pictures import KnownPictures, see
from qwenvl_agent.data.readers.computer import Rejected, Sample, SampleWriter, read_samples, summary
from scripts import convert_data

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


# Data sets. Every box below is 280, 70, 320, 90 px of the 400 x 200 picture, written in the set's own way.

BOX = (280, 70, 320, 90)
CLICK = (Action.click(300, 80),)
FRACTIONS = [0.7, 0.35, 0.8, 0.45]
SPOT = {"img_filename": "a.png", "instruction": "open it", "data_type": "icon", "data_source": "windows"}
SIZED = {
    "img_filename": "a.png",
    "bbox": list(BOX),
    "instruction": "open it",
    "img_size": [WIDTH, HEIGHT],
    "ui_type": "icon",
}
MIND2WEB_ACTION = {
    "action_uid": "u1",
    "operation": {"op": "CLICK", "original_op": "CLICK", "value": ""},
    "bbox": {"x": 280, "y": 70, "width": 40, "height": 20},
}
CANDIDATE = {"attributes": json.dumps({"bounding_box_rect": "280,70,40,20"}), "tag": "button"}
UNDRAWN = {"attributes": json.dumps({"bounding_box_rect": "-1,-1,-1,-1"})}
ROWS = {
    "screenspot": {**SPOT, "bbox": [280, 70, 40, 20]},
    "screenspot_v2": {**SPOT, "bbox": [280, 70, 40, 20]},
    "screenspot_hf": {"file_name": "a.png", "bbox": FRACTIONS, "instruction": "open it", "data_type": "text"},
    "screenspot_v2_sized": {**SIZED, "platform": "web", "group": "Web"},
    "screenspot_pro": {**SIZED, "id": "word_1", "application": "word", "platform": "windows", "instruction_cn": "打开"},
    "showui": {
        "img_url": "a.png",
        "img_size": [WIDTH, HEIGHT],
        "element": [{"instruction": "open it", "bbox": FRACTIONS, "point": [0.75, 0.4], "data_type": "icon"}],
    },
    "showui_desktop": {
        **{
            "image_url": "a.png",
            "instruction": "open it",
            "bbox": FRACTIONS,
            "point": [0.75, 0.4],
            "type": "appearance",
        }
    },
    "os_atlas": {
        "img_filename": "a.png",
        "url": "https://a.example/",
        "elements": [{"instruction": "open it", "bbox": FRACTIONS, "data_type": "text"}],
    },
    "os_atlas_sft": {
        "image": "a.png",
        "conversations": [
            {"from": "human", "value": "<image>\nWhere is it?"},
            {"from": "gpt", "value": "<ref>open it</ref><box>[[700,350,800,450]]</box>"},
        ],
    },
    "wave_ui": {
        "image": "a.png",
        "instruction": "open it",
        "bbox": list(BOX),
        "resolution": [WIDTH, HEIGHT],
        "type": "icon",
    },
    "mind2web": {
        **{"annotation_id": "m", "confirmed_task": "open it", "website": "shop", "domain": "d", "subdomain": "s"},
        "action_reprs": ["[button] it -> CLICK"],
        "actions": [MIND2WEB_ACTION],
    },
    "multimodal_mind2web": {
        **{"screenshot": "a.png", "confirmed_task": "open it", "website": "shop", "action_uid": "u1"},
        "operation": json.dumps({"op": "CLICK", "value": ""}),
        "pos_candidates": [json.dumps(UNDRAWN), json.dumps(CANDIDATE)],
        **{"action_reprs": ["[link] shop -> CLICK", "[button] it -> CLICK"], "target_action_index": "1"},
    },
    "agentnet": {
        "task_id": "t",
        "instruction": "open it",
        "traj": [
            {
                "index": 0,
                "image": "a.png",
                "value": {"code": "pyautogui.click(x=0.75, y=0.4)", "thought": "There.", "action": "Click it."},
            },
            {"index": 1, "image": "b.jpg", "value": {"code": "computer.terminate(status='success')"}},
        ],
    },
    "agentnet_bench": {
        "task_id": "t",
        "high_level_task_description": "open it",
        "steps": [
            {
                "image": "a.png",
                "inner_monologue": {"thought": "There.", "low_level_instruction": "Click it."},
                "ground_truth_actions": [
                    {
                        "type": "click",
                        "params": {"position": {"x": 0.75, "y": 0.4}},
                        "metadata": {"bboxes": [{"rel_bbox": [0.7, 0.35, 0.1, 0.1]}]},
                    }
                ],
            }
        ],
    },
    "aguvis": {
        "image": "a.png",
        "conversations": [
            {"from": "system", "value": "You are a GUI agent.", "recipient": "all"},
            {
                "from": "human",
                "value": "<image>Generate the next move.\n\nInstruction: open it\n\nPrevious actions:\nStep 1: Open the page.",
            },
            {"from": "gpt", "value": "Action: Click it.", "recipient": "all", "end_turn": False},
            {"from": "gpt", "value": "pyautogui.click(x=0.75, y=0.4)", "recipient": "os", "end_turn": True},
        ],
    },
}
WITHOUT_BOX = {"agentnet", "aguvis"}


def test_every_layout_is_tested():
    assert set(ROWS) == set(LAYOUTS)


@pytest.fixture
def converted(folder):
    """Write rows to a file (a .json list if `is_list`) and convert them."""
    screenshot().save(folder / "m-u1.jpg", quality=95)

    def converted(layout: str, *rows, is_list: bool = False, **options):
        path = folder / ("rows.json" if is_list else "rows.jsonl")
        path.write_text(json.dumps(rows) if is_list else "\n".join(map(json.dumps, rows)))
        return list(convert(path, layout, folder, **options))

    return converted


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("is_list", [False, True])
def test_every_data_set_gives_the_same_click(converted, layout, is_list):
    first, *_ = converted(layout, ROWS[layout], is_list=is_list)
    assert isinstance(first, Sample), first
    (action,) = first.actions
    assert action.kind == "left_click" and action.point_px == pytest.approx((300, 80))
    assert first.instruction == "open it" and first.origin == layout
    assert (first.box_px is None) == (layout in WITHOUT_BOX)
    assert first.box_px is None or first.box_px == pytest.approx(BOX)
    is_test = layout.startswith("screenspot") or layout == "agentnet_bench"
    assert first.split == ("test" if is_test else "train")


def test_steps_of_an_episode_know_those_before(converted):
    click, end = converted("agentnet", ROWS["agentnet"])
    assert (click.episode_id, click.step, click.past, click.thought) == ("agentnet/t", 0, (), "There.")
    assert (end.episode_id, end.step, end.past) == ("agentnet/t", 1, ("Click it.",))
    assert end.actions == (Action("terminate", status="success"),)
    row = {
        **ROWS["mind2web"],
        "actions": [MIND2WEB_ACTION, {**MIND2WEB_ACTION, "operation": {"op": "TYPE", "value": "cats"}}],
    }
    click, typed = converted("mind2web", row)
    assert typed.past == ("[button] it -> CLICK",) and [a.kind for a in typed.actions] == ["left_click", "type"]
    assert click.split_key == typed.split_key == "shop" and "click_and_type" in typed.notes
    (step,) = converted("aguvis", ROWS["aguvis"])
    assert step.past == ("Open the page.",) and step.thought == "Click it." and step.turn.thought == "Click it."


def test_flat_rows_know_the_steps_before(converted):
    (step,) = converted("multimodal_mind2web", ROWS["multimodal_mind2web"])
    assert step.past == ("[link] shop -> CLICK",) and step.id == "u1"


def test_all_actions_of_a_step_are_kept(converted):
    position = {"position": {"x": 0.75, "y": 0.4}}
    truth = [
        {"type": "moveTo", "params": position, "metadata": {"bboxes": []}},
        {"type": "click", "params": position},
        {"type": "write", "params": {"content": "cats"}},
        {"type": "press", "params": {"keys": ["enter"]}},
        {"type": "scroll", "params": {"amount": -5}},
    ]
    (sample,) = converted("agentnet_bench", change("agentnet_bench", ground_truth_actions=truth))
    assert [action.kind for action in sample.actions] == ["mouse_move", "left_click", "type", "key", "scroll"]
    assert sample.actions[4].wheel_px == (0, 500) and sample.box_px is None


def test_a_bad_step_leaves_its_place_in_the_history(converted):
    traj = [
        {"image": "a.png", "value": {"code": code}} for code in ("pyautogui.click(x, y)", "pyautogui.click(0.75, 0.4)")
    ]
    reject, sample = converted("agentnet", {**ROWS["agentnet"], "traj": traj})
    assert reject.reason == "not_literal" and reject.source.endswith("rows.jsonl:1[0]")
    assert sample.step == 1 and sample.past == ("(unknown)",)


def change(layout: str, **fields):
    """A layout's row with some of its fields, or of its only element's, changed."""
    row = ROWS[layout]
    items = "actions" if layout == "mind2web" else LAYOUTS[layout].items
    if items and not set(fields) <= set(row):
        return {**row, items: [{**row[items][0], **fields}]}
    return {**row, **fields}


@pytest.mark.parametrize(
    ("layout", "fields", "reason"),
    [
        ("screenspot", {"bbox": list(BOX)}, "box_outside"),  # xyxy where xywh is declared
        ("screenspot_hf", {"bbox": list(BOX)}, "box_outside"),  # pixels where fractions are declared
        ("screenspot_v2_sized", {"bbox": [280, 70, 40, 20]}, "empty_box"),  # xywh where xyxy is declared
        ("screenspot_pro", {"img_size": [3840, 2160]}, "size_differs"),
        ("wave_ui", {"resolution": [1280, 720]}, "size_differs"),
        ("wave_ui", {"instruction": None}, "no_instruction"),
        ("showui", {"bbox": [0.7, 0.35, 1.2, 0.45]}, "box_outside"),
        ("showui", {"element": []}, "no_items"),
        ("showui", {"element": "none"}, "bad_record"),
        ("os_atlas", {"bbox": [0.7, 0.35, float("nan"), 0.45]}, "bad_box"),
        ("os_atlas", {"instruction": ""}, "no_instruction"),
        ("os_atlas_sft", {"conversations": [{"from": "gpt", "value": "no box"}]}, "no_items"),
        ("agentnet", {"image": "gone.png"}, "bad_picture"),
        ("agentnet", {"value": {"code": "pyautogui.click(x=1.75, y=0.4)"}}, "outside_screen"),
        ("agentnet", {"value": None}, "no_action"),
        ("agentnet_bench", {"ground_truth_actions": 3}, "bad_record"),
        ("mind2web", {"operation": None}, "bad_record"),
        ("mind2web", {"bbox": None}, "missing_argument"),
        ("mind2web", {"operation": {"op": "FLY"}}, "unknown_action"),
        ("multimodal_mind2web", {"operation": "{"}, "bad_record"),
        ("multimodal_mind2web", {"pos_candidates": []}, "missing_argument"),
        ("multimodal_mind2web", {"pos_candidates": ["3"]}, "bad_record"),
    ],
)
def test_a_wrong_declaration_shows_as_rejects(converted, layout, fields, reason):
    items = converted(layout, change(layout, **fields), ROWS[layout])
    assert items[0].reason == reason and isinstance(items[-1 if layout != "agentnet" else 1], Sample)
    assert "rows.jsonl:1" in items[0].source


def test_an_element_given_twice_counts_once(converted):
    element = ROWS["os_atlas"]["elements"][0]
    row = {**ROWS["os_atlas"], "elements": [element, {**element, "instruction": "other"}, element]}
    first, other, twice = converted("os_atlas", row)
    assert isinstance(other, Sample) and twice.reason == "duplicate" and f"as {first.source}:" in twice.message
    assert [item.source.rpartition(":")[2] for item in (first, other, twice)] == ["1[0]", "1[1]", "1[2]"]


def test_a_point_beside_its_box_gives_way_to_the_box(converted):
    (sample,) = converted("showui", change("showui", point=[0.1, 0.1]))
    assert sample.actions == CLICK and sample.notes == ("point_beside_box",)


def test_an_unknown_layout_is_an_error(folder):
    with pytest.raises(ValueError, match="layout 'screenspot_v9' is not known.*use one of screenspot,"):
        list(convert(folder / "rows.jsonl", "screenspot_v9", folder))


def test_pictures_inside_a_table_are_saved(folder):
    import pyarrow as pa
    import pyarrow.parquet

    content = (folder / "a.png").read_bytes()
    table = pa.table(
        {
            "image": [{"bytes": content, "path": None}, {"bytes": b"broken", "path": "x"}],
            **{
                "instruction": ["open it"] * 2,
                "bbox": [list(map(float, BOX))] * 2,
                "resolution": [[WIDTH, HEIGHT]] * 2,
            },
        }
    )
    pa.parquet.write_table(table, folder / "rows.parquet")
    sample, reject = convert(folder / "rows.parquet", "wave_ui", folder / "out")
    assert sample.actions == CLICK and sample.picture.open().tobytes() == screenshot().tobytes()
    assert reject.reason == "bad_picture" and reject.source == f"{folder}/rows.parquet:2"


def test_training_pictures_of_the_evaluation_set_are_found_though_changed(converted, folder):
    screenshot(size=(2 * WIDTH, 2 * HEIGHT), button=(600, 160)).save(folder / "a.png")
    screenshot(button=(300, 120)).save(folder / "moved.png")
    rows = ROWS["screenspot_hf"], {**ROWS["screenspot_hf"], "instruction": "again"}
    (folder / "spots.jsonl").write_text("\n".join(map(json.dumps, rows)))
    known = known_pictures(folder / "spots.jsonl", "screenspot_hf", folder)
    assert known.names == ["a.png"]
    Image.open(folder / "a.png").resize((WIDTH, HEIGHT)).save(folder / "small.jpg", quality=75)
    small, moved = (change("os_atlas", img_filename=name) for name in ("small.jpg", "moved.png"))
    reject, sample = converted("os_atlas", {**ROWS["os_atlas"], **small}, moved, known=known)
    assert reject.reason == "known_picture" and "'a.png' of the set kept apart" in reject.message
    assert isinstance(sample, Sample)


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


def test_the_script_writes_a_folder_that_training_reads(folder, capsys):
    rows = [ROWS["os_atlas"], change("os_atlas", bbox=[0, 0, 2, 2])]
    (folder / "rows.json").write_text(json.dumps(rows))
    arguments = ["--layout", "os_atlas", "--data", folder / "rows.json", "--pictures", folder, "--out", folder / "out"]
    arguments = [str(argument) for argument in arguments]
    assert convert_data.main([*arguments, "--json"]) == 0
    manifest = json.loads(capsys.readouterr().out)
    assert manifest == json.loads((folder / "out" / "manifest.json").read_text())
    assert (manifest["samples"], manifest["rejects"], manifest["actions"]) == (1, {"box_outside": 1}, {"left_click": 1})
    (reject,) = map(json.loads, (folder / "out" / "rejects.jsonl").read_text().splitlines())
    assert reject["reason"] == "box_outside" and reject["source"] == f"{folder}/rows.json:1[1][0]"
    (row,) = read_rows(folder / "out", "computer")
    assert row.step.turn.tool_calls[0].arguments == {"action": "left_click", "coordinate": [750, 400]}
    assert convert_data.main(arguments) == 2 and "exists and would be lost" in capsys.readouterr().err
    assert convert_data.main(["--layouts"]) == 0 and "screenspot_pro" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("layout", "data", "message"),
    [("nothing", "rows.json", "layout 'nothing' is not known"), ("os_atlas", "gone.json", "No such file")]
    + [("screenspot", "rows.json", "no row gave a sample")],
)
def test_the_script_names_a_users_mistake(folder, capsys, layout, data, message):
    (folder / "rows.json").write_text(json.dumps([ROWS["os_atlas"]]))
    arguments = ["--layout", layout, "--data", folder / data, "--pictures", folder, "--out", folder / "out"]
    assert convert_data.main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") or "\nerror: " in error
    assert message in error and "Traceback" not in error


def test_what_no_file_can_hold_costs_its_row(folder, tmp_path, capsys):
    rows = [
        {
            "img_filename": "a.png",
            "instruction": text,
            "bbox": [10, 10, 30 + i, 20],
            "data_type": "icon",
            "data_source": v,
        }
        for i, (text, v) in enumerate([("one", "x"), ("half \ud800", "x"), ("three", float("nan")), ("four", "x")])
    ]
    (folder / "rows.json").write_text(json.dumps(rows))
    out = tmp_path / "out"
    options = ["--layout", "screenspot", "--data", folder / "rows.json", "--pictures", folder, "--out", out, "--json"]
    assert convert_data.main([str(option) for option in options]) == 0
    rejects = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
    assert [reject["message"].split(":")[0] for reject in rejects] == [
        "'\\ud800' is half a character",
        "Out of range float values are not JSON compliant",
    ]
    assert len((out / "dataset.jsonl").read_text().splitlines()) == 2
