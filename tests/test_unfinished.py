"""Evaluations that are interrupted and started again."""

import json
import os
import signal
import threading
import time

import pytest
from tiny_run import save_config, save_dataset, save_tiny_checkpoint, tiny_config

import eval as evaluation
from qwenvl_agent.evaluation.unfinished import Unfinished, replaced, set_aside
from qwenvl_agent.records import EpisodeRecord

WORLD = {"width": 20, "height": 20, "num_trees": 48, "num_animals": 10, "max_turns": 4, "tile_px": 16}


def run(*arguments) -> int:
    return evaluation.main([str(argument) for argument in arguments])


def records_of(*seeds) -> list[EpisodeRecord]:
    return [EpisodeRecord(seed=seed, mission=f"Find {seed}: 호랑이") for seed in seeds]


def reopen(directory, **settings) -> tuple[Unfinished, list[str]]:
    said = []
    return Unfinished(directory, EpisodeRecord, {"suite": "safari"} | settings, said.append), said


def test_every_record_is_on_the_disk_when_add_returns(tmp_path):
    unfinished, _ = reopen(tmp_path)
    unfinished.add(records_of(3, 1))
    assert [json.loads(line)["seed"] for line in unfinished.path.read_text(encoding="utf-8").splitlines()] == [3, 1]


def test_it_goes_on_after_a_torn_line(tmp_path):
    unfinished, _ = reopen(tmp_path)
    with unfinished:
        unfinished.add(records_of(3, 1))
    with open(unfinished.path, "a", encoding="utf-8") as file:
        file.write('{"seed": 7, "miss')
    again, said = reopen(tmp_path)
    assert again.kept == records_of(3, 1) and said == [
        f"note: going on with the 2 records that {tmp_path}/unfinished has kept"
    ]
    again.add(records_of(7))
    again.file.close()
    assert reopen(tmp_path)[0].kept == records_of(3, 1, 7)


def test_other_settings_start_afresh_and_say_which(tmp_path):
    unfinished, _ = reopen(tmp_path, world={"width": 20}, policy="a")
    with unfinished:
        unfinished.add(records_of(1))
    (unfinished.picture_dir).mkdir()
    again, said = reopen(tmp_path, world={"width": 30}, policy="a")
    assert again.kept == [] and not again.picture_dir.exists() and not again.path.read_text()
    assert said == [f"note: the unfinished records in {again.directory} are of another world: starting afresh"]


def test_two_processes_do_not_write_into_one_folder(tmp_path):
    unfinished, _ = reopen(tmp_path)
    with unfinished, pytest.raises(ValueError, match="being written by another process"):
        reopen(tmp_path)


def test_an_error_before_the_first_record_leaves_nothing(tmp_path):
    with pytest.raises(KeyError), reopen(tmp_path / "eval" / "safari")[0]:
        raise KeyError
    assert not (tmp_path / "eval" / "safari").exists()


def test_a_result_replaces_what_was_unfinished_and_an_older_result(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "old.png").touch()
    (tmp_path / "metrics.json").touch()
    with reopen(tmp_path)[0] as unfinished:
        unfinished.add(records_of(1))
        unfinished.picture_dir.mkdir()
        (unfinished.picture_dir / "new.png").touch()
    with replaced(tmp_path):
        assert not (tmp_path / "metrics.json").exists() and unfinished.path.exists()
    assert [path.name for path in tmp_path.rglob("*")] == ["pictures", "new.png"]


def test_records_that_are_set_aside_are_not_gone_on_with(tmp_path):
    with reopen(tmp_path)[0] as unfinished:
        unfinished.add(records_of(1))
    assert set_aside(tmp_path) == tmp_path / "failed" and (tmp_path / "failed" / "records.jsonl").exists()
    assert reopen(tmp_path)[0].kept == []


# eval.py


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> list:
    """Words of an evaluation of a random tiny model, greedy, one case at a time."""
    directory = tmp_path_factory.mktemp("tiny")
    settings = {"world": WORLD, "batch_size": 1}
    dataset = save_dataset(directory / "data", 60)
    config = tiny_config(directory, save_tiny_checkpoint(directory / "base"), dataset, eval=settings)
    return ["--model", config.model.path, "--config", save_config(config, directory / "config.json")]


@pytest.fixture(autouse=True)
def ctrl_c():
    """Whoever runs the tests in the background has them ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt_after(path, num_lines: int) -> threading.Thread:
    """A thread that sends this process Ctrl-C as soon as the file has so many lines."""

    def watch():
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if path.exists() and path.read_bytes().count(b"\n") >= num_lines:
                os.kill(os.getpid(), signal.SIGINT)
                return
            time.sleep(0.005)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


@pytest.mark.parametrize(
    "suite", [["--suite", "safari", "--episodes", 12], ["--suite", "steps", "--rows", 12]], ids=["safari", "steps"]
)
def test_interrupted_and_gone_on_with_equals_uninterrupted(model, suite, tmp_path, capsys):
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert run(*model, *suite, "--out", whole) == 0
    unfinished = out / "unfinished" / "records.jsonl"
    thread = interrupt_after(unfinished, 2)
    assert run(*model, *suite, "--out", out) == 130
    thread.join()
    num_kept = len(unfinished.read_text(encoding="utf-8").splitlines())
    error = capsys.readouterr().err
    assert f"{num_kept} records are kept in {out}/unfinished; the same command goes on" in error
    assert not (out / "metrics.json").exists() and 2 <= num_kept < 12
    assert run(*model, *suite, "--out", out) == 0
    assert f"going on with the {num_kept} records" in capsys.readouterr().err
    assert (out / "records.jsonl").read_bytes() == (whole / "records.jsonl").read_bytes()
    ours, expected = (json.loads((folder / "metrics.json").read_text()) for folder in (out, whole))
    assert ours | {"about": 0} == expected | {"about": 0}
    assert {path.name for path in out.rglob("*")} == {path.name for path in whole.rglob("*")}


def test_an_evaluation_in_which_nothing_was_played_fails(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("QWENVL_CHROMIUM", "/no/such/browser")
    out = tmp_path / "out"
    assert run("--policy", "oracle", "--suite", "browser", "--episodes", 2, "--out", out) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "error: all 2 cases ended with an error" in error and "'/no/such/browser', which cannot be run" in error
    assert not (out / "metrics.json").exists() and "Traceback" in (out / "failed" / "records.jsonl").read_text()
