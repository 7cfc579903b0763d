"""A world in a file of its own (`lamps_world.py`) is played, reported, compared, scored again, trained on, swept and
studied like those of the package, which names none of it."""

import json
import shutil
from pathlib import Path

import pytest
from lamps_world import OPEN
from made_up_study import write_cell
from tiny_run import save_config, save_dataset, save_tiny_checkpoint, tiny_config

import eval as evaluation
import train
from qwenvl_agent.cli import ablate, report, rescore, sweep
from qwenvl_agent.config import EvalConfig
from qwenvl_agent.evaluation import results
from qwenvl_agent.evaluation.suites import evaluate, find_suite
from qwenvl_agent.studies.arms import evaluation_command, is_evaluated, load_ablation
from qwenvl_agent.studies.cells import load_sweep

FILE = Path(__file__).parent / "lamps_world.py"
WORLD, BARE_WORLD = f"{FILE}:make_world", f"{FILE}:make_bare_world"


def run(*arguments) -> int:
    return evaluation.main([str(argument) for argument in arguments])


def play(directory: Path, *policies: str) -> list[Path]:
    for policy in policies:
        assert run("--policy", policy, "--suite", WORLD, "--episodes", 12, "--out", directory / policy) == 0
    return [directory / policy for policy in policies]


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    return play(tmp_path_factory.mktemp("lamps"), "oracle", "greedy", "random", "noisy_oracle")


def metrics_of(directory: Path) -> dict:
    return json.loads((directory / "metrics.json").read_text())


def test_it_is_played_and_measured_in_its_own_words(played):
    oracle, greedy, *_ = map(metrics_of, played)
    assert oracle["about"]["suite"] == "lamps" and oracle["about"]["world_from"] == WORLD
    assert oracle["about"]["world"] == {"num_lamps": 4, "max_turns": 6}
    assert oracle["about"]["seeds"] == {"start": 110, "count": 12, "set": "report"}
    names = ("success_rate", "optimal_rate", "path_efficiency", "thought_consistency", "harm_rate", "lamps_pressed")
    assert [oracle[name]["value"] for name in names] == [1, 1, 1, 1, 0, 2]
    assert greedy["harm_rate"]["value"] > 0 and greedy["thought_coverage"]["value"] == 0
    assert greedy["end_reasons"].keys() == {"done_ok", "solved"}
    assert OPEN == []  # every environment was closed


def test_it_is_reported_compared_and_scored_again(played, tmp_path, capsys):
    assert report.main([*map(str, played), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    for words in (
        "lamps: episodes",
        "lamps lit: 2 of 2",
        "lit, and others too",
        "wrong lamps: lamp 0",
        "lamps pressed",
    ):
        assert words in page, words
    assert 'class="mark"' in page and "press: lit already" in page and "the oracle here" in page
    assert run("--compare", *played[:2], "--json") == 0
    test = json.loads(capsys.readouterr().out.partition("\n")[2])["tests"][0]
    assert test["num_cases"] == 12 and test["only_first"] > test["only_second"] == 0
    copy = shutil.copytree(played[1], tmp_path / "copy")
    assert rescore.main([str(copy)]) == 0
    assert metrics_of(copy) == metrics_of(played[1])


def test_a_result_whose_world_is_gone_says_what_to_do(played, tmp_path, capsys):
    copy = shutil.copytree(played[0], tmp_path / "copy")
    text = (copy / "metrics.json").read_text().replace("lamps_world.py", "gone.py")
    (copy / "metrics.json").write_text(text)
    assert rescore.main([str(copy)]) == 2
    error = capsys.readouterr().err
    assert "its suite 'lamps' was found as" in error and "there is no file" in error and "about.world_from" in error


def test_its_counterfactual_and_its_rules_are_its_own(tmp_path, capsys):
    options = ["--policy", "oracle", "--suite", WORLD, "--episodes", 5]
    assert run(*options, "--counterfactual", "mission_swapped", "--out", tmp_path / "swapped") == 0
    assert metrics_of(tmp_path / "swapped")["success_rate"]["value"] < 1
    capsys.readouterr()
    for option, said in (
        (
            ["--counterfactual", "notepad_wiped"],
            "does not exist in the world lamps: nothing would be changed; use mission",
        ),
        (["--world", "num_lamps=99"], "num_lamps is 99: nobody could press them"),
        (["--oracle", "max_path=3"], "world lamps has no oracle with settings ['max_path']"),
        (["--rows", "3"], "--rows with --suite lamps: it would change nothing"),
    ):
        assert run(*options, *option) == 2
        assert said in capsys.readouterr().err


class Reader:
    def __init__(self):
        self.batch_sizes, self.policy = [], find_suite(WORLD).world.make_oracle()

    def act(self, requests):
        self.batch_sizes.append(len(requests))
        return self.policy.act(requests)


def test_no_more_environments_are_open_than_it_allows():
    policy = Reader()
    find_suite(WORLD).play(policy, range(7), batch_size=32)
    assert max(policy.batch_sizes) == 3 and OPEN == []


def test_training_plays_its_selection_seeds():
    cfg = EvalConfig(suite=WORLD, episodes=4, step_rows=0, world={"num_lamps": 5})
    result = evaluate(find_suite(WORLD).world.make_oracle(), cfg)
    assert [record.seed for record in result.episodes] == [100, 101, 102, 103]
    assert result.scalars["rollout/success_rate"] == 1 and result.scalars["rollout/lamps_pressed"] == 2
    assert find_suite(WORLD).success(result.scalars) == 1


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run whose config names the world, and its config's file."""
    directory = tmp_path_factory.mktemp("trained")
    checkpoint, data = save_tiny_checkpoint(directory / "base"), save_dataset(directory / "data")
    settings = {"suite": WORLD, "world": {"max_turns": 2}, "episodes": 2, "max_new_tokens": 8}
    config = tiny_config(directory, checkpoint, data, train={"max_steps": 1, "save_every": 1}, eval=settings)
    path = save_config(config, directory / "config.json")
    assert train.main(["--config", str(path)]) == 0
    return config.run_dir, path


def test_a_run_is_trained_and_evaluated_in_it(trained):
    run_dir, _ = trained
    logged = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert logged[-1]["rollout/success_rate"] == 0 and "rollout/lamps_pressed" in logged[-1]
    assert (run_dir / "checkpoints" / "best").resolve().name == "step_000001"
    assert run("--run", run_dir, "--episodes", 2) == 0  # of the config's own suite and rules
    assert metrics_of(run_dir / "eval" / "lamps")["about"]["world"] == {"num_lamps": 4, "max_turns": 2}
    assert run("--run", run_dir, "--suite", "steps", "--rows", 2) == 0
    assert "thought_coverage" in metrics_of(run_dir / "eval" / "steps")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"eval.world": {"num_lamps": 1}}, "eval.world: num_lamps is 1: nobody could press them"),
        ({"eval.episodes": 11}, "eval.episodes is 11 and the world lamps has 10 seeds for choosing `best`"),
        ({"eval.suite": "lamp"}, "suite 'lamp' does not exist: nothing can be evaluated; choose one of steps"),
        ({"eval.suite": "steps"}, "eval.suite is 'steps', which is for eval.py alone"),
    ],
)
def test_a_sweep_over_it_is_checked_before_it_starts(trained, tmp_path, settings, said, capsys):
    grid = {"train.seed": [0, 1]}
    values = {"config": str(trained[1]), "grid": grid, "metric": "rollout/success_rate", "goal": "max"}
    path = tmp_path / "study.json"
    path.write_text(json.dumps(values))
    assert len(load_sweep(path).cells) == 2 and sweep.main([str(path)]) == 0
    assert capsys.readouterr().out.count("train.py") == 2
    path.write_text(json.dumps(values | {"set": settings}))
    assert sweep.main([str(path)]) == 2
    assert said in capsys.readouterr().err


def write_study(trained, directory: Path, **more) -> Path:
    """An ablation of two arms and two training seeds, over a copy of the run's config."""
    base = json.loads(trained[1].read_text()) | {"runs_dir": str(directory / "runs")}
    (directory / "base.json").write_text(json.dumps(base))
    values = {
        "question": "Who presses better?",
        "config": str(directory / "base.json"),
        "set": {"eval.suite": "none", "eval.world": {}},
        "baseline": "native",
        "arms": {"native": {"prompt.format": "native"}, "plain": {"prompt.format": "plain"}},
        "seeds": [0, 1],
        "missions": {"episodes": 8},
        "rows": 8,
    }
    (directory / "study.json").write_text(json.dumps(values | more))
    return directory / "study.json"


def play_cells(study, suite, policies: dict[str, str], changes=("",)) -> None:
    """What train.py and eval.py leave of every cell, played by a baseline for each arm."""
    for cell in study.sweep.cells:
        place = study.places[cell.name]
        write_cell(cell.config, 0.5, seed=place.seed, num_missions=8)
        policy, start = suite.world.make_policy(policies[place.arm]), study.missions.seed_start
        for change in changes:
            records = suite.play(policy, range(start, start + 8), counterfactual=change)
            about = metrics_of(cell.config.run_dir / "eval" / "missions")["about"]
            about |= {"suite": suite.name, "world_from": suite.source, "world": dict(suite.world.rules)}
            about["seeds"] = {"start": start, "count": 8, "set": "report"}
            directory = cell.config.run_dir / "eval" / (change or "missions")
            results.write_result(directory, about, records, suite.metrics(records))


def report_of(path: Path) -> str:
    assert ablate.main([str(path), "--report", "--out", str(path.parent / "report")]) == 0
    assert (path.parent / "report" / "cases.html").exists()
    return (path.parent / "report" / "report.md").read_text()


def test_an_ablation_in_it_has_a_report(trained, tmp_path):
    """The world is the config's, which the file sets to none for the trainings."""
    outcomes, changes = ["success", "progress", "optimal"], ["mission_swapped"]
    path = write_study(trained, tmp_path, outcomes=outcomes, counterfactuals=changes)
    study, suite = load_ablation(path), find_suite(WORLD)
    command = evaluation_command(study, study.sweep.cells[0], "missions")
    assert command[command.index("--suite") + 1] == WORLD and command[command.index("--seed-start") + 1] == "110"
    play_cells(study, suite, {"native": "oracle", "plain": "greedy"}, ("", *changes))
    assert all(is_evaluated(study, cell, "missions") for cell in study.sweep.cells)
    text = report_of(path)
    assert "lamps lit" in text and "mission swapped" in text and "targets" not in text
    assert "2 of 2 arms, 4 of 4 cells" in text and "native - plain" not in text and "plain - native" in text
    with pytest.raises(
        ValueError, match="counterfactual 'notepad_wiped' does not exist.*use picture_blank, mission_swap"
    ):
        load_ablation(write_study(trained, tmp_path, counterfactuals=["notepad_wiped"]))


def test_a_world_of_a_name_and_an_environment_is_enough(trained, tmp_path):
    assert run("--policy", "random", "--suite", BARE_WORLD, "--episodes", 5, "--out", tmp_path / "random") == 0
    metrics = metrics_of(tmp_path / "random")
    assert metrics["legal_rate"]["n"] == 5 and not {"optimal_rate", "thought_coverage"} & metrics.keys()
    path = write_study(
        trained, tmp_path, missions={"episodes": 8, "suite": BARE_WORLD}, outcomes=["success", "optimal"]
    )
    play_cells(load_ablation(path), find_suite(BARE_WORLD), {"native": "random", "plain": "random"})
    text = report_of(path)
    assert "not one mission tells them apart" in text and "Thought and action" not in text
    assert 'does not tell what "turns as good as the oracle\'s" rests on' in text
