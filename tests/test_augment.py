"""Screenshots in other views: every position exact, the target always inside, nothing untrue said, the split honest."""

import json
import random

import numpy as np
import pytest
from PIL import Image, ImageDraw

from qwenvl_agent.cli import augment as augment_clicks
from qwenvl_agent.computer import Action
from qwenvl_agent.config import DataConfig, PromptConfig, SourceConfig
from qwenvl_agent.curation.augment import Policy, View, augment, draw_span, hindrances, relight, seen_as
from qwenvl_agent.data.dataset import build_rows
from qwenvl_agent.data.readers.computer import Sample, read_samples

WIDTH, HEIGHT = 400, 200
BOX = [280, 70, 320, 90]
COLOUR = (200, 30, 40)
CLICK = {
    "id": "a",
    "instruction": "Click Search.",
    "screenshot": "a.png",
    "action": {"type": "click", "x": 300, "y": 80, "reasoning": "I click Search."},
    "box": BOX,
}


def screenshot(background: str = "white") -> Image.Image:
    image = Image.new("RGB", (WIDTH, HEIGHT), background)
    ImageDraw.Draw(image).rectangle([BOX[0], BOX[1], BOX[2] - 1, BOX[3] - 1], fill=COLOUR)
    return image


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    screenshot().save(tmp_path / "in" / "a.png")
    screenshot("beige").save(tmp_path / "in" / "b.png")
    return tmp_path


@pytest.fixture
def write(folder):
    def write(*records) -> list[Sample]:
        lines = [json.dumps(record, ensure_ascii=False) for record in records]
        (folder / "in" / "dataset.jsonl").write_text("\n".join(lines), encoding="utf-8")
        return list(read_samples(folder / "in"))

    return write


def run(folder, *options: str) -> int:
    return augment_clicks.main([str(folder / "in"), "--out", str(folder / "out"), *options])


def red_box(image: Image.Image) -> list[int]:
    """Where the button is seen: x1, y1, x2, y2 of its colour."""
    close = np.abs(np.asarray(image, dtype=int) - COLOUR).max(axis=2) < 40
    ys, xs = close.nonzero()
    return [int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1]


def test_positions_follow_a_view_exactly():
    half = View((200, 50, 400, 150), (100, 50))
    assert half.point(300, 80) == (50, 15) and half.box((280, 70, 320, 90)) == (40, 10, 60, 20)
    uneven = View((1, 1, 4, 8), (2, 14))
    assert uneven.factors == (2 / 3, 2) and uneven.point(4, 8) == (2, 14) and uneven.point(1, 1) == (0, 0)


def test_the_region_that_a_click_reaches_moves_too_and_is_cut_at_the_views_sides(write):
    """Half of the crop's size: (280, 70) is at (180, 20) of the crop, so at (90, 10); what lies outside is gone."""
    (sample,) = write(CLICK | {"details": {"hit_boxes": [BOX, [0, 0, 100, 200], [295, 190, 400, 200]]}})
    copy = seen_as(sample, View((100, 50, 300, 200), (100, 75)), screenshot(), 1)
    assert copy.details["hit_boxes"] == [[90, 10, 100, 20], [97.5, 70, 100, 75]]
    assert copy.box_px == (90, 10, 110, 20) and sample.details["hit_boxes"][0] == BOX


def test_lengths_of_a_scroll_follow_the_side_that_they_go_along():
    view = View((0, 0, 400, 200), (200, 300))
    assert view.action(Action("scroll", scroll_px=-100)) == Action("scroll", scroll_px=-150)
    assert view.action(Action("hscroll", scroll_px=100, x_px=8, y_px=8)) == Action(
        "hscroll", scroll_px=50, x_px=4, y_px=12
    )
    assert view.action(Action("type", text="a")) == Action("type", text="a")


def test_pixels_are_where_positions_say():
    view = View((200, 40, 400, 140), (400, 200))
    assert red_box(view.picture(screenshot())) == list(view.box(tuple(BOX))) == [160, 60, 240, 100]


def test_a_turned_theme_keeps_the_hue():
    pixels = Image.fromarray(np.array([[[255, 255, 255], [0, 0, 0], [200, 30, 40], [10, 20, 90]]], dtype=np.uint8))
    turned = np.asarray(relight(pixels, 1.0, True)).tolist()
    assert turned == [[[0, 0, 0], [255, 255, 255], [225, 55, 65], [165, 175, 245]]]
    assert np.asarray(relight(pixels, 0.5, False)).tolist() == [[[128] * 3, [0] * 3, [100, 15, 20], [5, 10, 45]]]
    assert relight(pixels, 1.0, False) is pixels


def test_a_part_of_a_side_holds_what_it_must():
    rng = random.Random(0)
    spans = [draw_span(rng, 30, 50, 100, 0.4) for _ in range(500)]
    assert all(0 <= start <= 30 and 50 <= end <= 100 and end - start >= 40 for start, end in spans)
    assert min(end - start for start, end in spans) == 40 and len({start for start, _ in spans}) > 25
    assert {draw_span(rng, 0, 100, 100, 0.4) for _ in range(9)} == {(0, 100)}


def test_every_copy_shows_its_target_whole(write):
    (sample,) = write(CLICK)
    policy = Policy(ways=("crop", "scale"), least_part=0.1, scales=(0.5, 2.0))
    made, notes = augment(sample, 50, policy, seed=1)
    assert len(made) == 50 and not notes
    for copy in made:
        found, box = red_box(copy.picture.image), copy.box_px
        assert all(abs(a - b) <= 1 for a, b in zip(found, box, strict=True)), (found, box)
        x, y = copy.screen.to_pixel(*copy.actions[0].point_px)
        assert box[0] <= x < box[2] and box[1] <= y < box[3]
    assert len({copy.seen for copy in made}) == 50


def test_small_elements_are_hit_after_rounding(write):
    (sample,) = write({**CLICK, "box": [300, 80, 301, 81]})
    made, notes = augment(sample, 40, Policy(ways=("scale",), scales=(0.3, 0.9)), seed=0)
    assert made and len(made) + notes.count("not_copied_element_too_small") == 40
    for copy in made:
        x, y = copy.screen.to_pixel(*copy.actions[0].point_px)
        assert copy.box_px[0] <= x < copy.box_px[2] and copy.box_px[1] <= y < copy.box_px[3]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"instruction": "Click the button at the top left."}, "not_cropped_says_where"),
        ({"instruction": "Open the 2nd result"}, "not_cropped_says_where"),
        ({"instruction": "点击左上角的按钮。"}, "not_cropped_says_where"),
        ({"instruction": "点击第三个按钮。"}, "not_cropped_says_where"),
        ({"instruction": "마지막 버튼을 눌러 주세요."}, "not_cropped_says_where"),
        ({"instruction": "“검색” 오른쪽의 버튼"}, "not_cropped_says_where"),
        ({"action": {**CLICK["action"], "reasoning": "It is below the title."}}, "not_cropped_says_where"),
        ({"history": ["x"]}, "not_cropped_has_history"),
        ({"episode_id": "e", "step": 0}, "not_cropped_has_history"),
        ({"action": {"type": "type", "text": "cat"}, "box": None}, "not_cropped_has_no_place"),
        ({"instruction": "Click the white button."}, "not_relit_says_light"),
        ({"instruction": "点击深色按钮。"}, "not_relit_says_light"),
        ({"instruction": "회색 버튼을 눌러 주세요."}, "not_relit_says_light"),
    ],
)
def test_what_would_become_untrue_is_not_done_and_counted(write, change, reason):
    (sample,) = write({**CLICK, **change})
    made, notes = augment(sample, 6, Policy(), seed=0)
    assert len(made) == 6 and notes == [reason]
    whole = [0, 0, WIDTH, HEIGHT]
    shown = [copy.details["augmented"] for copy in made]
    if reason.startswith("not_cropped"):
        assert all(view["crop"] == whole for view in shown) and any("light" in view for view in shown)
    else:
        assert not any("light" in view or "is_turned" in view for view in shown)
        assert any(view["crop"] != whole for view in shown)


@pytest.mark.parametrize(
    "text", ["Click Search.", "点击红色按钮。", "검색 버튼을 눌러 주세요.", "Open Copyright", "赤"]
)
def test_other_words_hinder_nothing(write, text):
    (sample,) = write({**CLICK, "instruction": text})
    assert hindrances(sample) == {}


def test_nothing_to_change_gives_no_copy(write):
    (sample,) = write({**CLICK, "history": ["x"]})
    assert augment(sample, 3, Policy(ways=("crop",)), seed=0) == (
        [],
        ["not_cropped_has_history", "not_copied_nothing_to_change"],
    )


def test_the_folder_says_where_copies_are_from_and_keeps_the_split(write, folder, capsys):
    other = {**CLICK, "id": "b", "screenshot": "b.png"}
    test = {**CLICK, "id": "t", "screenshot": "b.png", "split": "test", "instruction": "Search!"}
    write(CLICK, {**CLICK, "box": [1]}, other, test)
    assert run(folder, "--copies", "3", "--json") == 0
    manifest = json.loads(capsys.readouterr().out)
    assert (manifest["samples"], manifest["copies"]) == (3, 6)
    assert manifest["rejects"] == {"bad_box": 1} and manifest["notes"] == {"not_copied_test": 1}
    samples = list(read_samples(folder / "out"))
    assert [s.id for s in samples] == ["a", "a~1", "a~2", "a~3", "b", "b~1", "b~2", "b~3", "t"]
    keys = [s.split_key for s in samples]
    assert len(set(keys[:4])) == 1 and len(set(keys[4:])) == 1 and keys[0] != keys[4]
    assert samples[1].details["augmented"]["from"] == "a" and samples[1].details["augmented"]["copy"] == 1
    assert json.loads((folder / "out" / "rejects.jsonl").read_text())["source"].endswith("dataset.jsonl:2")


def test_no_copy_of_a_training_picture_is_held_out(write, folder):
    for i in range(8):
        screenshot(f"#{i}{i}{i}").save(folder / "in" / f"{i}.png")
    write(*({**CLICK, "id": str(i), "screenshot": f"{i}.png"} for i in range(8)))
    assert run(folder, "--copies", "4") == 0
    source = SourceConfig(path=str(folder / "out"), kind="computer")
    data = DataConfig(sources=(source,), cache_dir=str(folder / "cache"), eval_fraction=0.3)
    rows = build_rows(data, PromptConfig())
    sides = [{shown(row, folder / "out") for row in side} for side in (rows.train, rows.held_out)]
    assert len(rows.train) + len(rows.held_out) == 40
    assert sides[0] and sides[1] and not sides[0] & sides[1]


def shown(row, folder) -> str:
    """Id of the sample whose screenshot, or a copy of it, the row shows."""
    lines = (folder / "dataset.jsonl").read_text(encoding="utf-8").splitlines()
    return json.loads(lines[int(row.source.rpartition(":")[2]) - 1])["id"].split("~")[0]


def test_copies_of_an_episode_are_episodes(write, folder):
    steps = [
        {**CLICK, "episode_id": "e", "step": 0},
        {**CLICK, "episode_id": "e", "step": 1, "screenshot": "b.png", "history": ["click"]},
    ]
    write(*steps)
    assert run(folder, "--copies", "2") == 0
    first, one, two, second, *others = read_samples(folder / "out")
    assert [s.episode_id for s in (first, one, two, second, *others)] == ["e", "e~1", "e~2"] * 2
    assert {s.split_key for s in (first, one, two, second, *others)} == {"e"}
    views = [s.details["augmented"] | {"from": ""} for s in (one, two, *others)]
    assert views[:2] == views[2:] and views[0] != views[1]


def test_a_seed_is_a_folder(write, folder):
    write(CLICK)
    hashes = []
    for name, seed in (("x", 0), ("y", 0), ("z", 1)):
        augment_clicks.main([str(folder / "in"), "--out", str(folder / name), "--seed", str(seed), "--json"])
        hashes.append(json.loads((folder / name / "manifest.json").read_text())["sha256"])
    assert hashes[0] == hashes[1] != hashes[2]


def test_faults_of_the_user_are_told(write, folder, capsys):
    write(CLICK)
    for options, message in (
        (["--copies", "0"], "copies is 0"),
        (["--least-part", "1.5"], "least part is 1.5"),
        (["--scales", "2", "1"], "scale is 2.0"),
        (["--turned", "nan"], "share of turned themes is nan"),
    ):
        assert run(folder, *options) == 2 and message in capsys.readouterr().err
    assert augment_clicks.main([str(folder / "in"), "--out", str(folder / "in")]) == 2
    assert "its samples would be lost" in capsys.readouterr().err
    assert augment_clicks.main([str(folder / "gone"), "--out", str(folder / "out")]) == 2
    assert "gone does not exist" in capsys.readouterr().err
    assert run(folder) == 0 and run(folder) == 2 and "--overwrite" in capsys.readouterr().err
    write({**CLICK, "box": [1]})
    assert run(folder, "--overwrite") == 2 and "no row gave a sample" in capsys.readouterr().err


def test_views_are_only_what_was_asked(write):
    (sample,) = write(CLICK)
    made, _ = augment(sample, 5, Policy(ways=("theme",), turned=1.0), seed=0)
    assert all(copy.box_px == sample.box_px and copy.actions == sample.actions for copy in made)
    assert all(copy.details["augmented"]["is_turned"] for copy in made)
    with pytest.raises(ValueError, match="way \\['spin'\\] is no change"):
        Policy(ways=("spin",))
