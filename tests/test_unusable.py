"""Rows that cannot be used: found when data is read, or replaced and named in a step."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_processor
from PIL import Image
from tiny_run import save_dataset, save_tiny_checkpoint, tiny_config

from qwenvl_agent.config import DataConfig, PromptConfig, SourceConfig, TrainConfig, VisionConfig
from qwenvl_agent.data import unusable
from qwenvl_agent.data.collator import Collator
from qwenvl_agent.data.dataset import Rows, build_rows
from qwenvl_agent.data.unusable import collate, drop_unusable, usable_rows
from qwenvl_agent.formats import FORMATS, Format
from qwenvl_agent.formats.native import Native
from qwenvl_agent.schema import Tool
from train import train


def save_rows(folder: Path, sizes: list[tuple[int, int]], words: dict[int, int] | None = None, turns: int = 1) -> Path:
    """Chat rows with a picture of each size; `words` lengthens the question of some."""
    folder.mkdir(exist_ok=True)
    lines = []
    for i, size in enumerate(sizes):
        pixels = np.random.default_rng(i).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        messages = []
        for turn in range(turns):
            question = f"{'<image>' if turn == 0 else ''}question {turn} of {i}" + " more" * (words or {}).get(i, 0)
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": f"answer {i}"}]
        lines.append(json.dumps({"id": f"r{i}", "images": [f"{i}.png"], "messages": messages}))
    (folder / "data.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "data.jsonl"


def read(path: Path, **options) -> Rows:
    source = SourceConfig(path=str(path), kind="chat")
    history = options.pop("history_steps", 0)
    cfg = DataConfig(sources=(source,), cache_dir=str(path.parent / "cache"), **{"eval_fraction": 0.0} | options)
    return build_rows(cfg, PromptConfig(history_steps=history))


def collator(history_steps: int = 0, **vision) -> Collator:
    prompt = PromptConfig(history_steps=history_steps)
    budget = VisionConfig(**{"max_tokens_per_image": 64, "min_tokens_per_image": 4, "max_row_tokens": 400} | vision)
    return Collator(tiny_processor(1), FORMATS["native"], prompt, budget, TrainConfig())


def short(row_id: str) -> str:
    """Without the line, by which the reader tells conversations of one name apart."""
    return re.sub(r"#\d+", "", row_id)


def ids(rows) -> list[str]:
    return [short(rows[i].id) for i in range(len(rows))]


def test_what_does_not_fit_is_dropped_and_counted_with_its_place(tmp_path):
    path = save_rows(tmp_path / "data", [(64, 64), (64, 64), (3000, 16), (64, 64)], words={1: 900})
    rows = drop_unusable(read(path), collator())
    assert ids(rows.train) == ["r0/0", "r3/0"] and rows.report["num_train_rows"] == 2
    about = rows.report["sources"][0]
    assert about["num_unusable"] == 2 and sorted(about["unusable_reasons"].values()) == [1, 1]
    lines = Path(about["unusable_path"]).read_text(encoding="utf-8").splitlines()
    messages = [json.loads(line)["message"] for line in lines]
    assert [m.partition(": ")[0] for m in messages] == [f"{path}:3", f"{path}:2"]
    assert "a picture of 3000x16 px takes" in messages[0] and "vision.max_row_tokens is 400" in messages[1]
    assert "not used 1 x" in rows.summary() and about["unusable_path"] in rows.summary()


def test_a_history_that_is_too_long_is_reduced_or_under_error_not_used(tmp_path):
    path = save_rows(tmp_path / "data", [(128, 128)] * 2, words={1: 20}, turns=5)
    kept = ["r0/0", "r0/1", "r0/2", "r0/3", "r0/4", "r1/0", "r1/1", "r1/2", "r1/3", "r1/4"]
    assert ids(drop_unusable(read(path, history_steps=4), collator(4, max_row_tokens=220)).train) == kept
    dropped = drop_unusable(read(path, history_steps=4), collator(4, max_row_tokens=220, reduce="error"))
    encode = collator(4, max_row_tokens=220, reduce="error")
    whole = read(path, history_steps=4).train
    fits = []
    for i in range(len(whole)):
        try:
            encode.sample(whole[i])
            fits.append(short(whole[i].id))
        except ValueError:
            pass
    assert 0 < len(fits) < 10 and ids(dropped.train) == fits
    over = drop_unusable(read(path, history_steps=4), collator(4, max_tokens_per_row=63, max_row_tokens=9999))
    assert ids(over.train) == [name for name in kept if not name.endswith("/0")]  # only the first shows the picture


def test_the_second_start_counts_no_tokens(tmp_path, monkeypatch):
    path = save_rows(tmp_path / "data", [(64, 64)] * 3, words={1: 900})
    first = drop_unusable(read(path), collator())
    again = collator()
    monkeypatch.setattr(again, "sample", None)
    assert ids(drop_unusable(read(path), again).train) == ids(first.train) == ["r0/0", "r2/0"]
    wider = collator(max_row_tokens=9999)
    assert len(drop_unusable(read(path), wider).train) == 3


def test_what_was_found_is_kept_by_what_prompt_and_format_make_of_a_row(monkeypatch):
    def key(fmt: Format = FORMATS["native"], **vision) -> str:
        return unusable.digest_of(
            Collator(tiny_processor(1), fmt, PromptConfig(), VisionConfig(**vision), TrainConfig())
        )

    same = key()
    assert key() == same and len({same, key(FORMATS["plain"]), key(max_row_tokens=99)}) == 3

    class Wordy(Native):
        def instructions(self, tools: Sequence[Tool]) -> str:
            return "Mind the step."

    assert key(Wordy()) != same
    monkeypatch.setattr(unusable, "VERSION", unusable.VERSION + 1)
    assert key() != same


def test_no_row_that_fits_is_an_error(tmp_path):
    path = save_rows(tmp_path / "data", [(64, 64)] * 3, words={0: 900, 1: 900, 2: 900})
    with pytest.raises(ValueError, match=r"no row can be used.*\n.*data.jsonl:[123]: .*max_row_tokens is 400"):
        drop_unusable(read(path), collator())


def damage(path: Path) -> None:
    """One byte of the pixels, and the time of change as it was."""
    stat = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_whole_pictures_are_looked_at_if_asked(tmp_path):
    path = save_rows(tmp_path / "data", [(64, 64)] * 3)
    damage(path.parent / "1.png")
    assert ids(read(path, check_pictures="header").train) == ["r0/0", "r1/0", "r2/0"]
    rows = read(path)  # auto: the file is short
    assert ids(rows.train) == ids(read(path, check_pictures="whole").train) == ["r0/0", "r2/0"]
    (reason,) = rows.report["sources"][0]["reject_reasons"]
    assert reason.startswith("_ is not a readable picture (the chunk b_ at byte _ is damaged")
    reject = json.loads(Path(rows.report["sources"][0]["rejects_path"]).read_text(encoding="utf-8"))
    assert reject["source"] == f"{path}:2" and "1.png' is not a readable picture" in reject["message"]


def test_a_picture_replaced_by_one_of_the_same_byte_count_is_noticed(tmp_path):
    path = save_rows(tmp_path / "data", [(64, 64)])
    picture = path.parent / "0.png"
    Image.new("RGB", (40, 50)).save(picture, "BMP")
    rows = read(path)
    assert (rows.train[0].request.observation.pictures[0].width, picture.stat().st_size) == (40, 6054)
    Image.new("RGB", (20, 100), "red").save(picture, "BMP")
    assert picture.stat().st_size == 6054
    assert read(path).train[0].request.observation.pictures[0].width == 20
    # With the time of change kept, it is found when it is opened.
    before = picture.stat()
    Image.new("RGB", (40, 50)).save(picture, "BMP")
    os.utime(picture, ns=(before.st_atime_ns, before.st_mtime_ns))
    rows = read(path)
    with pytest.raises(ValueError, match=r"data.jsonl:1: .*0.png is \(40, 50\), recorded as \(20, 100\)"):
        collate(rows.train, collator(), [0])


def test_what_is_found_in_a_step_is_an_error_or_replaced_by_the_next_row(tmp_path):
    path = save_rows(tmp_path / "data", [(64, 64)] * 5)
    rows, encode = read(path).train, collator()
    whole = collate(rows, encode, [0, 3])
    assert whole["skipped"] == []
    damage(path.parent / "1.png")
    (path.parent / "2.png").unlink()
    with pytest.raises(ValueError, match=r"data.jsonl:2: .*1.png .*damaged.*; data.on_unusable_row=skip goes on"):
        collate(rows, encode, [0, 1])
    batch = collate(rows, encode, [0, 1], on_unusable_row="skip")
    assert list(map(short, batch["row_ids"])) == ["r0/0", "r3/0"] and (batch["input_ids"] == whole["input_ids"]).all()
    assert (batch["patches"] == whole["patches"]).all()
    (message,) = batch["skipped"]
    assert message.startswith(f"{path}:2: ") and short(message).endswith("(r3/0 takes its place)")
    (path.parent / "4.png").unlink()  # the last row's place is taken by the first
    assert collate(rows, encode, [4], on_unusable_row="skip")["row_ids"] == whole["row_ids"][:1]
    for i in (0, 3):
        (path.parent / f"{i}.png").unlink()
    with pytest.raises(ValueError, match="100 rows in a row cannot be used: is the folder with the pictures there?"):
        collate(rows, encode, [0], on_unusable_row="skip")


def test_held_out_rows_that_cannot_be_read_are_named_and_left_out(tmp_path, capsys):
    path = save_rows(tmp_path / "data", [(64, 64)] * 3)
    rows = read(path).train
    damage(path.parent / "1.png")
    assert [short(row.id) for row in usable_rows(collator(), list(rows))] == ["r0/0", "r2/0"]
    assert capsys.readouterr().err.startswith(f"left out of the evaluation: {path}:2: ")


def test_a_training_goes_on_without_what_is_lost_and_says_so(tmp_path, capfd):
    """Training and held-out pictures are damaged after the data was read."""
    checkpoint = save_tiny_checkpoint(tmp_path / "base")
    dataset = save_dataset(tmp_path / "data")
    lost = {"data": {"on_unusable_row": "skip", "num_workers": 1}, "train": {"max_steps": 3, "log_every": 1}}
    config = tiny_config(tmp_path, checkpoint, dataset, **lost, eval={"step_rows": 99})
    rows = build_rows(config.data, config.prompt)
    for side in (rows.train, rows.held_out):
        for i in range(0, len(side), 3):
            damage(Path(side[i].request.observation.pictures[0].path))
    metrics = train(config)
    printed = capfd.readouterr().err
    lines = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
    num_skipped = round(sum(4 * line["train/skipped_rows"] for line in lines if "train/loss" in line))
    assert num_skipped == printed.count(": left out: ") > 0
    assert printed.count(" takes its place)") == num_skipped and "is damaged: its checksum differs" in printed
    num_lost = len(range(0, len(rows.held_out), 3))
    assert metrics["eval/unusable_rows"] == num_lost and "eval/token_loss/all" in metrics
    assert printed.count("left out of the evaluation: ") >= num_lost
