import csv
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_up_study import MISSION_SEED, write_cell
from PIL import Image

from qwenvl_agent.cli import ablate as script
from qwenvl_agent.config import load_config
from qwenvl_agent.evaluation.suites import find_suite
from qwenvl_agent.evaluation.token_scores import split_values
from qwenvl_agent.formats import FORMATS, Span
from qwenvl_agent.schema import Observation, Request, Step, Tool, ToolCall, Turn
from qwenvl_agent.statistics import mcnemar_exact
from qwenvl_agent.studies import ablation, paired
from qwenvl_agent.studies.arms import evaluation_command, is_evaluated, load_ablation
from qwenvl_agent.studies.cells import changed_keys
from qwenvl_agent.studies.fairness import differences, prompt_differences, prompt_facts
from qwenvl_agent.worlds import make_env, make_oracle, make_world
from qwenvl_agent.worlds.safari.counterfactuals import FROM_TURN, ChangedNotepad, corrupt, swap_mission

REPOSITORY = Path(__file__).parent.parent
WORLD = {"width": 20, "height": 20, "num_trees": 48, "num_animals": 10, "max_turns": 12, "tile_px": 16}
SKILLS = {"native": 0.8, "plain": 0.3}


@pytest.fixture
def write(tmp_path):
    """Function from keys to the path of an ablation's file: native and plain, two training seeds, twelve missions."""
    values = {"name": "base", "runs_dir": str(tmp_path / "runs"), "model": {"path": "tiny"}}
    values |= {"train": {"max_steps": 8}, "eval": {"world": WORLD}}
    (tmp_path / "base.json").write_text(json.dumps(values))
    arms = {"native": {"prompt.format": "native"}, "plain": {"prompt.format": "plain"}}

    def write_ablation(**keys):
        path = tmp_path / "study.json"
        values = {"question": "Which?", "config": str(tmp_path / "base.json"), "baseline": "native", "arms": arms}
        values |= {"seeds": [0, 1], "missions": {"episodes": 12}, "rows": 12, "counterfactuals": ["notepad_wiped"]}
        path.write_text(json.dumps(values | keys))
        return path

    return write_ablation


def fill(path, *, skip=(), **more):
    """Write every cell of an ablation but those in `skip`; `more` by cell name."""
    study = load_ablation(path)
    for cell in study.sweep.cells:
        place = study.places[cell.name]
        if cell.name not in skip:
            options = {"counterfactuals": {"notepad_wiped": 0.2}} | more.get(cell.name, {})
            write_cell(cell.config, options.pop("skill", SKILLS[place.arm]), seed=place.seed, **options)
    return study


def report_of(path, tmp_path, *options):
    assert script.main([str(path), "--report", "--out", str(tmp_path / "report"), *options]) == 0
    return (tmp_path / "report" / "report.md").read_text()


# the same facts in every prompt


def turns_of_a_game(num_turns=3):
    """(request, turn) of the oracle's game, with all earlier turns as history."""
    env, oracle = make_env("safari", **WORLD), make_oracle("safari", WORLD)
    observation, _ = env.reset(seed=5)
    history = []
    for _ in range(num_turns):
        request = Request(env.system_prompt, env.tools, tuple(history), observation)
        turn = oracle.act([replace(request, history=())])[0].turn
        yield request, turn
        following, _, _, _, info = env.step(turn)
        history.append(Step(observation, turn, tuple(info["results"])))
        observation = following


def test_all_formats_tell_the_model_the_same():
    assert prompt_differences(list(FORMATS), make_world("safari", WORLD)) == []
    for request, turn in turns_of_a_game():
        assert differences(request, turn) == []


def test_the_facts_are_those_of_the_world():
    """Four formats that are wrong alike would not differ."""
    request, turn = list(turns_of_a_game())[-1]
    for fmt in FORMATS.values():
        facts = prompt_facts(request, turn, fmt)
        assert [json.loads(tool)["function"]["name"] for tool in facts.tools] == [tool.name for tool in request.tools]
        assert "declare_done" in facts.rules and "10x10 tiles" in facts.rules and facts.several_calls
        assert facts.turns[-1][1].startswith("<|vision_start|><|image_pad|><|vision_end|>Mission: ")
        assert len(facts.turns) == 3 and len(facts.results) == sum(len(step.results) for step in request.history)
        assert facts.ending == "<|im_end|>" and facts.thought_is_first
        assert facts.thought == ("" if fmt.name == "no_thought" else turn.thought)
        assert [json.loads(call)["name"] for call in facts.calls] == [call.name for call in turn.tool_calls]


class Broken:
    """A format with one method replaced."""

    def __init__(self, fmt, **methods):
        self.fmt = fmt
        vars(self).update(methods)

    def __getattr__(self, name):
        return getattr(self.fmt, name)


def without_last_tool(tools):
    return FORMATS["plain"].instructions(tools[:-1])


def without_descriptions(tools):
    return FORMATS["plain"].instructions([Tool(tool.name, "", tool.parameters) for tool in tools])


def without_several(tools):
    return FORMATS["plain"].instructions(tools).replace("one or more functions", "a function")


def without_plan(tools):
    return FORMATS["plain"].instructions(tools).replace("what you see and plan", "anything")


def thought_last(turn):
    return [
        Span("call", "".join(s.text for s in FORMATS["plain"].render(turn)[1:])),
        Span("thought", f"\nThought: {turn.thought}"),
    ]


def calls_reversed(turn):
    return FORMATS["plain"].render(replace(turn, tool_calls=turn.tool_calls[::-1]))


def other_thought(turn):
    return FORMATS["plain"].render(replace(turn, thought=turn.thought + " Go."))


def no_results(results):
    return FORMATS["plain"].render_results(results[:-1])


@pytest.mark.parametrize(
    ("fact", "methods"),
    [
        ("tools", {"instructions": without_last_tool}),
        ("tools", {"instructions": without_descriptions}),
        ("several_calls", {"instructions": without_several}),
        ("asks_for_thought", {"instructions": without_plan}),
        ("thought", {"render": other_thought}),
        ("thought", {"render": thought_last}),
        ("calls", {"render": calls_reversed}),
        ("results", {"render_results": no_results}),
    ],
)
def test_an_unfair_format_is_found(fact, methods):
    games = [(request, turn) for request, turn in turns_of_a_game(6) if len(turn.tool_calls) > 1 and request.history]
    request, turn = games[0]
    found = differences(request, turn, (FORMATS["native"], Broken(FORMATS["plain"], name="broken", **methods)))
    assert any(sentence.startswith(f"{fact} differs") for sentence in found), found


def test_an_unfair_ablation_is_not_started(write, monkeypatch, capsys):
    whole = FORMATS["plain"].instructions
    monkeypatch.setitem(FORMATS, "plain", Broken(FORMATS["plain"], instructions=lambda tools: whole(tools[:-1])))
    assert script.main([str(write())]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: the arms' prompts do not state the same facts") and "tools" in error


def test_arms_differ_in_what_is_asked_and_in_nothing_else(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    study = load_ablation(Path("scripts/ablations/format.json"))
    configs = {}
    for cell in study.sweep.cells:
        configs.setdefault(study.places[cell.name].seed, []).append(json.loads(json.dumps(to_json(cell.config))))
    for first, *others in configs.values():
        for other in others:
            assert set(changed_keys(first, other)) == {"name", "prompt.format"}
    assert len(configs) == 6 and all(len(cells) == 4 for cells in configs.values())


def to_json(config):
    from qwenvl_agent.config import to_json as plain

    return plain(config)


# the file


def test_cells_come_seed_by_seed_with_paired_seeds(write):
    study = load_ablation(write())
    assert [cell.name for cell in study.sweep.cells] == ["native_seed0", "plain_seed0", "native_seed1", "plain_seed1"]
    last = study.sweep.cells[-1].config
    assert (last.train.seed, last.data.seed, last.prompt.format) == (1, 1, "plain")
    assert last.run_dir == study.sweep.directory / "plain_seed1" and study.sweep.directory.name == "ablation_study"
    assert [cell.name for cell in load_ablation(write(), [1]).sweep.cells] == ["native_seed1", "plain_seed1"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"baseline": "hybrid"}, "baseline 'hybrid' is no arm"),
        ({"arms": {"native": {}}}, "1 arm: there is nothing to compare it with"),
        ({"arms": {"native": {}, "b": {"train.seed": 3}}}, "arm b sets train.seed: arms would not be paired"),
        ({"arms": {"native": {}, "b": {"prompt.fromat": "x"}}}, "unknown key 'prompt.fromat'"),
        ({"arms": {"native": {}, "b": []}}, r"arm b is \[\], which sets nothing"),
        ({"seeds": [0, 0]}, r"seeds is \[0, 0\]: each training seed"),
        ({"seed": [0]}, "unknown key 'seed'.*nearest known key: 'seeds'"),
        ({"counterfactuals": ["wiped"]}, "counterfactual 'wiped' does not exist"),
        ({"constrained": "yes"}, "constrained is 'yes', which is not of type bool"),
        ({"cells_of": "other.json"}, "config beside cells_of: the cells are those of"),
        ({"missions": {"episode": 3}}, "unknown key 'missions.episode'.*'episodes'"),
        ({"rows": "many"}, "rows is 'many', which is not of type int"),
        ({"config": "no/such.json"}, "study.json: no/such.json: No such file"),
    ],
)
def test_a_wrong_file_is_one_message(write, capsys, keys, message):
    path = write(**keys)
    assert script.main([str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    with pytest.raises(ValueError, match=message):
        load_ablation(path)


@pytest.mark.parametrize(
    "path",
    sorted(p for p in (REPOSITORY / "scripts/ablations").glob("*.json") if p.name != "schema.json"),
    ids=lambda path: path.stem,
)
def test_shipped_ablations_load(path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    study = load_ablation(path)
    assert len(study.arms) > 1 and study.question.endswith("?") and set(study.outcomes) <= set(ablation.OUTCOMES)
    script.check_fairness(study)


# what is missing


def test_what_is_missing_and_nothing_else_is_started(write, capsys):
    path = write()
    fill(path, skip=("plain_seed1",))
    study = load_ablation(path)
    (study.sweep.directory / "native_seed1/eval/notepad_wiped/metrics.json").unlink()
    assert script.main([str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["launch"] + ["eval.py"] * 4
    assert "plain_seed1" in lines[0] and "--counterfactual notepad_wiped" in lines[1] and "native_seed1" in lines[1]
    assert script.main([str(path), "--status", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [len(row["evaluated"]) for row in rows] == [3, 3, 2, 0] and rows[3]["state"] == "missing"


def test_results_that_answer_another_question_are_made_again(write):
    path = write()
    fill(path)
    for keys in ({"missions": {"episodes": 13}}, {"missions": {"episodes": 12, "oracle": {"max_path": 4}}}, {}):
        study = load_ablation(write(**keys))
        assert is_evaluated(study, study.sweep.cells[0], "missions") == (keys == {}), keys


def test_commands_of_evaluations_are_understood(write):
    from eval import build_parser

    missions = {"episodes": 3, "counterfactual_episodes": 2, "world": {"max_turns": 5}, "oracle": {"max_path": 4}}
    study = load_ablation(write(missions=missions, constrained=True))
    assert study.tests == ("missions", "steps", "constrained", "notepad_wiped")
    for test in (*study.tests, "picture_blank"):
        command = evaluation_command(study, study.sweep.cells[0], test)
        args = build_parser().parse_args(command[2:])
        assert args.checkpoint == "last" and args.blank_pictures == (test == "picture_blank")
        assert args.counterfactual == ("notepad_wiped" if test == "notepad_wiped" else "")
        assert args.set == (["eval.constrained=true"] if test == "constrained" else [])
        assert args.suite == ("steps" if test == "steps" else "safari")
        assert test == "steps" or args.episodes == (3 if test in ("missions", "constrained") else 2)


def test_another_question_of_the_same_cells(write, tmp_path, capsys):
    path = write(counterfactuals=[])
    fill(path)
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"question": "And held?", "cells_of": path.name, "constrained": True, "rows": 9}))
    study, first = load_ablation(other), load_ablation(path)
    assert study.sweep == first.sweep and study.places == first.places and study.rows == 9
    assert study.question == "And held?" and study.report_dir == first.sweep.directory / "report_other"
    assert first.report_dir == first.sweep.directory / "report"
    assert script.main([str(other)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "steps" not in line]
    assert len(lines) == 4 and all("--set eval.constrained=true" in line for line in lines)  # nothing is trained again
    third = tmp_path / "third.json"
    third.write_text(json.dumps({"question": "And?", "cells_of": "other.json"}))
    with pytest.raises(ValueError, match="whose cells are another file's; name study.json"):
        load_ablation(third)


# statistics


@pytest.mark.parametrize(("b", "c"), [(12, 4), (20, 8), (30, 15), (5, 5), (0, 0), (1, 0)])
def test_flips_of_single_missions_are_mcnemars_test(b, c):
    assert paired.flip_test([1] * b + [-1] * c + [0] * 7) == pytest.approx(mcnemar_exact(b, c))


def test_flips_of_whole_numbers_are_all_flips():
    values = [3, -1, 2, 2, 0, 5]
    signs = np.array(np.meshgrid(*[[-1, 1]] * 6)).reshape(6, -1)
    sums = signs.T @ np.array(values)
    assert paired.flip_test(values) == pytest.approx((np.abs(sums) >= abs(sum(values))).mean())
    # Fisher's sign-flip on Darwin's maize (The Design of Experiments, 1935, section 21): 863 of 32768 sums, one side.
    maize = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]
    assert paired.flip_test(maize) == pytest.approx(2 * 863 / 32768)
    assert paired.flip_test([0.5, 0.25, 0.5]) == pytest.approx(0.25)
    assert paired.least_p_value(6) == 0.03125 == paired.flip_test([2, 3, 1, 4, 2, 1]) and paired.least_p_value(5) > 0.05


def test_two_equal_arms_are_told_apart_in_one_of_twenty_studies_at_most():
    """A/A: no difference but chance; three training seeds, 60 missions of different difficulty."""
    random = np.random.default_rng(0)
    ease = random.random(60)
    trials = [(random.random((3, 60)) < ease).astype(int) - (random.random((3, 60)) < ease) for _ in range(600)]
    rejected = np.mean([paired.flip_test(trial.sum(0)) < 0.05 for trial in trials])
    assert rejected <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 600)
    assert rejected > 0.01  # a test that never rejects would pass too


def test_intervals_over_seeds_hold_what_they_promise():
    """Six training seeds that differ, no difference between the arms: 95 % of the intervals hold 0."""
    random = np.random.default_rng(1)

    def arm():
        return random.random((6, 80)) < 1 / (1 + np.exp(-ease - random.normal(0, 0.7, (6, 1))))

    missed = 0
    for _ in range(300):
        ease = random.normal(0, 1.5, 80)
        interval = paired.crossed_interval(arm().astype(float) - arm())
        missed += not interval.low <= 0 <= interval.high
    assert missed / 300 <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 300)
    assert math.isnan(paired.crossed_interval(np.ones((1, 9))).low)


def test_an_interval_without_chance_between_missions_is_students():
    by_seed = np.array([[0.1], [0.2], [0.6]]) + np.zeros((1, 50))
    interval = paired.crossed_interval(by_seed)
    half = 4.302653 * np.std([0.1, 0.2, 0.6], ddof=1) / math.sqrt(3)
    assert (interval.low, interval.high) == pytest.approx((0.3 - half, 0.3 + half), abs=1e-6)


def test_power_is_that_of_the_test():
    """Connor's number of missions gives McNemar's exact test about the power that was asked for."""
    assert paired.missions_needed(0.1, 0.3) == 234 and paired.missions_needed(0.2, 0.4) == 77
    assert paired.missions_needed(0, 0.3) is None and paired.missions_needed(0.4, 0.3) is None
    random = np.random.default_rng(0)
    outcomes = random.multinomial(234, [0.2, 0.1, 0.7], size=400)
    power = np.mean([mcnemar_exact(b, c) < 0.05 for b, c, _ in outcomes])
    assert 0.72 < power < 0.86
    assert paired.detectable_difference(234, 0.3) == pytest.approx(0.1, abs=0.001)


def test_a_contrast_by_hand(write, tmp_path):
    """Two training seeds, three missions: the arm wins what the baseline loses in 3 of 6 pairs, and loses one."""
    from made_up_study import made_up_episode

    def cell(seed, wins):
        episodes = []
        for i, won in enumerate(wins):
            record = made_up_episode(i, __import__("random").Random(0), 0.5, True)
            record.success = bool(won)
            episodes.append(record)
        return ablation.Cell("c", "a", seed, tmp_path, "done", episodes=episodes)

    arm = {0: cell(0, [1, 1, 1]), 1: cell(1, [1, 0, 1]), 7: cell(7, [1, 1, 1])}
    baseline = {0: cell(0, [0, 0, 1]), 1: cell(1, [0, 1, 1])}
    one = ablation.contrast(arm, baseline, "success", ("arm", "base"))
    assert (one.seeds, one.num_missions, one.only_first, one.only_second) == ((0, 1), 3, 3, 1)
    assert one.difference.value == pytest.approx(1 / 3) == one.over_seeds.value
    assert one.p_models == paired.flip_test([2, 0, 0]) == 1.0 and one.p_arms is None
    assert one.spread == pytest.approx(np.std([1 / 3, 2 / 3], ddof=1))
    assert ablation.contrast({5: arm[7]}, baseline, "success", ("arm", "base")) is None


# the report


def test_a_whole_report(write, tmp_path):
    path = write()
    fill(path)
    text = report_of(path, tmp_path)
    assert "2 of 2 arms, 4 of 4 cells" in text and "12 missions each" in text
    assert "2 training seeds: an exact test over seeds cannot go below p = 0.5" in text
    assert "| plain - native |" in text and "notepad wiped" in text
    study = script.read_study(load_ablation(path))
    with open(tmp_path / "report" / "differences.csv", newline="") as file:
        row = next(csv.DictReader(file))
    one = study.contrasts[0]
    assert float(row["difference_value"]) == pytest.approx(one.first - one.second) and row["p_arms"] == ""
    names = ("arms", "differences", "funnel", "thoughts", "first_errors", "curves", "offline_online")
    for name in names:
        picture = Image.open(tmp_path / "report" / f"{name}.png").convert("RGB")
        assert len(picture.getcolors(maxcolors=1 << 22)) > 20, name
    page = (tmp_path / "report" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(names) and "http" not in page.split("</style>")[1]
    assert "Mission 2000000" in (tmp_path / "report" / "cases.html").read_text()


@pytest.mark.parametrize(("num_arms", "note"), [(2, []), (4, ["below 0.094", "with 7 seeds it could"])])
def test_too_few_seeds_for_the_number_of_arms_are_said(num_arms, note):
    """Six seeds: p >= 2^-5 = 0.031; three times that is above 0.05. Seven: 3 * 2^-6 = 0.047."""
    notes = ablation.unequal_seeds({f"arm{i}": dict.fromkeys(range(6)) for i in range(num_arms)})
    assert len(notes) == bool(note) and all(part in notes[0] for part in note)


def test_constrained_decoding_has_a_table_of_its_own(write, tmp_path):
    path = write(constrained=True)
    plays = {"counterfactuals": {"notepad_wiped": 0.2, "constrained": -0.1}}
    fill(path, native_seed0=plays, native_seed1=plays, plain_seed0=plays)
    text = report_of(path, tmp_path)
    section = text.split("## Constrained decoding")[1].split("## ")[0]
    rows = [line for line in section.splitlines() if line.startswith(("| native |", "| plain |"))]
    study = script.read_study(load_ablation(path))
    loss = {one.arm: one for one in ablation.losses_of_plays(study.by_arm) if one.name == "constrained"}
    assert loss["native"].seeds == (0, 1) and loss["plain"].seeds == (0,)
    assert [row.split("|")[2].strip() for row in rows] == [f"{100 * loss[a].normal:.1f} %" for a in ("native", "plain")]
    assert "the arms have not the same training seeds (native: 0, 1; plain: 0)" in section
    contrast = ablation.constrained_study(study).contrasts[0]
    held = [study.by_arm[arm][0].changed["constrained"][1] for arm in ("plain", "native")]
    wins = [np.mean([record.success for record in records]) for records in held]
    assert contrast.seeds == (0,) and contrast.first - contrast.second == pytest.approx(wins[0] - wins[1])
    assert "constrained" not in text.split("## What success rests on")[1].split("## ")[0]
    first, second = text.split("## What it shows")[1].split("## ")[0].strip().splitlines()
    wins, free = ([f"{100 * mean:.1f} %" for mean in means] for means in (wins, plain_and_native(study)))
    assert first.startswith(f"- Constrained decoding: plain {wins[0]} against native {wins[1]}: ")
    assert second.startswith(f"- Free decoding: plain {free[0]} against native {free[1]}: ")


def plain_and_native(study) -> list[float]:
    """Success in free decoding."""
    contrast = next(one for one in study.contrasts if one.outcome == "success")
    return [contrast.first, contrast.second]


@pytest.mark.parametrize(
    ("options", "note"),
    [
        ({"skip": ("plain_seed1",)}, "plain_seed1 is missing: it is in no figure"),
        ({"skip": ("plain_seed1",)}, "the arms have not the same training seeds (native: 0, 1; plain: 0)"),
        ({"plain_seed1": {"world": {"max_turns": 9}}}, "plain_seed1 was evaluated with another world"),
        ({"plain_seed1": {"num_missions": 9}}, "not played the same missions"),
        ({"plain_seed1": {"dataset_hash": "d2"}}, "not trained on the same data (d1: "),
        (
            {
                "plain_seed1": {"precision": {"trained": "float32", "evaluated": "float32"}},
                "plain_seed0": {"precision": {"trained": "bfloat16", "evaluated": "float32"}},
            },
            "not computed in the same precision (trained in bfloat16, evaluated in float32: plain_seed0; trained in "
            "float32, evaluated in float32: plain_seed1)",
        ),
        ({"plain_seed1": {"max_steps": 9}}, "not trained on the same number of decisions learned from"),
        ({"skip": ("native_seed0", "native_seed1")}, "the baseline native has no cell to compare with"),
    ],
)
def test_what_cannot_be_compared_is_said_and_left_out(write, options, note):
    path = write()
    fill(path, **options)
    study = script.read_study(load_ablation(path))
    assert any(note in said for said in study.notes), study.notes
    assert all(
        one.seeds == ((0,) if "skip" in options or "world" in str(options) else (0, 1)) for one in study.contrasts
    )


def test_one_seed_and_equal_results_claim_nothing(write, tmp_path):
    arms = {"native": {"prompt.format": "native"}, "again": {"prompt.format": "native"}}
    path = write(arms=arms, seeds=[0], counterfactuals=[])
    study = load_ablation(path)
    for cell in study.sweep.cells:
        write_cell(replace(cell.config, name="same", runs_dir=str(tmp_path / cell.name)), 0.5, seed=0)
        (study.sweep.directory).mkdir(parents=True, exist_ok=True)
        (tmp_path / cell.name / "same").rename(cell.config.run_dir)
    text = report_of(path, tmp_path)
    assert "not one mission tells them apart" in text and "one training seed says nothing about that" in text
    assert "no difference to find" in text and "an arm has one training seed" in text


def test_a_report_of_nothing_says_so(write, tmp_path):
    text = report_of(write(), tmp_path)
    assert "Nothing yet" in text and "native_seed0 is missing" in text


# the same arm twice


@pytest.mark.slow
def test_order_and_batch_size_change_no_record():
    """A/A in float32: the tiny base plays the same missions in another order and in other batches."""
    from qwenvl_agent.config import EvalConfig, ModelConfig, PromptConfig, TrainConfig, VisionConfig
    from qwenvl_agent.data.collator import Collator
    from qwenvl_agent.inference.policy import ModelPolicy
    from qwenvl_agent.model.build import build_model, build_processor

    model_cfg = ModelConfig(path="tiny", method="full", dtype="float32", autocast=False)
    vision_cfg = VisionConfig(max_tokens_per_image=100, tiles=10)
    processor, model = build_processor(model_cfg, vision_cfg), build_model(model_cfg, "cpu")
    collator = Collator(processor, FORMATS["native"], PromptConfig(), vision_cfg, TrainConfig())

    def play(seeds, batch_size):
        cfg = EvalConfig(batch_size=batch_size, max_new_tokens=60)
        policy = ModelPolicy(model, processor, collator, collator.fmt, cfg)
        records = find_suite("safari", WORLD | {"max_turns": 3}).play(policy, seeds, batch_size=batch_size)
        return {record.seed: record.to_json() for record in records}

    seeds = range(MISSION_SEED, MISSION_SEED + 5)
    first, second = play(seeds, 5), play(seeds[::-1], 2)
    assert first == second and len({step["text"] for record in first.values() for step in record["steps"]}) > 1


@pytest.mark.slow
def test_in_bfloat16_another_batch_changes_a_token_only_at_a_near_tie():
    """A/A under autocast: greedy answers to the same requests in another order and in other batches. Where one differs,
    the two tokens chosen are the top two there, apart by no more than what bfloat16 leaves of such logits."""
    import torch

    from qwenvl_agent.config import ModelConfig, PromptConfig, TrainConfig, VisionConfig
    from qwenvl_agent.data.collator import Collator
    from qwenvl_agent.inference.decoding import decode
    from qwenvl_agent.model.build import build_model, build_processor
    from qwenvl_agent.model.call import model_inputs

    model_cfg = ModelConfig(path="tiny", method="full", autocast=True)
    vision_cfg = VisionConfig(max_tokens_per_image=100, tiles=10)
    processor, model = build_processor(model_cfg, vision_cfg), build_model(model_cfg, "cpu")
    collator = Collator(processor, FORMATS["native"], PromptConfig(), vision_cfg, TrainConfig())

    def request_of(seed):
        env = make_env("safari", **WORLD)
        return Request(env.system_prompt, env.tools, (), env.reset(seed=seed)[0])

    def answers(requests, batch_size):
        batches = [requests[i : i + batch_size] for i in range(0, len(requests), batch_size)]
        inputs = [model_inputs(collator.encode_prompt(batch)) for batch in batches]
        return [ids for one in inputs for ids in decode(model, one, end_id=-1, max_new_tokens=40)]

    def logits_after(request, ids):
        """(V,) of the next token, in a batch of its own."""
        inputs = model_inputs(collator.encode_prompt([request]))
        more = torch.tensor([ids], dtype=torch.long)
        steps = torch.arange(1, len(ids) + 1)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], more], 1)
        for key, fill in (("attention_mask", 1), ("mm_token_type_ids", 0)):
            inputs[key] = torch.cat([inputs[key], torch.full_like(more, fill, dtype=inputs[key].dtype)], 1)
        last = inputs["position_ids"][..., -1:]
        inputs["position_ids"] = torch.cat([inputs["position_ids"], last + steps], -1)
        with torch.no_grad():
            return model(**inputs, logits_to_keep=1).logits[0, -1].float()

    requests = [request_of(seed) for seed in range(MISSION_SEED, MISSION_SEED + 24)]
    first, second = answers(requests, 24), answers(requests[::-1], 5)[::-1]
    margins = []
    for request, one, other in zip(requests, first, second, strict=True):
        place = next((i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), None)
        if place is None:
            continue
        logits = logits_after(request, one[:place])
        top = logits.topk(2).values
        chosen = logits[[one[place], other[place]]]
        margins.append(float(top[0] - chosen.min()))
        # Four steps of bfloat16 at the size of these logits: 8 bits of mantissa.
        assert margins[-1] <= 4 * 2.0**-8 * float(logits.abs().max()), (place, one[place], other[place])
    print(f"{len(margins)} of {len(requests)} answers differ, first at margins {[round(m, 4) for m in margins]}")
    assert len(margins) < len(requests) / 2


# counterfactuals and the loss of decisions


def test_the_notepad_changes_once_in_the_world_itself():
    oracle = make_oracle("safari", WORLD)
    seeds = range(MISSION_SEED, MISSION_SEED + 6)
    normal = find_suite("safari", WORLD).play(oracle, seeds)
    wiped = find_suite("safari", WORLD).play(oracle, seeds, counterfactual="notepad_wiped")
    changed = [record for record in wiped if record.changed_turn]
    assert changed and all(record.changed_turn == FROM_TURN for record in changed)
    for record in changed:
        same = next(other for other in normal if other.seed == record.seed)
        assert [s.context for s in record.steps[: FROM_TURN - 1]] == [s.context for s in same.steps[: FROM_TURN - 1]]
        assert record.steps[FROM_TURN - 1].context.endswith("(empty)")
        assert not same.steps[FROM_TURN - 1].context.endswith("(empty)")
    env = ChangedNotepad(make_env("safari", **WORLD), corrupt)
    env.reset(seed=0)
    for _ in range(FROM_TURN - 1):
        observation, *_ = env.step(Turn(tool_calls=(ToolCall("update_notepad", {"content": "Map V. Go b0"}),)))
    assert observation.text.endswith("Notepad:\nMap .V Go b5") and corrupt("Map V.") != "Map V."


@pytest.mark.parametrize("language", ["ko", "en", "zh"])
def test_a_swapped_mission_names_another_target_in_the_same_language(language):
    env = make_env("safari", **WORLD | {"languages": [language]})
    for seed in range(5):
        observation, info = env.reset(seed=seed)
        swapped = swap_mission(observation)
        first, rest = swapped.text.split("\n", 1)
        assert first != observation.text.split("\n", 1)[0] and rest == observation.text.split("\n", 1)[1]
        from qwenvl_agent.worlds.safari.missions import read_mission

        names = {animal.name for animal in read_mission(first).targets}
        assert len(names) == len(set(info["goals"])) and not names & set(info["goals"])
        assert swap_mission(observation) == swapped
    assert swap_mission(Observation(observation.text.replace(observation.text.split("\n")[0], "Mission: x"))).text


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=lambda fmt: fmt.name)
def test_argument_values_are_the_same_pieces_in_every_format(fmt):
    calls = (
        ToolCall("update_notepad", {"content": 'move "UP"\n2'}),
        ToolCall("move", {"actions": [{"direction": "UP", "steps": 2}, {"direction": "LEFT", "steps": 1}]}),
        ToolCall("declare_done", {}),
    )
    turn = Turn("Plan UP 2.", calls)
    span = next(span for span in fmt.render(turn) if span.part == "call")
    pieces = split_values(span, turn)
    assert "".join(piece.text for piece in pieces) == span.text
    values = [piece.text for piece in pieces if piece.part == "text"]
    assert values == ['"move \\"UP\\"\\n2', '"UP', "2", '"LEFT', "1"]


def test_rollout_configs_reach_eval(write):
    """The frozen config that a cell trains with is the one that the file says."""
    study = load_ablation(write(set={"eval.temperature": 0.5}))
    assert load_config(write().parent / "base.json").eval.temperature == 0.0
    assert all(cell.config.eval.temperature == 0.5 for cell in study.sweep.cells)


def test_what_cells_need_is_made_once_by_programs_of_this_environment(write, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")  # as where nothing was activated
    made = tmp_path / "made.txt"
    assert Path(script.find_program("accelerate")).parent == Path(sys.executable).parent
    write_once = f"open({str(made)!r}, 'x').write('x')"
    study = load_ablation(write(prepare={str(made): ["python", "-c", write_once]}))
    script.prepare(study)
    script.prepare(study)
    assert made.read_text() == "x"


@pytest.mark.parametrize(
    ("command", "message"),
    [(["no_such_program"], "there is no program no_such_program"), (["python", "-c", "pass"], "was not made")],
)
def test_what_cells_need_and_cannot_have_is_said(write, tmp_path, command, message):
    study = load_ablation(write(prepare={str(tmp_path / "made.txt"): command}))
    with pytest.raises(ValueError, match=message):
        script.prepare(study)
