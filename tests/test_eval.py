"""eval.py from the command line on, with a random tiny model."""

import json

import pytest
from tiny_run import save_config, save_dataset, save_tiny_checkpoint, tiny_config

import eval as evaluation

WORLD = {"width": 20, "height": 20, "num_trees": 48, "num_animals": 10, "max_turns": 4, "tile_px": 16}
WORLD_ARGUMENTS = [part for key, value in WORLD.items() for part in ("--world", f"{key}={value}")]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """(config file, checkpoint)"""
    directory = tmp_path_factory.mktemp("tiny")
    checkpoint = save_tiny_checkpoint(directory / "base")
    config = tiny_config(directory, checkpoint, save_dataset(directory / "data"), eval={"world": WORLD})
    return save_config(config, directory / "config.json"), checkpoint


def run(*arguments) -> int:
    return evaluation.main([str(argument) for argument in arguments])


def test_a_baseline_prints_json_alone(tmp_path, capsys):
    out = tmp_path / "oracle"
    assert run("--policy", "oracle", *WORLD_ARGUMENTS, "--episodes", 3, "--out", out, "--json") == 0
    printed = capsys.readouterr().out
    metrics = json.loads(printed)
    assert metrics == json.loads((out / "metrics.json").read_text())
    assert metrics["success_rate"]["n"] == 3 and metrics["about"]["world"].items() >= WORLD.items()
    assert metrics["about"]["seeds"] == {"start": 2_000_000, "count": 3, "set": "report"}
    assert metrics["about"]["prompt_hash"] and metrics["about"]["versions"]["transformers"]
    assert {path.name for path in out.iterdir()} == {"metrics.json", "records.jsonl", "report.html", "pictures"}


def test_the_oracle_plays_with_the_settings_of_its_reference(tmp_path):
    for name, settings in (("usual", ()), ("short", ("--oracle", "max_path=2"))):
        arguments = ("--policy", "oracle", *WORLD_ARGUMENTS, *settings, "--episodes", 2)
        assert run(*arguments, "--out", tmp_path / name, "--seed-start", 0) == 0
    usual, short = (
        [
            len(step["calls"][-1]["arguments"]["actions"])
            for line in (tmp_path / name / "records.jsonl").open()
            for step in json.loads(line)["steps"]
            if step["calls"][-1]["name"] == "move"
        ]
        for name in ("usual", "short")
    )
    assert max(short) <= 2 < max(usual)


def test_a_model_without_training(tmp_path, tiny, capsys):
    config, checkpoint = tiny
    arguments = ["--model", checkpoint, "--config", config, "--format", "plain", "--suite", "safari", "--episodes", 2]
    assert run(*arguments, "--blank-pictures", "--out", tmp_path / "zero", "--seed-start", 0, "--json") == 0
    captured = capsys.readouterr()
    about = json.loads(captured.out)["about"]
    assert about["policy"] == "base, zero-shot, blank" and about["config"]["prompt"]["format"] == "plain"
    assert about["processor"]["max_pixels"] == 16 * 32**2 and about["blank_pictures"] is True
    assert "'training', not for reports" in captured.err.replace("\n", " ")


def test_held_out_rows(tmp_path, tiny, capsys):
    config, checkpoint = tiny
    arguments = ["--model", checkpoint, "--config", config, "--suite", "steps", "--rows", 3]
    assert run(*arguments, "--out", tmp_path / "steps") == 0
    metrics = json.loads((tmp_path / "steps" / "metrics.json").read_text())
    assert metrics["about"]["num_rows"] == 3 and metrics["about"]["dataset_hash"]
    assert metrics["argument_accuracy"]["value"] == 0.0
    assert "arguments" in capsys.readouterr().out


def test_a_trained_run(tmp_path, tiny, capsys):
    import train

    config, checkpoint = tiny
    changes = {"train": {"max_steps": 1, "save_every": 1}, "eval": {"world": WORLD}}
    short = tiny_config(tmp_path, checkpoint, config.parent / "data" / "dataset.jsonl", **changes)
    assert train.main(["--config", str(save_config(short, tmp_path / "run.json"))]) == 0
    assert run("--run", short.run_dir, "--checkpoint", "last", "--suite", "safari", "--episodes", 2) == 0
    metrics = json.loads((short.run_dir / "eval" / "safari" / "metrics.json").read_text())
    assert metrics["about"]["checkpoint"] == "step_000001" and metrics["about"]["dataset_hash"]
    (short.run_dir / "checkpoints" / "best").unlink()
    assert run("--run", short.run_dir, "--suite", "safari", "--episodes", 2, "--out", tmp_path / "no_best") == 0
    assert json.loads((tmp_path / "no_best" / "metrics.json").read_text())["about"]["checkpoint"] == "step_000001"


def test_results_beside_each_other(tmp_path, capsys):
    for policy in ("oracle", "random"):
        run("--policy", policy, *WORLD_ARGUMENTS, "--episodes", 3, "--out", tmp_path / policy)
    capsys.readouterr()
    assert run("--compare", tmp_path / "oracle", tmp_path / "random") == 0
    table = capsys.readouterr().out
    assert "oracle" in table and "random" in table and "McNemar" in table
    assert run("--compare", tmp_path / "oracle", tmp_path / "random", "--json") == 0
    assert json.loads(capsys.readouterr().out)["tests"][0]["num_cases"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run", "runs/nothing"], "holds no checkpoint"),
        (["--run", "runs/nothing", "--format", "plain"], "has its own settings"),
        (["--policy", "oracle", "--checkpoint", "last"], "without --run"),
        (["--policy", "oracle", "--blank-pictures"], "no blank variant"),
        (["--policy", "oracle", "--world", "witdh=20"], "nearest known key: 'width'"),
        (["--policy", "oracle", "--world", "width"], "write key.path=value"),
        (["--policy", "oracle", "--config", "nowhere.json"], "nowhere.json"),
        (
            ["--policy", "oracle", "--suite", "steps"],
            "--policy oracle does not play the suite steps: use --run or --model",
        ),
        (["--model", "no/such/folder", "--episodes", "1"], "cannot be read"),
        (["--compare", "runs/nothing"], "no such file"),
    ],
)
def test_a_users_mistake_is_one_message(arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and message in captured.err and "Traceback" not in captured.err


def test_help_names_every_way(capsys):
    with pytest.raises(SystemExit) as ended:
        run("--help")
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert all(flag in text for flag in ("--run", "--model", "--policy", "--compare", "--blank-pictures", "--json"))
    with pytest.raises(SystemExit) as ended:
        run("--policy", "oracle", "--episodes", "0")
    assert ended.value.code == 2
