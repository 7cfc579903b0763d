"""Layouts of published data sets: a row of each gives the right place, and whatever is wrong in a row or a layout is named."""

import json

import pytest
from PIL import Image
from source_rows import read_rows
from test_computer_data import HEIGHT, WIDTH, screenshot

from qwenvl_agent.computer import Action
from qwenvl_agent.curation.convert import LAYOUTS, convert, known_pictures
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
        **{"question": "open it", "actions_history": "", "logs": "", "thoughts": "There."},
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
    while layout in IN_FILE and isinstance(inner, dict | list) and not {"goal", "image"} & set(inner):
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
    [("nothing", "rows.json", "layout 'nothing' is not known"), ("os_atlas", "gone.json", "No such file")]
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
