"""Layouts of published data sets: a row of each gives the right place, and whatever is wrong in a row or a layout is named."""

import json
from pathlib import Path

import pytest
from PIL import Image
from source_rows import read_rows
from test_computer_data import HEIGHT, WIDTH, screenshot

from qwenvl_agent.computer import Action
from qwenvl_agent.curation.convert import LAYOUTS, convert, known_pictures
from qwenvl_agent.curation.layout import check_patterns
from qwenvl_agent.data.readers.computer import Sample
from scripts import convert_data


@pytest.fixture
def folder(tmp_path):
    """Of a data set: its pictures, and the files that layouts look for beside its rows."""
    folder = tmp_path / "data"
    (tmp_path / "splits").mkdir()
    folder.mkdir()
    screenshot().save(folder / "a.png")
    screenshot("beige").save(folder / "b.jpg")
    (folder / "task.txt").write_text("Task: open it\nOutput Script:\npyautogui.click(300.0,80.0)\n")
    boxes = {"page": corners(0, 0, 400, 200), "menu": corners(*BOX), "other": corners(0, 0, 40, 40)}
    (folder / "boxes.json").write_text(json.dumps(boxes))
    (folder / "splits.json").write_text(json.dumps({"train": [7], "test": [99]}))
    (tmp_path / "splits" / "random_split.json").write_text(json.dumps({"test": ["99.json"]}))
    return folder


def corners(x1: float, y1: float, x2: float, y2: float) -> dict:
    return {"top_left": [x1, y1], "bottom_right": [x2, y2], "label": "x"}


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
ELEMENT = {"instruction": "open it", "bbox": FRACTIONS}
AITW_STEP = {
    "img_filename": "a",
    "goal": "open it",
    "ep_id": "e",
    "action_type_id": 4,
    "action_type_text": "click",
    "touch": [0.75, 0.4],
    "lift": [0.75, 0.4],
    "type_text": "",
    "annot_position": [0.35, 0.7, 0.1, 0.1],
}
GUIACT_BOX = {"related": "<box>0.7, 0.35, 0.8, 0.45</box>", "absolute": "<box>280, 70, 320, 90</box>"}
ROWS |= {
    "os_atlas_flat": {"img_filename": "a.png", **ELEMENT, "data_type": "push-button"},
    "seeclick_mobile": {"img_filename": "a.png", **ELEMENT},
    "seeclick_web": {**ROWS["os_atlas"]},
    "android_control": {
        "episode_id": 7,
        "goal": "open it",
        "screenshots": ["a.png", "b.jpg"],
        "screenshot_widths": [WIDTH, WIDTH],
        "screenshot_heights": [HEIGHT, HEIGHT],
        "actions": [json.dumps({"action_type": "click", "x": 300, "y": 80})],
        "step_instructions": ["Click it."],
    },
    "gui_odyssey": {
        "episode_id": "7",
        "device_info": {"device_name": "Pixel Fold", "w": WIDTH, "h": HEIGHT},
        "task_info": {"category": "General_Tool", "instruction": "open it", "task": "open"},
        "steps": [
            {
                **{"step": 0, "screenshot": "a.png", "action": "CLICK", "info": [[750, 400]], "ps": ""},
                **{"sam2_bbox": [700, 350, 800, 450], "intention": "There.", "low_level_instruction": "Click it."},
            }
        ],
    },
    "aitw": {"general": [[AITW_STEP]]},
    "aitw_steps": {
        **{"episode_id": "e", "goal_info": "open it", "step_id": 0, "image": "a.png", "results/action_type": 4},
        **{"results/yx_touch": [0.4, 0.75], "results/yx_lift": [0.4, 0.75], "results/type_action": ""},
    },
    "miniwob_demos": {
        "click-button": [
            [{"img_filename": "a.png", "goal": "open it", "action_type": "click", "bbox": list(BOX)}],
        ]
    },
    "omniact": {"0": {"task": "task.txt", "image": "a.png", "box": "boxes.json", "ocr": "o.json"}},
    "guiact": {
        **{"uid": "uid_record_1_step_00", "image_id": "a", "image_size": {"width": WIDTH, "height": HEIGHT}},
        **{
            "question": "open it",
            "actions_history": "step 0: scroll, click\nstep 1: hover",
            "logs": "",
            "thoughts": "There.",
        },
        "actions_label": {"name": "click", "element": GUIACT_BOX},
    },
}
WITHOUT_BOX = {"agentnet", "aguvis", "android_control", "aitw", "aitw_steps"}
IN_FILE = {"aitw", "miniwob_demos", "omniact"}
"""Layouts whose rows lie deeper in their file."""


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
    (step,) = converted("guiact", ROWS["guiact"])
    assert step.past == ("scroll, click", "hover") and step.group == "uid_record_1" and step.thought == "There."


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
    row = json.loads(json.dumps(ROWS[layout]))
    inner = row
    while layout in IN_FILE and not (isinstance(inner, dict) and {"goal", "image"} & set(inner)):
        inner = next(iter(inner.values())) if isinstance(inner, dict) else inner[0]
    items = LAYOUTS[layout].items if layout not in IN_FILE else ""
    if items and not set(fields) <= set(row) and layout not in ("aguvis", "os_atlas_sft"):
        inner = row[items][0]
    inner.update(fields)
    return row


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
        ("agentnet_bench", {"ground_truth_actions": 3}, "no_action"),
        ("mind2web", {"operation": None}, "no_action"),
        ("mind2web", {"bbox": None}, "not_drawn"),
        ("mind2web", {"operation": {"op": "FLY"}}, "unknown_action"),
        ("multimodal_mind2web", {"operation": "{"}, "bad_record"),
        ("multimodal_mind2web", {"pos_candidates": []}, "not_drawn"),
        ("multimodal_mind2web", {"pos_candidates": ["3"]}, "not_drawn"),
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
    with pytest.raises(ValueError, match="layout 'screenspot_v9' is not known.*use one of agentnet,"):
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
    [("nothing", "rows.json", "layout 'nothing' is not known"), ("os_atlas", "gone.json", "there is no such file")]
    + [
        ("screenspot_hf", "rows.json", "all of the first 1 rows lack file_name"),
        ("os_atlas", "bad.json", "no row gave"),
    ],
)
def test_the_script_names_a_users_mistake(folder, capsys, layout, data, message):
    (folder / "rows.json").write_text(json.dumps([ROWS["os_atlas"]]))
    (folder / "bad.json").write_text(json.dumps([change("os_atlas", bbox=[0.5, 0.5, 0.5, 0.5])]))
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


# What each set has that others have not


def left_click(x: float, y: float) -> tuple:
    return ("left_click", pytest.approx((x, y)))


def drag(x1: float, y1: float, x2: float, y2: float) -> list[tuple]:
    return [("mouse_move", pytest.approx((x1, y1))), ("left_click_drag", pytest.approx((x2, y2)))]


def done(sample: Sample) -> list[tuple]:
    """Each action with what it does it with."""
    return [
        (a.kind, a.point_px or a.text or a.keys or a.status or a.seconds or (a.wheel_px if a.scroll_px else None))
        for a in sample.actions
    ]


AITW_SWIPE = {"action_type_text": "scroll down", "touch": [0.5, 0.8], "lift": [0.5, 0.2]}
MOBILE = "mobile.swipe(from_coord=[0.5, 0.8], to_coord=[0.5, 0.2])"


def says(code: str) -> dict:
    return {"conversations": [{"from": "human", "value": "open it"}, {"from": "gpt", "recipient": "os", "value": code}]}


@pytest.mark.parametrize(
    ("layout", "fields", "expected"),
    [
        ("aitw", AITW_SWIPE, drag(200, 160, 200, 40)),
        ("aitw", {"touch": [0.75, 0.4], "lift": [0.76, 0.42]}, [left_click(300, 80)]),
        ("aitw", {"action_type_text": "type", "type_text": "cats"}, [("type", "cats")]),
        ("aitw", {"action_type_text": "press enter"}, [("key", ("enter",))]),
        ("aitw", {"action_type_text": "press back"}, "no_press_back"),
        ("aitw", {"action_type_text": None, "action_type_id": 6}, "no_6"),
        ("aitw", {"action_type_text": "status task complete"}, [("terminate", "success")]),
        ("aitw", {"lift": None}, "bad_argument"),
        ("aitw_steps", {"results/yx_touch": [0.8, 0.5], "results/yx_lift": [0.2, 0.5]}, drag(200, 160, 200, 40)),
        ("aitw_steps", {"results/action_type": 11}, [("terminate", "failure")]),
        ("gui_odyssey", {"info": [[750, 400]], "action": "LONG_PRESS"}, "no_long_press"),
        ("gui_odyssey", {"info": "KEY_BACK"}, "no_click_key_back"),
        (
            "gui_odyssey",
            {"action": "SCROLL", "info": [[500, 800], [500, 200]], "sam2_bbox": []},
            drag(200, 160, 200, 40),
        ),
        ("gui_odyssey", {"action": "TEXT", "info": "CLICK", "sam2_bbox": []}, [("type", "CLICK")]),
        ("gui_odyssey", {"action": "INCOMPLETE", "info": "", "sam2_bbox": []}, [("terminate", "failure")]),
        ("gui_odyssey", {"sam2_bbox": [0, 0, 100, 100]}, "click_outside_box"),
        ("miniwob_demos", {"action_type": "type", "typed_text": "cats", "bbox": None}, [("type", "cats")]),
        ("miniwob_demos", {"bbox": None}, "not_drawn"),
        ("guiact", {"actions_label": {"name": "go_back"}}, "no_go_back"),
        ("guiact", {"actions_label": {"name": "hover", "element": GUIACT_BOX}}, [("mouse_move", (300, 80))]),
        (
            "guiact",
            {"actions_label": [{"name": "click", "element": GUIACT_BOX}, {"name": "input", "text": "cats"}]},
            [left_click(300, 80), ("type", "cats")],
        ),
        (
            "guiact",
            {"actions_label": {"name": "scroll", "scroll": {"related": {"down": "0.5", "right": "0.0"}}}},
            [("scroll", (0, 100))],
        ),
        (
            "guiact",
            {"actions_label": {"name": "scroll", "scroll": {"related": {"down": "0.0", "right": "0.25"}}}},
            [("hscroll", (100, 0))],
        ),
        (
            "guiact",
            {
                "actions_label": {
                    "name": "swipe",
                    "dual_point": {"related": {"from": "<point>0.5, 0.8</point>", "to": "<point>0.5, 0.2</point>"}},
                }
            },
            drag(200, 160, 200, 40),
        ),
        ("guiact", {"actions_label": {"name": "tap", "point": {"related": "<point>0.75, 0.4</point>"}}}, CLICK),
        ("aguvis", says("pyautogui.scroll(page=-0.5)"), [("scroll", (0, 100))]),
        ("aguvis", says("pyautogui.scroll(page=0.25)"), [("scroll", (0, -50))]),
        ("aguvis", says(MOBILE), drag(200, 160, 200, 40)),
        ("aguvis", says("mobile.home()"), "no_home"),
        ("aguvis", says("mobile.open_app(app_name='Maps')"), "no_open_app"),
        ("aguvis", says("mobile.wait(seconds=3)"), [("wait", 3)]),
        ("aguvis", says("answer('42')"), [("answer", "42")]),
        ("aguvis", says("browser.select_option(x=0.75, y=0.4, value='L')"), [left_click(300, 80), ("type", "L")]),
        ("aguvis", {"image": ["a.png"]}, CLICK),
        ("aguvis", {"image": ["a.png", "b.jpg"]}, "no_picture"),
        ("mind2web", {"operation": {"op": "CLICK", "original_op": "HOVER"}}, [("mouse_move", (300, 80))]),
        ("mind2web", {"operation": {"op": "CLICK", "original_op": "ENTER"}}, [("key", ("enter",))]),
        (
            "mind2web",
            {"operation": {"op": "SELECT", "original_op": "SELECT", "value": "L"}},
            [left_click(300, 80), ("type", "L")],
        ),
        ("mind2web", {"operation": {"op": "TYPE", "value": "L"}, "bbox": None}, "not_drawn"),
        ("mind2web", {"operation": {"op": "SELECT", "value": "L"}, "bbox": {}}, "not_drawn"),
        ("mind2web", {"bbox": {"x": 10, "y": 4000, "width": 20, "height": 20}}, "below_fold"),
        ("mind2web", {"bbox": {"x": 10, "y": 190, "width": 20, "height": 20}}, "below_fold"),
        ("mind2web", {"bbox": {"x": 10, "y": 20, "width": 20}}, "bad_box"),
        (
            "multimodal_mind2web",
            {"operation": json.dumps({"op": "TYPE", "value": "L"}), "pos_candidates": [json.dumps(UNDRAWN)]},
            "not_drawn",
        ),
        (
            "os_atlas_sft",
            {"conversations": [{"from": "gpt", "value": "<ref>open it</ref><point>[[750,400]]</point>"}]},
            CLICK,
        ),
        ("omniact", {"task": "gone.txt"}, "no_file"),
        ("omniact", {"task": "a.png"}, "bad_record"),
        ("omniact", {"task": "../a"}, "bad_record"),
    ],
)
def test_an_action_of_each_set_is_read_or_refused_by_name(converted, layout, fields, expected):
    (item,) = converted(layout, change(layout, **fields))
    if isinstance(expected, str):
        assert not isinstance(item, Sample) and item.reason == expected, item
    else:
        expected = [("left_click", action.point_px) for action in expected] if expected == CLICK else expected
        assert isinstance(item, Sample) and done(item) == expected, item


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        ({"action_type": "input_text", "text": "cats"}, [("type", "cats")]),
        (
            {"action_type": "type", "x": 300, "y": 80, "text": "cats"},
            [left_click(300, 80), ("type", "cats"), ("key", ("enter",))],
        ),
        ({"action_type": "scroll", "direction": "down"}, [("scroll", (0, 100))]),
        ({"action_type": "scroll", "direction": "left"}, [("hscroll", (-200, 0))]),
        ({"action_type": "wait"}, [("wait", 1)]),
        ({"action_type": "open_app", "app_name": "Maps"}, "no_open_app"),
        ({"action_type": "navigate_back"}, "no_navigate_back"),
        ({"action_type": "long_press", "x": 1, "y": 2}, "no_long_press"),
        ({"action_type": "click", "x": 300}, "bad_argument"),
        ({"action_type": "click", "x": 400, "y": 80}, "outside_screen"),
    ],
)
def test_an_action_of_android_control(converted, action, expected):
    (item,) = converted("android_control", change("android_control", actions=[json.dumps(action)]))
    if isinstance(expected, str):
        assert not isinstance(item, Sample) and item.reason == expected, item
    else:
        assert isinstance(item, Sample) and done(item) == expected, item


def test_a_refused_step_is_in_the_history_of_the_next(converted):
    actions = [{"action_type": "open_app", "app_name": "Maps"}, {"action_type": "click", "x": 300, "y": 80}]
    row = {**ROWS["android_control"], "actions": actions, "step_instructions": ["Open Maps.", "Click."]}
    row |= {"screenshots": ["a.png", "b.jpg", "a.png"], "screenshot_widths": [400] * 3, "screenshot_heights": [200] * 3}
    refused, click = converted("android_control", row)
    assert refused.reason == "no_open_app" and click.past == ("Open Maps.",) and click.step == 1
    assert click.picture.path.endswith("b.jpg")


def test_what_its_authors_found_wrong_is_history_and_not_learned(converted):
    def step(x: float, **judged):
        return {"image": "a.png", "value": {"code": f"pyautogui.click({x}, 0.4)", "action": f"Click {x}.", **judged}}

    traj = [
        step(0.1, last_step_correct=True, last_step_redundant=False),
        step(0.2, last_step_correct=False),
        step(0.3, last_step_correct=True, last_step_redundant=True),
        step(0.4, last_step_correct="maybe"),
        step(0.5),
    ]
    row = {**ROWS["agentnet"], "traj": traj, "task_completed": True}
    right, wrong, needless, unclear, last = converted("agentnet", row)
    assert [wrong.reason, needless.reason, unclear.reason] == ["wrong_step", "redundant_step", "bad_record"]
    assert isinstance(right, Sample) and last.past == ("Click 0.1.", "Click 0.2.", "Click 0.3.", "Click 0.4.")
    failed = converted("agentnet", {**row, "task_completed": False})
    assert [item.reason for item in failed[:3]] == ["task_failed"] * 3


def test_steps_with_other_right_answers_are_not_measured_by_one(converted):
    other = [[{"type": "click", "params": {"position": {"x": 0.1, "y": 0.1}}, "metadata": {}}]]
    (reject,) = converted("agentnet_bench", change("agentnet_bench", alternative_options=other))
    assert reject.reason == "other_right_answers"
    (same,) = converted("agentnet_bench", change("agentnet_bench", alternative_options=[]))
    assert isinstance(same, Sample)


def test_all_boxes_of_an_action_are_kept_and_those_of_other_actions_are_not(converted):
    def truth(*actions):
        (item,) = converted("agentnet_bench", change("agentnet_bench", ground_truth_actions=list(actions)))
        return item

    def click(kind: str, x: float, y: float, *boxes: list):
        metadata = {"bboxes": [{"rel_bbox": box} for box in boxes]}
        return {"type": kind, "params": {"position": {"x": x, "y": y}}, "metadata": metadata}

    menu, page = [0.7, 0.35, 0.1, 0.1], [0, 0, 1, 1]
    both = truth(click("click", 0.75, 0.4, menu, page))
    assert both.box_px is None and both.details["hit_boxes"] == [pytest.approx(list(BOX)), [0, 0, 400, 200]]
    assert both.notes[-1] == "several_boxes"
    assert truth(click("moveTo", 0.1, 0.1), click("dragTo", 0.75, 0.4, menu)).box_px is None
    moved = truth(click("moveTo", 0.75, 0.4, menu), click("dragTo", 0.1, 0.1, [0, 0, 0.2, 0.2]))
    assert moved.box_px == pytest.approx(BOX)
    assert truth(click("click", 0.1, 0.1, menu)).reason == "click_outside_box"


def test_test_rows_stay_test_rows(converted, folder):
    def splits(layout: str, *rows, name: str = "rows.json", **options):
        (folder / name).write_text(json.dumps(list(rows)))
        return [item.split for item in convert(folder / name, layout, folder, **options)]

    row = ROWS["mind2web"]
    assert splits("mind2web", row) == ["train"]
    assert splits("mind2web", row, name="mind2web_data_test_task.json") == ["test"]
    assert splits("mind2web", row, name="latest.json") == ["train"]
    assert splits("mind2web", {**row, "split": "test_website"}) == ["test"]
    assert splits("screenspot", ROWS["screenspot"]) == ["test"]
    episodes = ROWS["android_control"], {**ROWS["android_control"], "episode_id": 99, "goal": "other"}
    assert splits("android_control", *episodes) == ["train", "test"]
    (folder / "mine.json").write_text("[7]")
    assert splits("android_control", *episodes, test_ids=folder / "mine.json") == ["test", "train"]
    assert splits("android_control", *episodes, split="train") == ["train", "train"]
    odyssey = ROWS["gui_odyssey"], {**ROWS["gui_odyssey"], "episode_id": "99", "task_info": {"task": "other"}}
    assert splits("gui_odyssey", *odyssey) == ["train", "test"]
    (folder / "splits.json").unlink()
    with pytest.raises(
        ValueError, match="splits.json does not exist: .* they would be trained on; give --test-ids FILE"
    ):
        splits("android_control", *episodes)


def test_a_folder_of_files_is_read_in_order(folder):
    episodes = folder / "annotations"
    episodes.mkdir()
    for name, row in (("b.json", ROWS["gui_odyssey"]), ("a.json", change("gui_odyssey", info=[[760, 400]]))):
        (episodes / name).write_text(json.dumps(row))
    items = list(convert(episodes, "gui_odyssey", folder, split="train"))
    assert [item.source for item in items] == [f"{episodes}/a.json:1[0]", f"{episodes}/b.json:1[0]"]
    with pytest.raises(ValueError, match="has no .*json.* there is nothing to read"):
        list(convert(folder.parent / "splits" / "..", "gui_odyssey", folder, split="train"))


@pytest.mark.parametrize("layout", sorted(IN_FILE))
def test_rows_deeper_in_a_file_are_named_by_the_keys_on_the_way(folder, layout):
    (folder / "rows.json").write_text(json.dumps(ROWS[layout]))
    (sample,) = convert(folder / "rows.json", layout, folder)
    place = {"aitw": "[general][0][0]", "miniwob_demos": "[click-button][0][0]", "omniact": "[0]"}[layout]
    assert sample.source == f"{folder}/rows.json:1{place}"


def test_an_entry_of_a_nested_file_is_a_row_by_itself_too(converted):
    entry = ROWS["omniact"]["0"]
    whole = {**entry, "task": "Task: open it\nOutput Script:\npyautogui.click(300, 80)", "box": {"a": corners(*BOX)}}
    for sample in [*converted("omniact", entry), *converted("omniact", whole, is_list=True)]:
        assert sample.actions == CLICK and sample.box_px == BOX and sample.instruction == "open it"
    with pytest.raises(ValueError, match=r"all of the first 1 rows lack rows at \*\.\*, which layout aitw reads"):
        converted("aitw", {"general": "none"})


def test_a_tfrecord_is_refused_with_the_way_out(folder):
    for content in (b"\x1f\x8b\x08\x00", b"\x10\x00\x00\x00\x00\x00\x00\x00{}"):
        (folder / "rows-00000-of-00020").write_bytes(content)
        with pytest.raises(
            ValueError, match="is no text .a TFRecord, or compressed.: .* write each example of a TFRecord"
        ):
            list(convert(folder / "rows-00000-of-00020", "android_control", folder))


# Which layout


def test_a_file_of_another_form_is_refused_with_the_layouts_that_read_it(converted, folder):
    with pytest.raises(
        ValueError, match="all of the first 1 rows lack file_name, which layout screenspot_hf reads"
    ) as one:
        converted("screenspot_hf", ROWS["screenspot"])
    assert "screenspot (1), screenspot_v2 (1)" in str(one.value)
    nested = ROWS["os_atlas"]
    with pytest.raises(ValueError, match=r"all of the first 100 rows lack instruction and bbox.* os_atlas \(20\)"):
        converted(
            "os_atlas_flat",
            *[{**nested, "url": str(i), "elements": [{**ELEMENT, "instruction": f"{i}"}]} for i in range(300)],
        )
    with pytest.raises(ValueError, match="no layout here has its fields; write one"):
        converted("showui", {"a": 1})
    items = converted("screenspot_hf", {}, ROWS["screenspot_hf"])
    assert items[0].reason == "no_picture" and isinstance(items[1], Sample)


@pytest.mark.parametrize(
    ("layout", "bbox"),
    [
        ("screenspot_hf", [280, 70, 320, 90]),  # pixels where fractions are declared
        ("screenspot", [200, 100, 320, 190]),  # corners where a size is declared
        ("os_atlas_flat", [28, 7, 40, 20]),  # percent
    ],
)
def test_a_unit_or_order_that_does_not_fit_ends_in_an_error(folder, capsys, layout, bbox):
    rows = [{**ROWS[layout], "bbox": bbox, "instruction": f"{i}"} for i in range(4)]
    (folder / "rows.json").write_text(json.dumps([*rows, ROWS[layout]]))
    words = ["--layout", layout, "--data", folder / "rows.json", "--pictures", folder, "--out", folder / "out"]
    assert convert_data.main([str(word) for word in words]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert (
        "4 of 5 places are not on their pictures (box_outside 4)" in error
        and not (folder / "out/manifest.json").exists()
    )
    assert convert_data.main([*map(str, words), "--overwrite", "--max-misplaced", "0.9"]) == 0


MINE = {
    "picture": "item.shot",
    "instruction": ["goal"],
    "items": "steps",
    "is_episode": True,
    "action": "item.step",
    "action_unit": "px",
    "action_name": ["kind"],
    "actions": {"tap": {"action": "left_click", "coordinate": "{at}"}, "back": {"refuse": "no key of a computer"}},
}


def test_a_layout_of_ones_own_is_a_file(folder, capsys):
    (folder / "mine.json").write_text(json.dumps(MINE))
    steps = [{"shot": "a.png", "step": {"kind": "tap", "at": [300, 80]}}, {"shot": "a.png", "step": {"kind": "back"}}]
    (folder / "rows.jsonl").write_text(json.dumps({"goal": "open it", "steps": steps}))
    words = ["--layout", folder / "mine.json", "--data", folder / "rows.jsonl", "--pictures", folder]
    assert convert_data.main([*map(str, words), "--out", str(folder / "out"), "--json"]) == 0
    manifest = json.loads(capsys.readouterr().out)
    assert (manifest["samples"], manifest["rejects"], manifest["splits"]) == (1, {"no_back": 1}, {"train": 1})
    assert convert_data.main(["--layout-keys"]) == 0 and "action_unit" in capsys.readouterr().out


def without(*keys: str) -> dict:
    return {key: value for key, value in MINE.items() if key not in keys}


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (without("picture"), "'picture' is missing and has no default"),
        (without("action", "actions", "action_name"), "box, point and action are empty: no sample says where to act"),
        ({**MINE, "unit": "px"}, "unknown key 'unit': it would have no effect"),
        (
            {**MINE, "action_unit": "pixels"},
            "action_unit is 'pixels', which means nothing here; use one of px, fraction",
        ),
        ({**MINE, "box": ["a", "b"]}, "box has 2 paths: which number is which is not said; give 1 or 4"),
        ({**MINE, "instruction": 3}, "instruction is 3, which is not of type tuple"),
        ({**MINE, "actions": {"tap": {"action": "fly"}}}, "actions.tap.action is 'fly', which does not exist"),
        (
            {**MINE, "actions": {"tap": {"coordinate": "{at}"}}},
            "actions.tap is {'coordinate': '{at}'}: no action is named",
        ),
        ({**MINE, "actions": {"tap": 3}}, "actions.tap is 3: no action is named"),
        ({**MINE, "actions": {"tap": {"refuse": ""}}}, "why it is refused is not said"),
        ({**MINE, "actions": {"tap": {"action": "click", "coordinate": "{box}"}}}, "uses {box}, but box is empty"),
        (without("action_name"), "actions is a table, but action or action_name is empty"),
        ({**MINE, "transform": "magic"}, "transform is 'magic', which means nothing here"),
        ({**MINE, "files": {"task": "xml"}}, "files.task is 'xml', which means nothing here; use one of text, json"),
        ({**MINE, "extract": [{"text": "a", "pattern": "(x)"}]}, r"extract[0].pattern has no named group"),
        ({**MINE, "extract": [{"text": "a", "pattern": "(?P<b>x)(?=y)"}]}, "is none of RE2"),
        (
            {**MINE, "leave_out": [{"where": "a", "when": "odd", "reason": "r", "because": "b"}]},
            "leave_out[0].when is 'odd'",
        ),
        ([MINE], "holds list, not an object with settings"),
    ],
)
def test_a_wrong_layout_file_is_refused_with_file_and_key(folder, layout, message):
    (folder / "mine.json").write_text(json.dumps(layout))
    with pytest.raises(ValueError) as error:
        list(convert(folder / "rows.jsonl", str(folder / "mine.json"), folder))
    assert message in str(error.value) and str(error.value).startswith(f"{folder}/mine.json")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_patterns_of_shipped_layouts_are_taken(layout):
    check_patterns(Path(layout), LAYOUTS[layout])


def test_the_documentation_says_of_every_layout_what_it_was_tried_on_and_where_its_facts_stand():
    rows = [f"| `{name}` | {layout.tried} | {layout.source} |" for name, layout in LAYOUTS.items()]
    assert all(layout.source and layout.tried != "own" for layout in LAYOUTS.values())
    document = (Path(__file__).parents[1] / "docs" / "DATA.md").read_text(encoding="utf-8")
    assert [line for line in document.splitlines() if line.startswith("| `") and "| published " in line] == rows


# Bad input

WRONG = (None, True, 0, -7, 1e300, 10**400, float("nan"), "", "x", "{", [], {}, [1], [None], {"a": 1}, [[]], ["x", {}])


def places(value: object, path: tuple = ()) -> list[tuple]:
    """The paths of everything in a value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inner for place in places(item, (*path, key)))]


def value_in(value: object, path: tuple) -> object:
    for key in path:
        value = value[key]
    return value


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def replaced(value: object, path: tuple, new: object) -> object:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(copy[path[0]], path[1:], new)
    return copy


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_wrong_value_anywhere_gives_a_reject_or_a_right_row(converted, layout):
    """A sample that comes all the same has the right place, and takes at most a text from the wrong value."""
    right = converted(layout, ROWS[layout])
    rights = [(item.actions, item.box_px) for item in right]
    bare = [(actions, None) for actions, _ in rights]
    for path in places(ROWS[layout]):
        for wrong in WRONG:
            if wrong in (0, -7) and is_number(value_in(ROWS[layout], path)):
                continue  # a number like another
            row = replaced(ROWS[layout], path, wrong)
            try:
                items = converted(layout, row, is_list=True)
            except ValueError as error:
                assert "rows lack" in str(error) and "Traceback" not in str(error), (path, wrong)
                continue
            for item in items:
                if isinstance(item, Sample):
                    assert (item.actions, item.box_px) in rights + bare, (path, wrong, item)
                    assert item.instruction == "open it" or item.instruction in ("x", "{", "open"), (path, wrong, item)
                else:
                    assert item.reason and "Error (" not in item.message and "rows.json:" in item.source, (
                        path,
                        wrong,
                        item,
                    )
