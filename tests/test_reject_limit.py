"""data.max_rejected: a run whose file is mostly rejected ends at its start, with counts that add up and places."""

import dataclasses
import json

import pytest
from PIL import Image

from qwenvl_agent.config import DataConfig, PromptConfig, SourceConfig
from qwenvl_agent.data.dataset import build_rows
from qwenvl_agent.data.reject_limit import check_rejected, rejected_share


def screen(x: int, **more) -> dict:
    action = {"type": "click", "x": 20 + x, "y": 25}
    return {"instruction": f"press {x}", "screenshot": "a.png", "action": action, **more}


def talk(weight: float) -> dict:
    answers = [{"role": "assistant", "content": "One.", "weight": weight}, {"role": "assistant", "content": "Two."}]
    asked = {"role": "user", "content": "And?"}
    return {"messages": [asked, answers[0], asked, answers[1]]}


@pytest.fixture
def read(tmp_path):
    """The rows of these records, and the settings they were read with."""
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")

    def build(records, kind="computer", **settings):
        lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
        (tmp_path / "data.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        source = SourceConfig(path=str(tmp_path / "data.jsonl"), kind=kind)
        config = DataConfig(sources=(source,), cache_dir=str(tmp_path / "cache"), **settings)
        return build_rows(config, PromptConfig()), config

    return build


def test_every_record_is_a_row_or_rejected(read):
    rows, _ = read([screen(1), screen(2), screen(99), "{broken", screen(3)])
    (about,) = rows.report["sources"]
    assert (about["num_records"], about["num_rows"], about["num_rejected_records"]) == (5, 3, 2)
    assert "3 rows of 3 episodes, 2 rejected, of 5 records" in rows.summary()


def test_a_conversation_is_one_record_and_an_answer_of_weight_0_is_said(read):
    rows, _ = read([talk(0), talk(1), '{"messages": []}'], kind="chat")
    (about,) = rows.report["sources"]
    assert (about["num_records"], about["num_rows"], about["num_rejected_records"]) == (3, 3, 1)
    assert about["num_shown_only"] == 1 and "not learned 1 x answer of weight 0" in rows.summary()


def test_more_than_the_share_is_an_error_with_counts_places_and_a_remedy(read):
    rows, config = read(
        [*map(screen, range(7)), screen(8, screenshot="gone.png"), screen(9, screenshot="lost.png"), "{broken"]
    )
    with pytest.raises(ValueError) as caught:
        check_rejected(rows.report["sources"], config)
    message = str(caught.value)
    assert "3 of 10 records are rejected (30.0%), and data.max_rejected is 10.0%" in message
    assert "data.jsonl:8: " in message and "data.jsonl:10: not JSON" in message and "  2 x, first" in message
    assert "qwenvl-agent check-data" in message and "or raise data.max_rejected" in message
    check_rejected(rows.report["sources"], dataclasses.replace(config, max_rejected=0.3))


def test_one_slip_in_ten_passes(read):
    rows, config = read([*map(screen, range(9)), "{broken"])
    check_rejected(rows.report["sources"], config)


@pytest.mark.parametrize("marker", [{"label": False}, {"kto_tag": "no"}, {"train": 0}, {"masked": True}, {"score": -1}])
def test_a_conversation_that_is_marked_as_bad_does_not_count_and_one_that_is_scaled_does(read, marker):
    rows, _ = read([talk(1), talk(1) | marker], kind="chat")
    assert (rejected_share(rows.report["sources"][0]), rows.report["sources"][0]["num_left_out"]) == (0, 1)
    rows, _ = read([talk(1), talk(1) | {"loss_scale": 0.5}], kind="chat")
    assert rejected_share(rows.report["sources"][0]) == 0.5


def test_what_says_itself_that_it_is_not_to_be_learned_does_not_count(read):
    rows, config = read([*map(screen, range(4)), *(screen(x, split="test") for x in range(4, 8))])
    assert rejected_share(rows.report["sources"][0]) == 0 and rows.report["sources"][0]["num_left_out"] == 4
    check_rejected(rows.report["sources"], config)


@pytest.mark.slow
def test_a_training_ends_at_its_start_with_one_paragraph(tmp_path, capsys):
    from tiny_run import save_config, save_dataset, save_tiny_checkpoint, tiny_config

    import train

    data = save_dataset(tmp_path / "data", num_rows=6)
    with open(data, "a", encoding="utf-8") as file:
        file.write("{broken\n{broken\n")
    config = tiny_config(tmp_path, save_tiny_checkpoint(tmp_path / "base"), data)
    path = save_config(config, tmp_path / "config.json")
    assert train.main(["--config", str(path)]) == 2
    said = capsys.readouterr().err
    assert "2 of 8 records are rejected (25.0%), and data.max_rejected is 10.0%" in said
    assert "dataset.jsonl:7: not JSON" in said and "Traceback" not in said
    for name, content in (("data.csv", b"a,b,c\n1,2,3\n"), ("utf16.jsonl", "{}".encode("utf-16"))):
        (tmp_path / name).write_bytes(content)
        sources = json.dumps([{"path": str(tmp_path / name), "kind": "chat"}])
        assert train.main(["--config", str(path), "--overwrite", "--set", f"data.sources={sources}"]) == 2
        assert "no row can be read from it" in capsys.readouterr().err
