"""Lists of a screen's elements: how answers are read, how boxes are matched, what is counted."""

import json
import math

import pytest
from PIL import Image

import eval as evaluation
from qwenvl_agent.coordinates import Screen
from qwenvl_agent.evaluation.elements import (
    QUESTION,
    ElementsRecord,
    ListOracle,
    elements_metrics,
    matches,
    outcome,
    predict_elements,
    read_elements,
    read_list,
)
from qwenvl_agent.schema import Answer, Turn
from scripts import rescore

SCREEN = Screen(2000, 500)


def element(x1, y1, x2, y2, kind="button", text="") -> dict:
    return {"type": kind, "text": text, "box_px": [x1, y1, x2, y2]}


def record(expected, found, **values) -> ElementsRecord:
    return ElementsRecord(
        case_id=values.pop("case_id", "a"),
        picture="gone.png",
        width_px=100,
        height_px=100,
        expected=expected,
        found=found,
        **values,
    )


def test_a_list_is_read_in_pixels():
    found, repairs = read_list('[{"type": "link", "text": "가", "bbox_2d": [10, 20, 30, 1000]}]', SCREEN)
    assert found == [{"type": "link", "text": "가", "box_px": [20.0, 10.0, 60.0, 500.0]}] and repairs == ()
    assert read_list("[]", SCREEN) == ([], ())


ONE = '{"type": "link", "bbox_2d": [0, 0, 10, 10]}'


@pytest.mark.parametrize(
    ("text", "number", "repairs"),
    [
        (f"```json\n[{ONE}, {ONE}]\n```", 2, ("not_a_bare_list",)),
        (f'[{ONE}, {ONE}, {{"type": "li', 2, ("not_a_bare_list",)),
        (f"Here: {ONE}", 1, ("not_a_bare_list",)),
        (ONE, 1, ("not_a_bare_list",)),
        (f'[{ONE}, {{"type": "link"}}, 3]', 1, ("no_box",)),
        ('[{"bbox": [1, 2, 3]}, {"bbox": [1, 2, 3, NaN]}, {"bbox": [1, 2, 3, 1e99]}]', 0, ("no_box",)),
        ('[{"bbox": [-5, 0, 10, 2000]}]', 1, ("clamped",)),
        ("There is nothing.", 0, ()),
        ("[" * 100_000, 0, ()),
        ('{"a": ' * 1300, 0, ()),
    ],
)
def test_what_is_read_over_has_a_name(text, number, repairs):
    found, names = read_list(text, SCREEN)
    assert (len(found), names) == (number, repairs)


def test_boxes_match_one_to_one_at_half_their_union():
    there = [element(0, 0, 10, 10)]
    assert matches(record(there, [element(0, 0, 10, 5)])) == [(0, 0)]  # exactly 0.5
    assert matches(record(there, [element(0, 0, 10, 4.9)])) == []
    twice = record(there, [element(0, 0, 10, 6), element(0, 0, 10, 9)])
    assert matches(twice) == [(1, 0)]  # the better of the two
    assert matches(record([], [element(0, 0, 1, 1)])) == matches(record(there, [])) == []
    assert matches(record(there, [element(5, 5, 5, 5), element(9, 9, 1, 1)])) == []


def test_as_many_pairs_as_can_be_are_made():
    """The best single pair, of equal boxes, would leave the other two alone: they overlap by a third."""
    there = [element(0, 0, 10, 100), element(0, 0, 10, 50)]
    found = [element(0, 0, 10, 100), element(0, 25, 10, 75)]
    assert sorted(matches(record(there, found))) == [(0, 1), (1, 0)]


def test_figures_are_over_all_elements_of_all_screens():
    there = [element(10 * i, 0, 10 * i + 9, 9, text=str(i)) for i in range(4)]
    first = record(there, [there[0], there[1] | {"type": "link"}, element(80, 80, 90, 90)])
    second = record(there[:2], [], error="no_list")
    empty = record([], [])
    metrics = elements_metrics([first, second, empty])
    assert metrics["precision"].value == pytest.approx(2 / 3) and metrics["recall"].value == pytest.approx(2 / 6)
    assert metrics["f1"].value == pytest.approx(2 * 2 / (3 + 6))
    assert metrics["type_accuracy"].value == 0.5 and metrics["text_accuracy"].value == 1.0
    assert metrics["parse_rate"].value == pytest.approx(2 / 3) and metrics["errors"] == {"no_list": 1}
    assert metrics["numbers"] == {"screens": 3, "there": 6, "listed": 3, "matched": 2}
    assert [outcome(one) for one in (first, second, empty)] == ["incomplete", "unreadable", "complete"]
    assert math.isnan(elements_metrics([second])["precision"].value)


@pytest.fixture
def folder(tmp_path):
    """What generate_ui.py writes of two pages, and one faulty line."""
    rows, questions = [], []
    for name in ("page_a", "page_b"):
        Image.new("RGB", (800, 400), "white").save(tmp_path / f"{name}.png")
        box = [100, 40, 260, 80]
        rows.append(
            {
                "id": name,
                "screenshot": f"{name}.png",
                "image_size": [800, 400],
                "elements": [
                    {"type": "button", "text": "Save", "description": "the button", "box": box, "point": [180, 60]},
                    {"type": "link", "text": "", "box": [300, 100, 320, 120]},
                ],
            }
        )
    for kind, question, answer in (("list", "List it.", [{"bbox_2d": [1, 2, 3, 4]}]), ("where", "Where?", {"a": 1})):
        user = {"role": "user", "content": f"<image>\n{question}"}
        messages = [user, {"role": "assistant", "content": json.dumps(answer)}]
        questions.append({"id": f"page_a_{kind}_0", "images": ["page_a.png"], "messages": messages})
    rows.append({"id": "page_c", "screenshot": "page_a.png", "elements": [{"type": "button"}]})
    for name, values in (("elements", rows), ("questions", questions)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, values)), encoding="utf-8")
    return tmp_path


def test_the_question_is_the_one_of_the_data(folder):
    tasks, rejected, about = read_elements(folder)
    assert [task.case_id for task in tasks] == ["page_a", "page_b"]
    assert [task.request.observation.text for task in tasks] == ["List it.", QUESTION]
    assert tasks[0].request.system_prompt == "" and tasks[0].request.tools == ()
    assert tasks[0].request.observation.pictures[0].width == 800
    assert tasks[0].elements[0] == {"type": "button", "text": "Save", "box_px": [100, 40, 260, 80]}
    assert about["rejected"] == {"bad_box": 1} and "has no box" in rejected[0].message


def test_the_oracle_finds_all(folder):
    tasks, _, _ = read_elements(folder)
    metrics = elements_metrics(predict_elements(ListOracle(tasks), tasks))
    names = ("f1", "precision", "recall", "type_accuracy", "text_accuracy", "strict_parse_rate")
    assert [metrics[name].value for name in names] == [1.0] * 6


class Endless:
    def act(self, requests):
        return [Answer(Turn(), text=f"[{ONE}, {ONE[:9]}", error="endless") for _ in requests]


def test_a_list_without_end_counts_for_what_was_read(folder):
    tasks, _, _ = read_elements(folder)
    first = predict_elements(Endless(), tasks)[0]
    assert len(first.found) == 1 and first.error == "" and first.repairs == ["not_a_bare_list", "endless"]


def test_a_result_is_written_and_scored_again(folder, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["--policy", "oracle", "--suite", "elements", "--data", str(folder), "--out", str(out)]
    assert evaluation.main(arguments) == 0
    before = (out / "metrics.json").read_text()
    assert json.loads(before)["f1"]["value"] == 1.0 and "1 rejected" in capsys.readouterr().err
    assert rescore.main([str(out)]) == 0 and (out / "metrics.json").read_text() == before
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count('<rect class="due"') == 4 and page.count('<rect class="made0"') == 4
    assert evaluation.main([*arguments[:1], "random", *arguments[2:]]) == 2
    assert "use oracle" in capsys.readouterr().err
