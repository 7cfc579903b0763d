"""Screens answered once: what counts as right, to the pixel; who is in the denominator; the data that is asked."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from source_rows import read_rows

import eval as evaluation
from qwenvl_agent.computer import Action, to_turn
from qwenvl_agent.config import DataConfig, EvalConfig, PromptConfig, SourceConfig
from qwenvl_agent.coordinates import Screen
from qwenvl_agent.data.dataset import build_rows
from qwenvl_agent.evaluation import results, suites
from qwenvl_agent.evaluation.clicks import (
    ClickRecord,
    click_metrics,
    clustered_median,
    evaluate_actions,
    outcome,
    predict_clicks,
    screenspot_metrics,
    take,
)
from qwenvl_agent.evaluation.report import compare, write_report
from qwenvl_agent.evaluation.screens import (
    LabelOracle,
    RandomClicker,
    read_held_out,
    read_screenspot,
    read_tasks,
    summary,
)
from qwenvl_agent.schema import Answer, ToolCall, Turn
from qwenvl_agent.training.best import score
from scripts import rescore

WIDTH, HEIGHT = 1000, 500
CLICK = {"kind": "left_click", "x_px": 300.0, "y_px": 200.0}


def record(number=0, predicted=CLICK, expected=CLICK, box=(290, 190, 310, 210), cluster="", **values) -> ClickRecord:
    return ClickRecord(
        case_id=f"dataset#{number}",
        cluster=cluster or f"screen {number}",
        instruction="open it",
        picture="gone.png",
        width_px=WIDTH,
        height_px=HEIGHT,
        expected=[expected],
        box_px=None if box is None else list(box),
        predicted=[predicted] if predicted else [],
        **values,
    )


def at(x, y, kind="left_click") -> dict:
    return {"kind": kind, "x_px": float(x), "y_px": float(y)}


def values(records, *names) -> list[float]:
    metrics = click_metrics(records)
    return [metrics[name].value for name in names]


def published_measure(predictions, ground_truths):
    """As such data is usually published with, word for word."""
    correct_actions = 0
    total_samples = len(predictions)
    for pred, gt in zip(predictions, ground_truths, strict=True):
        if (
            pred.get("action") == gt.get("action")
            and abs(pred.get("x", 0) - gt.get("x", 0)) < 50
            and abs(pred.get("y", 0) - gt.get("y", 0)) < 50
        ):
            correct_actions += 1
    return correct_actions / total_samples if total_samples > 0 else 0


LABEL = {"action": "click", "x": 300, "y": 80}
NEAR = [
    (LABEL, True),
    ({"action": "click", "x": 349, "y": 129}, True),
    ({"action": "click", "x": 350, "y": 80}, False),
    ({"action": "click", "x": 300, "y": 30}, False),
    ({"action": "double_click", "x": 300, "y": 80}, False),
    ({"action": "type", "text": "cats"}, False),
    ({}, False),
]


@pytest.mark.parametrize(("predicted", "verdict"), NEAR)
def test_near_is_the_published_measure(predicted, verdict):
    assert evaluate_actions([predicted], [LABEL]) == verdict == published_measure([predicted], [LABEL])


def test_an_action_without_a_place_is_near_another_of_its_kind_near_the_corner():
    typed = {"action": "type", "text": "cats"}
    assert evaluate_actions([typed], [{"action": "type", "text": "dogs"}]) == published_measure([typed], [typed]) == 1
    assert evaluate_actions([{"action": "click"}], [{"action": "click", "x": 49, "y": 0}]) == 1


PLACES = st.fixed_dictionaries(
    {"action": st.sampled_from(["click", "type", "scroll"])},
    optional={"x": st.integers(0, 120) | st.floats(0, 120), "y": st.integers(0, 120)},
)


@given(st.lists(st.tuples(PLACES | st.just({}), PLACES), max_size=6))
def test_actions_are_measured_as_published_in_both_forms(pairs):
    predictions, labels = [made for made, _ in pairs], [due for _, due in pairs]
    expected = published_measure(predictions, labels)
    assert evaluate_actions(predictions, labels) == expected
    typed = [{"type" if key == "action" else key: value for key, value in due.items()} for due in labels]
    assert evaluate_actions(predictions, typed) == expected
    rows = [{"instruction": "a", "next_action": due} for due in labels]
    assert evaluate_actions([{"screenshot": "a.png", "action": made} for made in predictions], rows) == expected


def test_the_second_form_compares_the_type_too():
    label = {"type": "click", "x": 300, "y": 400, "target": "cat_image"}
    assert evaluate_actions([{"action": "click", "x": 310, "y": 390}], [label]) == 1
    assert evaluate_actions([{"type": "scroll", "x": 310, "y": 390}], [label]) == 0


def test_what_cannot_be_compared_is_wrong_or_refused():
    label = {"action": "click", "x": 3, "y": 4}
    unreadable = [None, {}, "click", {"action": "click", "x": "3", "y": 4}, {"action": "click", "x": math.nan, "y": 4}]
    assert evaluate_actions([*unreadable, label], [label] * 6) == 1 / 6 and evaluate_actions([], []) == 0
    with pytest.raises(ValueError, match="1 predictions for 2 labels: which belongs to which is unknown"):
        evaluate_actions([label], [label, label])
    for fault in (None, {}, {"x": 3, "y": 4}, {"action": "click", "x": "3", "y": 4}):
        with pytest.raises(ValueError, match=r"labels\[1\] is .*: no action to compare with; write action"):
            evaluate_actions([label, label], [label, fault])


def test_the_measure_of_a_whole_set_is_the_published_one():
    records = [record(i, at(300 + 10 * i, 200 - 3 * i)) for i in range(10)] + [record(10, None, error="no_action")]
    seen = [{"action": "click", "x": 300 + 10 * i, "y": 200 - 3 * i} for i in range(10)] + [{}]
    expected = published_measure(seen, [{"action": "click", "x": 300, "y": 200}] * 11)
    assert values(records, "near_rate") == [expected] == [5 / 11]


def test_radii_are_of_circles_and_unreadable_answers_stay_in_the_denominator():
    predictions = [at(306, 208), at(315, 220), at(330, 240), at(360, 280), at(400, 200)]  # 10, 25, 50, 100, 100 px
    records = [record(i, p, box=None) for i, p in enumerate(predictions)] + [
        record(9, None, box=None, error="json_error")
    ]
    names = [f"within_{radius}_px" for radius in (10, 25, 50, 100)]
    assert values(records, *names) == [1 / 6, 2 / 6, 3 / 6, 5 / 6]
    metrics = click_metrics(records)
    assert metrics["within_10_px"].n == 6 and metrics["pixel_error"].n == 5
    assert metrics["pixel_error"].value == pytest.approx((10 + 25 + 50 + 100 + 100) / 5)
    assert metrics["pixel_error_median"].value == 50
    assert metrics["error_of_diagonal"].value == pytest.approx(57 / math.hypot(WIDTH, HEIGHT))
    assert metrics["parse_rate"].value == 5 / 6 and metrics["errors"] == {"json_error": 1}
    assert math.isnan(metrics["box_hit_rate"].value) and metrics["box_hit_rate"].n == 0


@pytest.mark.parametrize(
    ("point", "is_hit"), [((290, 190), True), ((310, 210), True), ((289.99, 200), False), ((300, 210.01), False)]
)
def test_the_edges_of_a_box_are_hit(point, is_hit):
    assert values([record(0, at(*point))], "box_hit_rate") == [is_hit]


def test_any_action_with_a_place_can_hit_the_box_but_only_the_right_one_is_right():
    records = [record(0, at(300, 200, "double_click"))]
    assert values(records, "box_hit_rate", "near_rate", "action_accuracy") == [1, 0, 0]
    assert outcome(records[0]) == "other_action"


def test_a_hit_test_asks_for_the_parts_that_a_click_reaches():
    parts = [[290, 190, 300, 195], [290, 205, 310, 210]]
    between, inside = record(0, at(300, 200), hit_boxes_px=parts), record(1, at(309, 206), hit_boxes_px=parts)
    untold = record(2, at(300, 200))
    metrics = click_metrics([between, inside, untold])
    assert metrics["hit_test_rate"].value == 0.5 and metrics["hit_test_rate"].n == 2
    assert metrics["box_hit_rate"].value == 1.0


def test_outcomes_tell_failures_apart():
    typed = {"kind": "type", "text": "cats"}
    cases = [
        (record(), "hit"),
        (record(predicted=at(311, 200)), "other_place"),
        (record(predicted=at(349, 200), box=None), "hit"),
        (record(predicted=at(350, 200), box=None), "other_place"),
        (record(predicted={"kind": "wait", "seconds": 1}), "other_action"),
        (record(predicted=None, error="empty"), "unreadable"),
        (record(predicted=typed, expected=typed, box=None), "hit"),
        (record(predicted=typed | {"text": "dogs"}, expected=typed, box=None), "other_words"),
    ]
    assert [outcome(one) for one, _ in cases] == [name for _, name in cases]
    metrics = click_metrics([one for one, _ in cases[-2:]])
    assert metrics["word_accuracy"].value == 0.5 and math.isnan(metrics["within_50_px"].value)


def test_samples_of_one_screenshot_are_resampled_together():
    alone = [record(i, at(0, 0) if i % 2 else CLICK) for i in range(40)]
    shared = [record(i, at(0, 0) if i % 2 else CLICK, cluster=f"screen {i % 2}") for i in range(40)]
    narrow, wide = (click_metrics(records)["box_hit_rate"] for records in (alone, shared))
    assert narrow.value == wide.value == 0.5 and narrow.n == wide.n == 40
    assert (round(narrow.low, 3), round(narrow.high, 3)) == (0.352, 0.648)  # Wilson, 20 of 40
    assert (wide.low, wide.high) == (0.0, 1.0)


def test_the_median_has_an_interval():
    interval = clustered_median([1.0, 2.0, 3.0, 4.0, 100.0], list("abcde"))
    assert interval.value == 3.0 and interval.low == 1.0 and interval.high == 100.0 and interval.n == 5
    assert clustered_median([1.0, 2.0], ["a", "a"])[:3] == (1.5, 1.0, 1.0)
    assert math.isnan(clustered_median([], []).value)


def test_groups_add_up_and_a_single_group_is_not_repeated():
    details = [{"role": role, "language": "en"} for role in ("button", "button", "link")]
    records = [record(i, CLICK if i else at(0, 0), details=d) for i, d in enumerate(details)]
    records.append(record(3, None, error="empty"))
    metrics = click_metrics(records)
    assert metrics["box_hit_rate/element=button"].value == 0.5 and metrics["box_hit_rate/element=button"].n == 2
    assert metrics["near_rate/element=link"].value == 1.0
    assert not any("language=" in name or "size=" in name for name in metrics)


def test_rare_groups_are_measured_together():
    records = [record(i, details={"role": f"role {i:02}"}) for i in range(40)]
    groups = [name for name in click_metrics(records) if name.startswith("box_hit_rate/element=")]
    assert len(groups) == 30 and groups[-1] == "box_hit_rate/element=(others)"
    assert click_metrics(records)[groups[-1]].n == 11


# answers


def answered(answer: Answer) -> ClickRecord:
    one = record(predicted=None)
    take(one, answer)
    return one


def call(**arguments) -> Turn:
    return Turn("There.", (ToolCall("computer_use", arguments),))


def test_answers_are_read_in_pixels_with_what_was_read_over():
    strict = answered(Answer(call(action="left_click", coordinate=[300, 400])))
    assert (strict.predicted, strict.error, strict.repairs, strict.thought) == ([CLICK], "", [], "There.")
    mended = answered(Answer(call(action="click", coordinate=[300, 1400]), repairs=("code_fence",)))
    assert mended.predicted == [{"kind": "left_click", "x_px": 300.0, "y_px": 499.5}]
    assert mended.repairs == ["code_fence", "renamed_action", "clamped"]
    free = answered(Answer(Turn(text="click(300, 400)"), text="click(300, 400)"))
    assert free.predicted == [CLICK] and "python_call" in free.repairs
    metrics = click_metrics([strict, mended, free])
    assert (metrics["strict_parse_rate"].value, metrics["parse_rate"].value) == (1 / 3, 1.0)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (Answer(Turn(), "{", "json_error"), "json_error"),
        (Answer(Turn(text="I cannot.")), "no_action"),
        (Answer(Turn()), "no_action"),
        (Answer(call(action="fly")), "unknown_action"),
        (Answer(call(action="left_click")), "missing_argument"),
        (Answer(call(action="left_click", coordinate=["nan", 3])), "bad_argument"),
    ],
)
def test_what_cannot_be_read_is_an_outcome_with_a_name(answer, error):
    one = answered(answer)
    assert (one.error, one.predicted, outcome(one)) == (error, [], "unreadable")


# data


def row(number=0, **changes) -> dict:
    return {
        "instruction": f"open number {number}",
        "screenshot": "screen.png",
        "image_size": [WIDTH, HEIGHT],
        "action": {"type": "click", "x": 300 + number, "y": 200, "reasoning": "There."},
        "box": [290 + number, 190, 310 + number, 210],
        "split": "test",
        "details": {"role": "button" if number % 2 else "link", "language": "en"},
    } | changes


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (WIDTH, HEIGHT), "white").save(tmp_path / "screen.png")
    return tmp_path


def write(folder, *rows, name="dataset.jsonl"):
    (folder / name).write_text("\n".join(json.dumps(one) for one in rows) + "\n", encoding="utf-8")
    return folder


def test_a_task_asks_what_training_asks(folder):
    write(folder, row(split="train", history=["opened the shop"], actions=["left_click", "type"]))
    (taught,) = read_rows(folder, "computer")
    request = read_tasks(folder).tasks[0].request
    assert (request.system_prompt, request.tools, request.observation) == (
        taught.system_prompt,
        taught.tools,
        taught.step.observation,
    )


def test_marked_samples_are_measured_and_the_others_counted(folder):
    write(folder, row(0), row(1, split="train"), row(2), row(3, action={"type": "fly"}))
    found = read_tasks(folder)
    assert [task.case_id for task in found.tasks] == ["dataset#1", "dataset#3"]
    assert found.about["left_out"] == 1 and found.about["rejected"] == {"unknown_action": 1}
    text = summary(found.tasks, found.rejected, found.about)
    assert "2 screens, 1 rejected" in text and "dataset.jsonl:4: action is 'fly'" in text
    assert "1 more are not of the split test" in text
    assert len(read_tasks(folder, "all").tasks) == 3 and len(read_tasks(folder, "train").tasks) == 1
    held_out = read_held_out([folder], [f"{folder}/dataset.jsonl:2"])
    assert [task.case_id for task in held_out.tasks] == ["dataset#2"] and held_out.about["split"] == "held_out"


def test_held_out_screens_are_clicked_during_training(folder):
    """By an agent that clicks where the label of line 2 wants it: right there, wrong on line 3, and 1 is not held out."""
    far = {"action": {"type": "left_click", "x": 900, "y": 400}, "box": [890, 390, 910, 410]}
    write(folder, *(row(i, split="train", **(far if i == 2 else {})) for i in range(3)))
    data = DataConfig(
        sources=(SourceConfig(path=str(folder), kind="computer"),), cache_dir=str(folder / "cache"), eval_fraction=0.0
    )
    rows = build_rows(data, PromptConfig()).train
    held_out = [one for one in (rows[i] for i in range(3)) if not one.source.endswith(":1")]
    cfg = EvalConfig(suite="clicks", step_rows=0, episodes=10)
    clicker = SimpleNamespace(act=lambda requests: [Answer(held_out[0].turn)] * len(requests))
    assert held_out[0].source.endswith(":2")
    scalars = suites.evaluate(clicker, cfg, held_out=held_out).scalars
    assert scalars["clicks/box_hit_rate"] == 0.5 and scalars["clicks/parse_rate"] == 1.0
    suite = suites.find_suite("clicks")
    assert score(scalars, suite) > score({"eval/token_loss/all": 0.0}, suite)
    Path(held_out[0].request.observation.pictures[0].path).unlink()  # of all
    assert suites.evaluate(clicker, cfg, held_out=held_out).scalars == {"clicks/unusable_screens": 2.0}


def test_without_marks_all_are_measured(folder):
    write(folder, row(0, split="train"), row(1, split="train"))
    assert len(read_tasks(folder).tasks) == 2


def test_hit_boxes_come_with_the_data(folder):
    parts = [[290, 190, 300, 195]]
    write(folder, row(0, details={"hit_boxes": parts}), row(1, details={"hit_boxes": [[5, 5, 1, 9]]}))
    found = read_tasks(folder)
    assert found.tasks[0].hit_boxes_px == parts and "hit_boxes" not in found.tasks[0].details
    assert found.rejected[0].reason == "bad_hit_boxes" and "has no inside" in found.rejected[0].message


def test_what_gives_no_sample_is_an_error(folder, tmp_path):
    with pytest.raises(ValueError, match="there is no such file"):
        read_tasks(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no sample of split test"):
        read_tasks(write(folder, row(split="train")), "test")
    with pytest.raises(ValueError, match="screenshot 'gone.png' does not exist"):
        read_tasks(write(folder, row(screenshot="gone.png")))


def test_the_oracle_is_right_and_chance_is_not(folder):
    tasks = read_tasks(write(folder, *[row(i) for i in range(20)])).tasks
    best = click_metrics(predict_clicks(LabelOracle(tasks), tasks))
    assert [best[n].value for n in ("near_rate", "box_hit_rate", "action_accuracy", "within_10_px")] == [1.0] * 4
    assert best["pixel_error"].value <= WIDTH / 1000
    chance = predict_clicks(RandomClicker(), tasks)
    assert click_metrics(chance)["box_hit_rate"].value < 0.1 and click_metrics(chance)["parse_rate"].value == 1.0
    assert [one.predicted for one in predict_clicks(RandomClicker(), tasks)] == [one.predicted for one in chance]


def test_two_samples_may_ask_the_same(folder):
    tasks = read_tasks(write(folder, row(0, instruction="x"), row(9, instruction="x"))).tasks
    assert [one.point_px[0] for one in predict_clicks(LabelOracle(tasks), tasks)] == [300, 309]


class Narrow:
    """A policy whose prompt cannot hold every request, as a model's collator may."""

    def __init__(self):
        self.collator = self

    def encode(self, request, turn, source):
        if request.observation.text.endswith("number 1"):
            raise ValueError(f"{source}: too many tokens")

    def act(self, requests):
        return [Answer(to_turn([Action.click(300, 200)], Screen(WIDTH, HEIGHT))) for _ in requests]


def test_what_cannot_be_shown_costs_its_own_sample_alone(folder):
    tasks = read_tasks(write(folder, *[row(i) for i in range(3)])).tasks
    records = predict_clicks(Narrow(), tasks)
    assert [one.error for one in records] == ["", "cannot_be_shown", ""]
    assert "dataset.jsonl:2: too many tokens" in records[1].text
    assert click_metrics(records)["box_hit_rate"].value == 2 / 3


# ScreenSpot


@pytest.fixture
def screenspot(tmp_path):
    """Version 1 as published: one file a platform, boxes as x, y, width, height."""
    images = tmp_path / "screenspot_imgs"
    images.mkdir()
    for i, name in enumerate(("pc", "phone", "page")):
        Image.new("RGB", (400 + i, 200), "white").save(images / f"{name}.png")
    for platform, name, source in (("desktop", "pc", "windows"), ("mobile", "phone", "ios"), ("web", "page", "shop")):
        rows = [
            {
                "img_filename": f"{name}.png",
                "bbox": [100, 50, 40, 20],
                "instruction": f"press the {kind}",
                "data_type": kind,
                "data_source": source,
            }
            for kind in ("text", "icon")
        ]
        rows += [rows[0] | {"instruction": "press it"}] if platform == "web" else []
        (tmp_path / f"screenspot_{platform}.json").write_text(json.dumps(rows), encoding="utf-8")
    return tmp_path


def test_screenspot_is_read_from_its_folder(screenspot):
    found = read_screenspot(screenspot, "screenspot")
    assert len(found.tasks) == 7 and found.about["layout"] == "screenspot"
    first = found.tasks[0]
    assert first.case_id == "screenspot_desktop#1" and first.box_px == (100, 50, 140, 70)
    assert [task.details["platform"] for task in found.tasks] == ["desktop"] * 2 + ["mobile"] * 2 + ["web"] * 3
    assert len({task.case_id for task in found.tasks}) == 7  # files in one line tell no lines apart


def test_the_protocols_table_has_micro_and_macro_average(screenspot):
    tasks = read_screenspot(screenspot, "screenspot").tasks
    records = predict_clicks(LabelOracle(tasks), tasks)
    for one in (records[3], records[6]):  # mobile icon, one of the two of web text
        one.predicted = [at(140.01, 60)]
    metrics = screenspot_metrics(records)
    assert metrics["box_hit_rate"].value == 5 / 7
    assert metrics["box_hit_macro"].value == pytest.approx(4.5 / 6) and metrics["box_hit_macro"].n == 7
    cells = {name: m.value for name, m in metrics.items() if name.count("/") == 2}
    rates = {"mobile/icon": 0.0, "web/text": 0.5}
    assert cells == {
        f"box_hit_rate/{cell}": rates.get(cell, 1.0)
        for cell in (f"{platform}/{kind}" for platform in ("desktop", "mobile", "web") for kind in ("text", "icon"))
    }
    assert metrics["box_hit_rate/element=icon"].value == pytest.approx(2 / 3)


def test_pro_is_grouped_by_field_and_checked_for_size(tmp_path):
    (tmp_path / "images" / "blender").mkdir(parents=True)
    (tmp_path / "annotations").mkdir()
    Image.new("RGB", (3840, 2160)).save(tmp_path / "images" / "blender" / "a.png")
    rows = [
        {
            "id": f"blender_{i}",
            "img_filename": "blender/a.png",
            "img_size": size,
            "bbox": [10, 20, 60, 40],
            "instruction": f"render {i}",
            "ui_type": kind,
            "platform": "windows",
            "application": "blender",
            "group": "Creative",
        }
        for i, (size, kind) in enumerate([([3840, 2160], "icon"), ([3840, 2160], "text"), ([1920, 1080], "text")])
    ]
    (tmp_path / "annotations" / "blender_windows.json").write_text(json.dumps(rows), encoding="utf-8")
    found = read_screenspot(tmp_path, "screenspot_pro")
    assert found.about["rejected"] == {"size_differs": 1}
    metrics = screenspot_metrics(predict_clicks(LabelOracle(found.tasks), found.tasks))
    assert metrics["box_hit_rate/Creative/icon"].value == metrics["box_hit_rate/Creative/text"].value == 1.0


def test_a_folder_that_is_no_screenspot_is_an_error(screenspot, tmp_path):
    with pytest.raises(ValueError, match="give --layout with one of screenspot"):
        read_screenspot(screenspot, "")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="there is nothing to measure on"):
        read_screenspot(tmp_path / "empty", "screenspot")
    for path in (screenspot / "screenspot_imgs").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="name their folder with --pictures"):
        read_screenspot(screenspot, "screenspot")


# results


def run(*arguments) -> int:
    return evaluation.main([str(argument) for argument in arguments])


def test_a_result_is_written_compared_and_scored_again(folder, tmp_path, capsys):
    write(folder, *[row(i) for i in range(6)], row(7, screenshot="gone.png"))
    for policy in ("oracle", "random"):
        out = tmp_path / policy
        assert run("--policy", policy, "--suite", "clicks", "--data", folder, "--out", out, "--json") == 0
    captured = capsys.readouterr()
    assert "dataset.jsonl:7: screenshot 'gone.png' does not exist" in captured.err
    metrics = json.loads((tmp_path / "oracle" / "metrics.json").read_text())
    about = metrics["about"]
    assert about["num_rows"] == about["num_tasks"] == 6 and about["rejected"] == {"bad_picture": 1}
    assert about["split"] == "test" and about["dataset_hash"] and about["prompt_hash"]
    assert metrics["near_rate"]["value"] == 1.0 and metrics["outcomes"] == {"hit": 6}
    test = compare([tmp_path / "oracle", tmp_path / "random"])["tests"][0]
    assert (test["num_cases"], test["only_first"], test["only_second"]) == (6, 6, 0)
    before = (tmp_path / "oracle" / "metrics.json").read_text()
    assert rescore.main([str(tmp_path / "oracle")]) == 0
    assert (tmp_path / "oracle" / "metrics.json").read_text() == before


def test_records_survive_their_file(folder, tmp_path):
    tasks = read_tasks(
        write(folder, row(0), row(1, action=[{"type": "click", "x": 1, "y": 2}, {"type": "type", "text": "a"}]))
    )
    records = predict_clicks(LabelOracle(tasks.tasks), tasks.tasks)
    results.write_result(tmp_path / "a", results.describe("clicks", "x"), records, click_metrics(records))
    assert results.read_result(tmp_path / "a")[1] == records
    lines = (tmp_path / "a" / "records.jsonl").read_text().replace("left_click", "fly", 1)
    (tmp_path / "a" / "records.jsonl").write_text(lines)
    with pytest.raises(ValueError, match="records.jsonl:1: not a record"):
        results.read_result(tmp_path / "a")


def test_the_page_shows_screens_with_marks_and_text_as_text(folder, tmp_path):
    evil = "<script>alert(1)</script>"
    tasks = read_tasks(write(folder, row(0, instruction=evil), row(1))).tasks
    records = predict_clicks(LabelOracle(tasks), tasks)
    records[1].predicted, records[1].error, records[1].text = [], "json_error", evil
    about = results.describe("clicks", "x", dataset_hash="h", rejected={}, config={})
    results.write_result(tmp_path / "a", about, records, click_metrics(records))
    write_report(tmp_path / "report.html", [tmp_path / "a"])
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("<script>") == 1 and page.count("alert(1)&lt;/script&gt;") >= 2
    assert page.count('<details class="case"') == 2 and page.count("data:image/jpeg;base64,") == 2
    assert '<rect class="due" x="290' in page and '<circle class="made0"' in page and "unreadable: json_error" in page
    (folder / "screen.png").unlink()
    write_report(tmp_path / "report.html", [tmp_path / "a"])
    assert "does not exist" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "clicks"], "no data of kind computer: give --data"),
        (["--suite", "clicks", "--data", "nowhere"], "there is no such file, so no rows to read"),
        (["--suite", "safari", "--data", "x"], "it would change nothing"),
        (["--suite", "screenspot", "--data", "x"], "without --layout"),
        (["--suite", "elements"], "without --data"),
        (["--suite", "clicks", "--layout", "screenspot", "--data", "x"], "of this suite are --rows, --data, --split"),
    ],
)
def test_a_users_mistake_is_one_message(arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert run("--policy", "oracle", *arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and message in captured.err and "Traceback" not in captured.err


def test_a_baseline_that_does_not_play_is_refused(folder, capsys):
    write(folder, row(0))
    assert run("--policy", "noisy_oracle", "--suite", "clicks", "--data", folder) == 2
    assert "use oracle, random" in capsys.readouterr().err
