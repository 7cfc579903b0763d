"""Recordings that differ from episode to episode: fonts, phrasings, sizes, typing errors; the oracle acts rightly in each."""

import json
from collections import Counter
from pathlib import Path

import pytest
from source_rows import read_rows

from qwenvl_agent.cli import record
from qwenvl_agent.worlds import make_world
from qwenvl_agent.worlds.recording import record_episode
from qwenvl_agent.worlds.safari.context import read_context
from qwenvl_agent.worlds.variation import check_variations, draw_rules, read_variations

ROOT = Path(__file__).parents[1]
SMALL = {"width": 20, "height": 20, "num_trees": 48, "num_animals": 10, "max_turns": 40, "tile_px": 16}
TEACHER = {"max_path": 4, "max_final_path": 1}
CORRIDOR = f"{ROOT}/tests/corridor_world.py:make_world"


# what a declaration says


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("width=15..17", {15, 16, 17}),
        ("tile_px=16, 24", {16, 24}),
        ("sprites=noto,my/own.png", {"noto", "my/own.png"}),
        ("tell_last=true,false", {True, False}),
        ("ordered=0.25", {0.25}),
        ('sprites={"noto": 3, "fluent": 1, "twemoji": 0}', {"noto", "fluent"}),
        ('tile_px={"16": 1, "24": 1}', {16, 24}),
    ],
)
def test_values_are_drawn_from_what_is_declared(option, values):
    (variation,) = read_variations([option])
    assert {variation.draw(seed) for seed in range(100)} == values
    assert read_variations([f"{variation.name}={json.dumps(variation.to_json())}"])[0].count([]).keys() >= {
        value if isinstance(value, str) else json.dumps(value) for value in values
    }


def test_weights_lists_spans_and_rules_together():
    (weighted,) = read_variations(['sprites={"noto": 3, "fluent": 1}'])
    assert 280 < weighted.count(weighted.draw(seed) for seed in range(400))["noto"] < 320
    (lists,) = read_variations(['languages=[["ko"], ["en", "zh"]]'])
    assert lists.draw(0) in (["ko"], ["en", "zh"]) and set(lists.count([["ko"]])) == {'["ko"]', '["en", "zh"]'}
    (span,) = read_variations(["ordered=0.2..0.7"])
    drawn = [span.draw(seed) for seed in range(200)]
    assert 0.2 <= min(drawn) < 0.25 and 0.65 < max(drawn) <= 0.7
    counts = span.count(drawn)
    assert list(counts)[:2] == ["0.2..0.25", "0.25..0.3"] and sum(counts.values()) == 200
    (wide,) = read_variations(["max_turns=1..100"])
    assert len(wide.count([1, 100])) == 10 and list(wide.count([1, 1, 100]).values()) == [2, *[0] * 8, 1]
    (together,) = read_variations(["width+height=[[15, 20], [30, 40]]"])
    assert draw_rules([together], 3) in ({"width": 15, "height": 20}, {"width": 30, "height": 40})


def test_a_rules_draws_do_not_change_with_what_else_varies():
    alone, both = read_variations(["tile_px=16..64"]), read_variations(["width=15..30", "tile_px=16..64"])
    assert all(draw_rules(both, seed)["tile_px"] == draw_rules(alone, seed)["tile_px"] for seed in range(50))
    assert draw_rules(both, 7) == draw_rules(both, 7) != draw_rules(both, 8)


def test_rules_are_drawn_independently():
    pair = read_variations(["sprites=noto,fluent", "phrasing=usual,more"])
    found = Counter(tuple(draw_rules(pair, seed).values()) for seed in range(400))
    assert len(found) == 4 and min(found.values()) > 70


def test_a_file_declares_the_same(tmp_path):
    (tmp_path / "vary.json").write_text('{"width": "15..30", "sprites": {"noto": 2, "fluent": 1}, "tile_px": [16, 32]}')
    options = ["width=15..30", 'sprites={"noto": 2, "fluent": 1}', "tile_px=16,32"]
    assert read_variations([str(tmp_path / "vary.json")]) == read_variations(options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["width"], "--vary 'width' has no '='"),
        (["gone.json"], "there is no file of distributions to run"),
        (["width=30..15"], r"width=30..15: no range, nothing could be drawn; write the lesser number first"),
        (["width=1,2", "width=3"], "width is given twice: one would be lost"),
        (["width+height=1,2"], "write lists of 2 values, one for each of width, height"),
        (["width+height=1..2"], "a range is of one rule"),
        (["width=[]"], "nothing can be drawn from it; write some values"),
        (['width={"15": 0}'], "weights .0. cannot be drawn by; write numbers above 0"),
    ],
)
def test_what_cannot_be_drawn_from_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        read_variations(options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["widht=15,16"], "--vary widht: the world has no such rule|unknown key"),
        (["height=15"], "height: it is set too"),
        (["num_trees=20,390"], r'at most 60 % of the tiles occupied \(--vary draws {"num_trees": 390} for seed \d+'),
        (["sprites=noto,apple"], "sprites 'apple': no such sheet is shipped"),
    ],
)
def test_what_the_world_refuses_is_refused_for_each_episode(options, message):
    with pytest.raises(ValueError, match=message):
        check_variations(read_variations(options), "safari", SMALL, range(20), fixed=("height",))


# whole recordings


def recorded(out: Path, *options: str) -> dict:
    assert record.main(["--out", str(out), "--json", *options]) == 0
    return json.loads((out / "manifest.json").read_text())


def test_a_varied_recording_is_counted_and_each_row_says_its_rules(tmp_path, capsys):
    vary = ["--vary", "width+height+num_trees=[[12, 12, 10], [24, 24, 60]]", "--vary", "tile_px=16,32"]
    vary += ["--vary", "sprites=noto,fluent", "--vary", "rules=reach,catch"]
    given = ["--episodes", "12", "--set", "num_targets=[1]", "--set", "num_animals=8", *vary]
    manifest = recorded(tmp_path / "a", *given)
    assert manifest["vary"]["tile_px"] == [16, 32] and manifest["solved"] == 12
    assert {sum(counts.values()) for counts in manifest["varied"].values()} == {12}
    assert "width" not in manifest["rules"] and manifest["rules"]["num_animals"] == 8

    lines = [json.loads(line) for line in (tmp_path / "a/dataset.jsonl").read_text().splitlines()]
    rules = {line["episode_id"]: line["rules"] for line in lines}
    assert Counter(str(own["tile_px"]) for own in rules.values()) == manifest["varied"]["tile_px"]
    rows = list(read_rows(tmp_path / "a", "recorded"))
    for line, row in zip(lines, rows, strict=True):
        own = line["rules"]
        assert f"{own['width']}x{own['height']} tiles" in line["system_prompt"]
        assert row.step.observation.pictures[0].width == 10 * own["tile_px"]
        assert ("catch" in [tool.name for tool in row.tools]) == (own["rules"] == "catch")
    first = rules[lines[0]["episode_id"]]["rules"]  # of the manifest's tools; only the others name theirs
    assert {line["rules"]["rules"] for line in lines if "tools" in line} == {"reach", "catch"} - {first}
    assert not any(row.notes for row in read_rows(tmp_path / "a", "safari"))

    recorded(tmp_path / "b", *given, "--workers", "2")
    assert (tmp_path / "a/dataset.jsonl").read_bytes() == (tmp_path / "b/dataset.jsonl").read_bytes()
    capsys.readouterr()


def test_questions_vary_too(tmp_path):
    options = ["--task", "perception", "--set", "tile_px=16", "--set", "languages=en", "--vary", "phrasing=held_out"]
    manifest = recorded(tmp_path / "a", "--episodes", "8", *options, "--vary", "sprites=twemoji,fluent")
    lines = [json.loads(line) for line in (tmp_path / "a/dataset.jsonl").read_text().splitlines()]
    of_sheet = Counter(line["rules"]["sprites"] for line in lines)
    assert of_sheet == {sheet: 8 * count for sheet, count in manifest["varied"]["sprites"].items()}
    assert {"tile", "square"} & {word for line in lines for word in line["mission"].rstrip("?.").split()}


def test_any_worlds_rules_vary(tmp_path):
    manifest = recorded(tmp_path / "a", "--world", CORRIDOR, "--episodes", "8", "--vary", "length=4..6")
    assert list(manifest["varied"]["length"]) == ["4", "5", "6"] and manifest["rules"] == {}
    widths = {row.step.observation.pictures[0].width // 32 for row in read_rows(tmp_path / "a", "recorded")}
    assert widths == {int(length) for length, count in manifest["varied"]["length"].items() if count}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--vary", "max_turns=0..9"],
            'max_turns is 0, below 1: no episode has so many; raise it (--vary draws {"max_turns": 0}',
        ),
        (["--set", "width=15", "--vary", "width=15..20"], "--vary width: it is set too"),
        (["--vary", "speed=1,2"], "speed"),
        (
            ["--world", CORRIDOR, "--vary", "speed=1,2"],
            "has no rule 'speed': nothing would change; it has length (--vary",
        ),
        (["--world", CORRIDOR, "--set", "speed=1"], "has no rule 'speed': nothing would change; it has length"),
    ],
)
def test_nothing_is_written_if_an_episode_cannot_be(tmp_path, capsys, options, message):
    assert record.main(["--out", str(tmp_path / "out"), "--episodes", "40", *options]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_tile_that_is_no_whole_tokens_is_refused(tmp_path, capsys):
    """With the vision settings of the config that is named: a board of its own tiles is always whole."""
    config = {"name": "plain", "model": {"path": "tiny"}, "data": {"sources": [{"path": "x"}]}}
    (tmp_path / "plain.json").write_text(json.dumps(config))
    tiles = ["--episodes", "6", "--set", "width=12", "--set", "height=12", "--set", "num_trees=4"]
    tiles += ["--set", "num_animals=4", "--set", "num_targets=[1]"]
    sizes = ["--vary", "tile_px=24,32,48,64"]
    assert record.main(["--out", str(tmp_path / "a"), "--config", str(tmp_path / "plain.json"), *tiles, *sizes]) == 2
    said = capsys.readouterr().err
    assert "tokens wide at vision.tiles=0: tokens would cut tiles; set vision.tiles=10 in the config" in said
    whole = ["--vary", "tile_px=32,64"]
    recorded(tmp_path / "a", "--config", str(tmp_path / "plain.json"), *tiles, *whole)
    (tmp_path / "plain.json").write_text(json.dumps({**config, "vision": {"tiles": 10}}))
    recorded(tmp_path / "b", "--config", str(tmp_path / "plain.json"), *tiles, *sizes)


# the oracle


@pytest.mark.parametrize(
    "rules",
    [
        {"sprites": "twemoji", "phrasing": "held_out"},
        {"sprites": "noto_mono", "phrasing": "more", "rules": "catch", "tell_last": True, "typos": 0.1},
        {"sprites": "fluent", "phrasing": "held_out", "plain_missions": True, "rules": "catch", "typos": 0.1},
    ],
)
def test_the_oracle_wins_whatever_is_drawn_and_said(rules):
    world = make_world("safari", {**SMALL, "num_targets": [1, 1, 1], **rules})
    counts = Counter[str]()
    for seed in range(12):
        turns, counted = record_episode(world, seed, TEACHER, 0.1)
        counts.update(counted)
        declared = [c.arguments["target"] for t in turns for c in t.turn.tool_calls if c.name == "declare_found"]
        assert all(words in read_context(turns[0].observation.text).mission for words in declared)
    assert counts["solved"] == 12
    assert counts["has_typos"] >= 9 if "typos" in rules else "has_typos" not in counts
