"""Units of places: what is declared is what is read, and what cannot be as declared is refused with counts and way out."""

import json
import math
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from qwenvl_agent.cli import augment, show
from qwenvl_agent.computer import Action
from qwenvl_agent.computer.dialect_units import thousandths_form
from qwenvl_agent.config import Config, DataConfig, ModelConfig, PromptConfig, SourceConfig
from qwenvl_agent.coordinates import BOX_ORDERS, UNITS, Screen
from qwenvl_agent.curation.marks import mark_of, marks_html
from qwenvl_agent.curation.sample_folder import SampleFolder
from qwenvl_agent.data.dataset import build_rows
from qwenvl_agent.data.readers.computer import PictureFiles, Sample, read_sample, read_samples
from qwenvl_agent.data.readers.units import UNIT_NAMES, WAYS, Declared, judge, weigh
from qwenvl_agent.evaluation import suites
from qwenvl_agent.evaluation.screens import read_tasks
from qwenvl_agent.evaluation.suites import Options
from qwenvl_agent.evaluation.suites.screens import held_out_screens
from qwenvl_agent.schema import Observation, Picture, Request, Row, ToolCall, Turn

SMALL, WIDE = (1280, 720), (1920, 1080)
POINTS = [(818, 460), (112, 295), (1077, 527), (36, 640), (640, 360), (300, 40), (1200, 700), (77, 77), (505, 610)]
POINTS += [(900, 210), (1111, 333), (415, 95)]


@pytest.fixture
def folder(tmp_path):
    for name, size in (("small.png", SMALL), ("wide.png", WIDE)):
        Image.new("RGB", size, "white").save(tmp_path / name)
    return tmp_path


@pytest.fixture
def read(folder):
    """Write records; (samples, rejects, suspicions) of what is read with these declarations."""

    def read(records, **declared):
        (folder / "dataset.jsonl").write_text("\n".join(map(json.dumps, records)))
        notes: Counter[str] = Counter()
        items = list(read_samples(folder, Declared(**declared), notes))
        samples = [item for item in items if isinstance(item, Sample)]
        return samples, [item for item in items if not isinstance(item, Sample)], dict(notes)

    return read


def xy(x, y):
    return {"type": "click", "x": x, "y": y}


def written(value: float, side: int, unit: str) -> float:
    """As annotators round: four decimals of a fraction, whole thousandths."""
    return (
        round(value / side * UNITS[unit], {"fraction": 4, "percent": 2, "thousand": 0}[unit]) if unit != "px" else value
    )


def records(unit="px", box_unit="", box_order="xyxy", *, form=xy, picture="small.png", points=POINTS, has_box=True):
    """One click a record, written in a unit by a form, with a box of 45 x 22 px around it."""
    width, height = SMALL if picture == "small.png" else WIDE
    found = []
    for index, (x, y) in enumerate(points):
        place = form(written(x, width, unit), written(y, height, unit))
        record = {"instruction": f"open {index}", "screenshot": picture, "action": place}
        if has_box:
            corners = [x - 20, y - 10, x + 25, y + 12] if box_order == "xyxy" else [x - 20, y - 10, 45, 22]
            sides = [width, height, width, height]
            pairs = zip(corners, sides, strict=True)
            record["box"] = [written(value, side, box_unit or unit) for value, side in pairs]
        found.append(record)
    return found


@pytest.mark.parametrize("unit", UNIT_NAMES)
@pytest.mark.parametrize("box_order", BOX_ORDERS)
@pytest.mark.parametrize("box_unit", ["", "px", "thousand"])
def test_all_places_of_a_record_are_in_the_declared_unit(read, unit, box_unit, box_order):
    rows = records(unit, box_unit, box_order)
    for row in rows:
        row["details"] = {"hit_boxes": [row["box"]]}
    samples, rejects, _ = read(rows, unit=unit, box_unit=box_unit, box_order=box_order)
    assert len(samples) == len(POINTS) and not rejects
    for sample, (x, y) in zip(samples, POINTS, strict=True):
        assert sample.actions[0].point_px == pytest.approx((x, y), abs=0.65)  # half a thousandth of 1280 px
        assert sample.box_px == pytest.approx((x - 20, y - 10, x + 25, y + 12), abs=1.3)
        assert sample.details["hit_boxes"][0] == pytest.approx(sample.box_px)


SIZES = [(20, 3000), (333, 333), (1280, 720), (3840, 2160)]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sizes")
    for width, height in SIZES:
        Image.new("RGB", (width, height)).save(folder / f"{width}.png")
    return PictureFiles(folder)


@given(
    unit=st.sampled_from(UNIT_NAMES),
    size=st.sampled_from(SIZES),
    part=st.tuples(*[st.floats(0, 0.9999)] * 2),
    is_whole=st.booleans(),
)
def test_what_is_written_in_a_unit_is_read_at_its_place(pictures, unit, size, part, is_whole):
    """Within half a cell of the grid that the model writes; beyond its last line, within that cell."""
    place = part[0] * size[0], part[1] * size[1]
    value = list(Screen(*size).to_unit(*place, unit))
    if unit == "thousand" and is_whole:
        value = [min(round(number), 999) for number in value]
    record = {"instruction": "open", "screenshot": f"{size[0]}.png", "action": xy(*value)}
    if unit != "fraction" and max(value) <= 1 and any(number % 1 for number in value):
        with pytest.raises(ValueError, match="is no place in"):
            read_sample(record, pictures, "f:1", Declared(unit=unit))
        return
    sample = read_sample(record, pictures, "f:1", Declared(unit=unit))
    for side, got, meant in zip(size, sample.actions[0].point_px, place, strict=True):
        assert abs(got - meant) <= side / 1000 * (0.5 if meant < 0.999 * side else 1) * (1 + 1e-9)


REFUSED = [
    (
        records("fraction"),
        {},
        "12 of 12 records with a place and a box cannot be in px (12 x all numbers below 1)",
        '"unit": "fraction" (12',
    ),
    (records("fraction", has_box=False), {"unit": "thousand"}, "12 x all numbers below 1", '"unit": "fraction"'),
    (records("px"), {"unit": "fraction"}, "12 x beyond the screen", '"unit": "px" (12 of 12 fit)'),
    (records("px"), {"unit": "thousand"}, "3 of 12", '"unit": "px" (12 of 12 fit)'),
    (records("thousand"), {}, "beyond the screen", '"unit": "thousand" (12 of 12 fit)'),
    (records("thousand", "px"), {}, "a click outside its own box", '"unit": "thousand", "box_unit": "px" (12 of 12'),
    (records("thousand", "px"), {"unit": "thousand"}, "a click outside its own box", '"box_unit": "px" (12 of 12 fit)'),
    (records("px", "fraction"), {}, "12 x all numbers below 1", '"box_unit": "fraction" (12 of 12 fit)'),
    (records(box_order="xywh"), {}, "a box turned inside out", '"box_order": "xywh" (12 of 12 fit)'),
    (records(), {"box_order": "xywh"}, "a box beyond the picture", '"box_order": "xyxy" (12 of 12 fit)'),
    (
        records(form=lambda x, y: {"type": "click", "bbox": [x - 20, y - 10, 45, 22]}, has_box=False),
        {},
        "a box turned inside out",
        '"box_order": "xywh"',
    ),
]


@pytest.mark.parametrize(("rows", "declared", "cause", "remedy"), REFUSED, ids=range(len(REFUSED)))
def test_a_file_that_cannot_be_as_declared_is_refused_with_counts_and_what_would_fit(
    read, rows, declared, cause, remedy
):
    with pytest.raises(ValueError, match="dataset.jsonl: .* or correct the file") as error:
        read(rows, **declared)
    assert cause in str(error.value) and remedy in str(error.value)


def tool(x, y):
    return {"action": "left_click", "coordinate": [int(x), int(y)]}


FORMS = {
    "call": lambda x, y: {"name": "computer_use", "arguments": tool(x, y)},
    "text": lambda x, y: f"<tool_call>\n{json.dumps({'name': 'computer_use', 'arguments': tool(x, y)})}\n</tool_call>",
    "ui_tars": lambda x, y: f"Thought: I click.\nAction: click(start_box='({int(x)},{int(y)})')",
    "point": lambda x, y: f"Action: click(point='<point>{int(x)} {int(y)}</point>')",
    "os_atlas": lambda x, y: f"actions:\nCLICK <point>[[{int(x)}, {int(y)}]]</point>",
}


@pytest.mark.parametrize("form", FORMS)
def test_a_form_in_thousandths_must_declare_its_unit(read, form):
    rows = records("thousand", form=FORMS[form], has_box=False, picture="wide.png")
    with pytest.raises(
        ValueError, match='12 of 12 records .* 0 to 1000 .*declare "unit": "thousand" .*or "unit": "px"'
    ):
        read(rows)
    samples, _, _ = read(rows, unit="thousand")
    for sample, point in zip(samples, POINTS, strict=True):
        assert sample.actions[0].point_px == pytest.approx(point, abs=0.97)  # half a thousandth of 1920 px
    pixels, _, _ = read(records(form=FORMS[form], has_box=False), unit="px")
    assert [sample.actions[0].point_px for sample in pixels] == POINTS
    # One among others costs itself alone.
    samples, rejects, _ = read([*records(), {**rows[0], "instruction": "another"}])
    assert len(samples) == 12 and [reject.reason for reject in rejects] == ["unit_not_declared"]


def test_the_tools_own_arguments_are_as_others_pixels_until_much_speaks_against_it(read):
    rows = records("thousand", form=tool, has_box=False, picture="wide.png")
    with pytest.raises(ValueError, match="12 x the tool's own arguments"):
        read(rows)
    samples, _, notes = read(rows[:9])
    assert samples[0].actions == (Action.click(426, 426),) and notes == {"taken_as_px_may_be_thousand": 9}
    samples, _, notes = read(rows[:9], unit="px")
    assert len(samples) == 9 and notes == {}
    # A place beyond 1000 proves pixels.
    samples, _, notes = read(records(form=tool, has_box=False))
    assert len(samples) == 12 and notes == {}


def test_what_is_only_suspicious_is_counted_with_the_unit_that_would_fit(read):
    assert read(records("thousand", has_box=False, picture="wide.png"))[2] == {"taken_as_px_may_be_thousand": 12}
    assert read(records("percent", has_box=False))[2] == {"taken_as_px_may_be_percent": 12}
    assert read(records("percent", has_box=False), unit="px")[2] == {}
    assert read(records("thousand", has_box=False, picture="wide.png")[:9])[2] == {}
    assert read(records())[2] == {}


def test_in_a_file_of_two_units_the_rows_of_the_other_are_rejects(read):
    samples, rejects, _ = read([*records()[:6], *records("fraction")[6:]])
    assert [sample.actions[0].point_px for sample in samples] == POINTS[:6]
    assert [reject.source.rpartition(":")[2] for reject in rejects] == ["7", "8", "9", "10", "11", "12"]
    assert {reject.reason for reject in rejects} == {"unknown_unit"}
    assert "it would fit with unit fraction" in rejects[0].message


@pytest.mark.parametrize("point", [(0, 0), (1, 1), (1, 0), (0.0, 1.0), (300, 0.5), (0.5, 700)])
def test_a_single_row_of_whole_pixels_is_read(read, point):
    (sample,), rejects, notes = read(records(points=[point], has_box=False))
    assert sample.actions == (Action.click(*point),) and not rejects and not notes


def test_a_click_beside_its_box_by_a_pixel_of_rounding_is_read_and_by_more_is_not(read):
    box = {"box": [100, 50, 200, 90]}
    rows = [{**row, **box} for row in records(points=[(99, 50), (201, 91), (98.9, 60), (150, 91.1), (150, 70)])]
    samples, rejects, _ = read(rows)
    assert [sample.actions[0].x_px for sample in samples] == [99, 201, 150]
    assert [reject.reason for reject in rejects] == ["click_outside_box"] * 2
    assert (
        "position [98.9, 60] (px) lies more than 1 px outside its own box [100, 50, 200, 90] (xyxy, px)"
        in rejects[0].message
    )


def test_of_several_places_one_lies_in_the_box(read):
    drag = [{"action": "mouse_move", "x": 5, "y": 5}, {"action": "left_click_drag", "x": 150, "y": 70}]
    row = {"instruction": "drag it", "screenshot": "small.png", "action": drag}
    assert len(read([{**row, "box": [100, 50, 200, 90]}, {**row, "instruction": "b", "box": [0, 0, 9, 9]}])[0]) == 2
    assert read([{**row, "box": [300, 300, 400, 400]}])[1][0].reason == "click_outside_box"


def test_an_inverted_box_alone_is_a_reject_that_says_which_order_would_fit(read):
    samples, rejects, _ = read([*records(), {**records(points=[(815, 460)])[0], "box": [800, 450, 40, 20]}])
    assert len(samples) == 12 and rejects[0].reason == "empty_box"
    assert "it would fit with box_order xywh" in rejects[0].message


@pytest.mark.parametrize("name", ["bbox", "bbox_2d", "bounding_box", "rect"])
def test_a_box_has_other_names(read, name):
    row = records(points=[(150, 70)])[0]
    box = row.pop("box")
    (sample,), _, _ = read([{**row, name: box}])
    assert sample.box_px == tuple(box) and "renamed_box" in sample.notes
    (reject,) = read([{**row, name: box, "box": box}])[1]
    assert reject.reason == "bad_box" and "both given" in reject.message


def test_a_scroll_of_hundreds_of_screens_is_a_number_in_another_unit(read):
    row = {"instruction": "down", "screenshot": "small.png", "action": {"action": "scroll", "pixels": -300}}
    assert read([row], unit="fraction")[1][0].reason == "unknown_unit"
    (sample,), _, _ = read([{**row, "action": {"action": "scroll", "pixels": -0.5}}], unit="fraction")
    assert sample.actions[0].scroll_px == -360


def test_training_reads_by_the_declared_unit_and_keeps_a_cache_for_each(folder):
    (folder / "dataset.jsonl").write_text(
        "\n".join(map(json.dumps, records("thousand", picture="wide.png", has_box=False)))
    )

    def rows(**declared):
        source = SourceConfig(path=str(folder), kind="computer", **declared)
        data = DataConfig(sources=(source,), eval_fraction=0, cache_dir=str(folder / "cache"))
        return build_rows(data, PromptConfig())

    def call(found):
        return found.train[0].turn.tool_calls[0].arguments["coordinate"]

    undeclared = rows()
    assert call(undeclared) == [222, 394] and "taken_as_px_may_be_thousand: 12" in undeclared.summary()
    assert call(rows(unit="thousand")) == [426, 426]
    assert "taken_as_px" not in rows(unit="px").summary()
    (folder / "dataset.jsonl").write_text("\n".join(map(json.dumps, records("fraction"))))
    with pytest.raises(ValueError, match='declare "unit": "fraction"'):
        rows()
    assert call(rows(unit="fraction")) == [639, 639]


@pytest.mark.parametrize("name", ["unit", "box_unit", "box_order"])
def test_other_kinds_have_no_unit(name):
    value = "xywh" if name == "box_order" else "fraction"
    with pytest.raises(ValueError, match=rf"sources\[\].{name} is '{value}' and kind chat"):
        SourceConfig(path="a", kind="chat", **{name: value})
    SourceConfig(path="a", kind="computer", **{name: value})


def test_config_names_the_units_that_are_known():
    for unit in UNIT_NAMES:
        assert SourceConfig(path="a", kind="computer", unit=unit, box_unit=unit).unit == unit
    with pytest.raises(ValueError, match="unit"):
        SourceConfig(path="a", kind="computer", unit="norm")


@given(st.data())
def test_evidence_is_counted_in_any_order(data):
    """So that several processes may read a file: the judgement is of the counts alone."""
    screen, way = Screen(*SMALL), Declared().way
    places = data.draw(st.lists(st.tuples(st.floats(0, 1500), st.floats(0, 1500)), max_size=8))
    found = [weigh([place], None, screen, "", way) for place in places]
    cut = data.draw(st.integers(0, len(found)))

    def verdict(counts):
        try:
            return dict(judge(counts, Declared(), "f"))
        except ValueError as error:
            return str(error)

    assert verdict(Counter(found)) == verdict(Counter(found[cut:]) + Counter(found[:cut]))


@given(st.tuples(st.floats(2, 1279), st.floats(2, 719)), st.sampled_from(WAYS))
def test_what_was_written_in_a_way_fits_it(place, way):
    """Whatever the unit of the click and the unit and order of the box around it."""
    screen = Screen(*SMALL)
    box = [max(place[0] - 9, 0), max(place[1] - 9, 0), min(place[0] + 9, 1280), min(place[1] + 9, 720)]
    corners = [*screen.to_unit(*box[:2], way.box_unit), *screen.to_unit(*box[2:], way.box_unit)]
    if way.box_order == "xywh":
        corners[2:] = [corners[2] - corners[0], corners[3] - corners[1]]
    point = screen.to_unit(*place, way.unit)
    evidence = weigh([point], corners, screen, "", way)
    is_tiny = any(
        unit != "fraction" and max(numbers) <= 1 for unit, numbers in ((way.unit, point), (way.box_unit, corners))
    )
    assert is_tiny or (evidence.fault == "" and way in evidence.ways())


@pytest.mark.parametrize(
    ("value", "is_stated"),
    [
        (xy(3, 4), False),
        ("pyautogui.click(300, 80)", False),
        ({"action": "type", "text": "the <point> is that start_box = 3"}, True),  # asked for: better once too often
        ([{"action": "click", "x": 1, "y": 1}, {"name": "computer_use", "arguments": {}}], True),
        ({"next_action": {"name": "computer_use", "arguments": {}}}, True),
        ({"action": "left_click", "coordinate": [0.5, 0.5]}, False),
        ({"action": "click", "coordinate": [5, 5]}, False),
        ({"bbox_2d": [1, 2, 3, 4]}, True),
        (3, False),
        (None, False),
        (math.nan, False),
    ],
)
def test_forms_in_thousandths_are_known_by_their_words(value, is_stated):
    assert bool(thousandths_form(value)) == is_stated


# What else reads such files


def thirds(folder):
    """Three screens in fractions, boxes and hit boxes too."""
    rows = records("fraction")[:3]
    for row in rows:
        row["details"] = {"hit_boxes": [row["box"]]}
    (folder / "dataset.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_an_evaluation_reads_by_the_unit_of_the_command_or_of_the_config(folder):
    thirds(folder)
    with pytest.raises(ValueError, match='3 of 3 .* declare "unit": "fraction"'):
        read_tasks(folder)
    tasks = read_tasks(folder, declared=Declared("fraction"))
    assert tasks.tasks[0].actions[0].point_px == pytest.approx(POINTS[0], abs=0.1)
    assert tasks.tasks[0].hit_boxes_px[0] == pytest.approx(tasks.tasks[0].box_px) and tasks.about["unit"] == "fraction"
    source = SourceConfig(path=str(folder), kind="computer", unit="fraction")
    config = Config(
        name="a",
        model=ModelConfig(path="tiny"),
        data=DataConfig(sources=(source,), eval_fraction=0.5, cache_dir=str(folder / "cache")),
    )
    suite = suites.find_suite("clicks")
    for options in (Options(data=folder), Options(data=folder, unit="fraction"), Options()):
        found = suite.read(config, options, print).tasks
        assert found and all(task.box_px[2] - task.box_px[0] == pytest.approx(45, abs=0.3) for task in found)
    with pytest.raises(ValueError, match='declare "unit": "fraction"'):
        suite.read(config, Options(data=folder, unit="thousand"), print)
    # In training only the rows are at hand.
    rows = build_rows(config.data, PromptConfig())
    assert rows.held_out and len(held_out_screens(rows.held_out)) == len(rows.held_out)


def test_copies_are_made_of_places_in_any_unit_and_of_a_refused_file_nothing_is_written(folder, capsys):
    out = folder / "out"
    assert augment.main([str(thirds(folder)), "--out", str(out), "--copies", "1"]) == 2
    assert (
        'declare "unit": "fraction"' in capsys.readouterr().err.replace("\n", " ")
        and not (out / "dataset.jsonl").exists()
    )
    assert augment.main([str(folder), "--out", str(out), "--copies", "1", "--unit", "fraction", "--json"]) == 0
    originals = [item for item in read_samples(out) if "augmented" not in item.details]
    assert [item.actions[0].point_px for item in originals] == POINTS[:3]


def test_a_folder_to_annotate_holds_pixels(folder):
    with pytest.raises(ValueError, match="3 of 3 .*numbers below 1.* marked here is in pixels"):
        SampleFolder(thirds(folder))


@pytest.mark.parametrize(("declared", "at"), [({"unit": "thousand"}, (818, 460)), ({"unit": "px"}, (639, 639))])
def test_click_and_box_are_drawn_where_they_are_taught(folder, capsys, declared, at):
    """By two ways: the place from the row's call, the box from the file. A wrong unit shows."""
    rows = records("thousand", has_box=False, points=[(818, 460)])
    rows[0]["box"] = [624, 625, 659, 653] if declared["unit"] == "thousand" else [629, 629, 649, 649]
    rows[0]["instruction"] = "press <OK>"
    (folder / "dataset.jsonl").write_text(json.dumps(rows[0]))
    source = {"path": str(folder), "kind": "computer", **declared}
    settings = [f"data.sources={json.dumps([source])}", f"data.cache_dir={folder}/cache", "data.eval_fraction=0"]
    page = folder / "samples.html"
    arguments = ["--config", "configs/computer_use_tiny.json", "--html", str(page), "--rows", "1"]
    settings += ["vision.max_tokens_per_image=1024", "vision.max_row_tokens=8192"]
    assert show.main([*arguments, *(part for one in settings for part in ("--set", one))]) == 0
    assert "click and box on 1 pictures" in capsys.readouterr().out
    text = page.read_text(encoding="utf-8")
    marks = text[text.index("Where 1 rows") : text.index("Grey text")]
    assert marks.count("<circle") == 3 and marks.count("<rect") == 2 and "press &lt;OK&gt;" in marks
    x, y = (float(re.search(f'{name}="([0-9.]+)"', marks).group(1)) for name in ("cx", "cy"))
    assert (x, y) == pytest.approx(at, abs=0.7)
    x1, y1, width, height = (
        float(re.search(f' {name}="([0-9.]+)"', marks).group(1)) for name in ("x", "y", "width", "height")
    )
    assert x1 - 1 <= x <= x1 + width + 1 and y1 - 1 <= y <= y1 + height + 1


def test_conversations_that_click_are_drawn_without_a_box():
    picture = Picture.from_image(Image.new("RGB", SMALL))
    drag = ToolCall(
        "computer_use", {"action": "left_click_drag", "start_coordinate": [0, 500], "coordinate": [250, 500]}
    )
    call = ToolCall("computer_use", {"action": "left_click", "coordinate": [1250, 3]})
    request = Request("You act.", (), (), Observation("Drag it.", (picture,)))
    mark = mark_of(Row("a", request, Turn("", (drag, call)), "chat.jsonl:1"))
    assert mark.points_px == ((0, 360), (320, 360)) and mark.box_px is None
    assert mark.words == "Drag it. (not on the grid, not drawn: [[1250, 3]])"
    assert mark_of(Row("a", request, Turn("", text="I see it."), "chat.jsonl:1")) is None
    assert marks_html([mark]).count("<line") == 1 and marks_html([]) == ""
