"""check-data: what a file is, what it gives, and the config lines that fit, without a wrong word about units."""

import json
from pathlib import Path

import pytest
from PIL import Image
from tiny_run import save_dataset, save_tiny_checkpoint

from qwenvl_agent.cli.check_data import main
from qwenvl_agent.config import load_config
from qwenvl_agent.curation.checkup import marked_lines
from qwenvl_agent.curation.recognition import find_data_files, kind_of, recognise
from qwenvl_agent.formats import Span

ACTION = {"type": "click", "x": 300, "y": 80, "target": "search_box"}
SAFARI = {
    "episode_id": "a",
    "mission": "find the red tiger",
    "turn": 0,
    "system_prompt": "You play.",
    "context_text": "Mission: find the red tiger\nStep: 1/40\nPosition: (5, 5)\n\nFound Targets: (none)\n\nNotepad:\n(empty)",
    "image_file": "a.png",
    "tool_calls": [{"name": "update_notepad", "args": {"content": "seen"}}],
    "tool_results": [{"name": "update_notepad", "result": {"status": "updated"}}],
    "thought_text": "I write it down.",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder to work in, with a screenshot in it."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (1280, 720), "white").save("a.png")
    return tmp_path


def screens(number: int = 12) -> list[dict]:
    return [{"instruction": f"press {i}", "screenshot": "a.png", "action": ACTION} for i in range(number)]


def write(name: str, records: list) -> str:
    """As a list in a .json file, else a line each."""
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    Path(name).write_text(
        f"[{','.join(lines)}]" if name.endswith(".json") else "\n".join(lines) + "\n", encoding="utf-8"
    )
    return name


def check(capsys, *words: str) -> tuple[int, dict]:
    """(status, the JSON that it prints)."""
    status = main([*words, "--json"])
    return status, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        ({"messages": []}, "chat"),
        ({"conversations": []}, "chat"),
        ({"prompt": [], "completion": []}, "chat"),
        ({"instruction": "a", "screenshot": "a.png", "action": {}}, "computer"),
        ({"instruction": "a", "initial_screenshot": "a.png", "next_action": {}}, "computer"),
        ({"instruction": "a", "screenshot": "a.png"}, ""),
        (SAFARI, "recorded"),
        ({"img_filename": "a.png", "bbox": [1, 2, 3, 4]}, ""),
    ],
)
def test_a_record_is_known_by_its_fields(record, kind):
    assert kind_of(record) == kind


def test_recorded_turns_without_tools_whose_calls_are_the_safaris_are_the_safaris(folder):
    assert recognise(Path(write("a.jsonl", [SAFARI]))).kind == "safari"
    other = SAFARI | {"tool_calls": [{"name": "jump", "args": {}}]}
    assert recognise(Path(write("b.jsonl", [SAFARI, other]))).kind == "recorded"
    Path("manifest.json").write_text('{"world": "corridor"}', encoding="utf-8")
    assert recognise(Path("a.jsonl")).kind == "recorded"


def test_the_majority_decides_and_the_evidence_is_said(folder):
    found = recognise(Path(write("a.jsonl", [*screens(3), {"messages": []}])))
    assert found.kind == "computer" and found.why == "3 of the first 4 records have instruction, screenshot, action"


def test_counts_rejects_and_config_lines_of_a_list_of_screens(folder, capsys):
    status, report = check(capsys, write("labels.json", [*screens(), {**screens(1)[0], "screenshot": "gone.png"}]))
    counts = report["counts"]
    assert (status, report["kind"], report["container"]) == (0, "computer", "a JSON list")
    assert (counts["rows"], counts["rejected"], report["can_be_trained_on"]) == (12, 1, True)
    ((reason, count, places),) = counts["faults"]
    assert count == 1 and "does not exist" in reason and len(places) == 1 and places[0][0].startswith("labels.json")
    sources = [{"path": "labels.json", "kind": "computer"}]
    assert report["config"] == {"data": {"sources": sources}, "eval": {"suite": "clicks"}}
    assert report["lengths"]["is_estimated"] and report["lengths"]["vision"] == [880] * 5
    (size,) = report["pictures"]
    assert (size["width"], size["shown_width"], size["tokens"], size["number"]) == (1280, 1280, 880, 12)


def test_the_first_row_is_the_whole_prompt_and_what_is_learned_is_marked(folder, capsys):
    assert main([write("data.jsonl", screens())]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  <|im_start|>system" in lines and "  <|im_start|>assistant" in lines
    assert "  <|vision_start|><|image_pad|><|vision_end|>Task: press 0<|im_end|>" in lines
    learned = [line for line in lines if line.startswith(">")]
    assert learned[0] == "> The target is search_box."
    assert learned[-1] == "> </tool_call><|im_end|>" and '"coordinate": [234, 111]' in learned[-2]
    assert lines[-1] == "can be trained on"


def test_too_many_rejects_end_with_status_1_unless_they_are_allowed(folder, capsys):
    path = write("data.jsonl", [*screens(8), "{broken", "{broken"])
    assert main([path]) == 1
    out = capsys.readouterr().out
    assert "10 records: 8 give 8 rows of 8 episodes, 2 rejected" in out and "at data.jsonl:9, data.jsonl:10" in out
    assert "20.0% of the records are rejected, and data.max_rejected is 10.0%" in out
    assert main([path, "--max-rejected", "0.2"]) == 0
    assert main([write("none.jsonl", ["{broken", '{"messages": []}'])]) == 1
    assert "no row is left to learn" in capsys.readouterr().out


def test_a_conversation_asks_for_its_history(folder, capsys):
    talk = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Yes?"}]
    status, report = check(capsys, write("talk.jsonl", [{"messages": talk * 3}]))
    assert status == 0 and report["config"]["prompt"] == {"history_steps": 2}


def test_a_budget_that_has_no_size_for_a_picture_is_mended(folder, capsys):
    Image.new("RGB", (300, 200)).save("small.png")
    record = {**screens(1)[0], "screenshot": "small.png", "action": {"type": "click", "x": 3, "y": 3}}
    path = write("data.jsonl", [record])
    tight = ["--set", "vision.max_tokens_per_image=64"]
    status, report = check(capsys, path, *tight)
    assert status == 0 and report["config"]["vision"] == {"min_tokens_per_image": 32}
    assert report["pictures"][0]["tokens"] == 54


def test_a_config_of_boards_is_fitted_to_pictures_that_are_none_and_plays_no_world_that_they_are_not_of(folder, capsys):
    Image.new("RGB", (320, 240)).save("photo.png")
    talk = [{"role": "user", "content": "<image>What is it?"}, {"role": "assistant", "content": "A field."}]
    path = write("talk.jsonl", [{"messages": talk, "images": ["photo.png"]}])
    status, report = check(capsys, path, "--config", "safari_2b", "--model", "./no_such_model")
    assert status == 0 and report["config"]["vision"] == {"tiles": 0} and report["config"]["eval"] == {"suite": "none"}
    assert report["pictures"][0]["tokens"] == 80


def test_with_a_tokenizer_the_tokens_are_the_collators(folder, capsys):
    from qwenvl_agent.data.collator import build_collator
    from qwenvl_agent.data.dataset import build_rows
    from qwenvl_agent.model.build import build_processor

    save_tiny_checkpoint(folder / "base")
    data = save_dataset(folder / "data")
    capsys.readouterr()  # what making the model has printed
    status, report = check(capsys, str(data.parent), "--model", "base")
    assert status == 0 and not report["lengths"]["is_estimated"] and report["no_tokenizer"] == ""
    values = {"name": "a", "model": {"path": "base"}, "data": report["config"]["data"] | {"eval_fraction": 0}}
    (folder / "a.json").write_text(json.dumps(values), encoding="utf-8")
    config = load_config("a.json")
    collator = build_collator(build_processor(config.model, config.vision), config)
    rows = build_rows(config.data, config.prompt).train
    lengths = [len(collator.sample(rows[i]).encoded.input_ids) for i in range(len(rows))]
    assert report["lengths"]["row"][0] == min(lengths) and report["lengths"]["row"][-1] == max(lengths)


def test_without_the_named_tokenizer_the_estimate_says_so(folder, capsys):
    status, report = check(capsys, write("data.jsonl", screens()), "--model", "./no_such_model")
    assert status == 0 and report["lengths"]["is_estimated"] and "no_such_model" in report["no_tokenizer"]


def test_a_config_is_written_with_the_lines_laid_over_it(folder, capsys):
    path = write("labels.json", screens())
    assert main([path, "--config", "computer_use_tiny", "--write", "own.json"]) == 0
    written = load_config("own.json")
    assert written.name == "own" and written.model.path == "tiny_screens"
    assert [(source.path, source.kind) for source in written.data.sources] == [("labels.json", "computer")]
    assert written.vision.max_tokens_per_image == 64
    assert "shown as 320x192 in 60 tokens (25% wide: small text may be lost" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([path, "--config", "computer_use_tiny", "--write", "own.json"])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: "gone.jsonl", "there is no such file"),
        (lambda: ".", "holds no .jsonl, .json or .parquet file (a.png)"),
        (lambda: write("a.jsonl", [{"a": 1}]), "its records have a, which is no form that is known here"),
        (lambda: write("a.json", ["1", '"x"']), "none of its first 200 records is a JSON object"),
        (lambda: wrapped(), "take the list out"),
    ],
)
def test_what_cannot_be_read_is_one_line_with_the_way_out(folder, capsys, make, said):
    assert main([make()]) == 2
    shown = capsys.readouterr()
    assert said in shown.err and shown.err.startswith("error: ") and len(shown.err.splitlines()) == 1


def wrapped() -> str:
    Path("a.json").write_text(json.dumps({"version": 1, "data": screens(2)}), encoding="utf-8")
    return "a.json"


def test_a_folder_means_its_dataset_or_its_only_data_file(folder):
    write("labels.json", screens())
    write("manifest.json", [{}])
    assert find_data_files(Path(".")) == (Path("labels.json"),)
    write("dataset.jsonl", screens())
    assert find_data_files(Path(".")) == (Path("dataset.jsonl"),)


def test_a_folder_of_single_records_says_how_to_join_them(folder):
    for name in "bc":
        Path(f"{name}.json").write_text(json.dumps(screens(1)[0]), encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"holds 2 data files \(b.json, c.json\).*each holds one record: put them into one"
    ):
        find_data_files(Path("."))


def test_lines_are_marked_where_a_span_begins_within_them():
    spans = [Span("prompt", "a\nb"), Span("text", "c\n\nd"), Span("end", "<|im_end|>"), Span("prompt", "\n")]
    assert marked_lines(spans) == [(False, "a"), (False, "b"), (True, "c"), (True, ""), (True, "d<|im_end|>")]


@pytest.mark.parametrize(
    ("record", "layouts"),
    [
        (
            {
                "img_filename": "a.png",
                "instruction": "Save",
                "bbox": [1, 2, 3, 4],
                "data_type": "icon",
                "data_source": "ios",
            },
            {"screenspot", "screenspot_v2"},
        ),
        ({"img_url": "a.png", "img_size": [9, 9], "element": [{"instruction": "a", "bbox": [0, 0, 1, 1]}]}, {"showui"}),
    ],
)
def test_a_published_layout_is_named_and_never_chosen_by_its_numbers(folder, capsys, record, layouts):
    status, report = check(capsys, write("data.json", [record]))
    assert (status, report["kind"], report["can_be_trained_on"]) == (1, "", False)
    assert layouts <= set(report["layouts"])
    assert main(["data.json"]) == 1
    out = capsys.readouterr().out
    named = "LAYOUT" if len(report["layouts"]) > 1 else report["layouts"][0]
    assert f"qwenvl-agent convert --layout {named} --data data.json --pictures . --out converted" in out


def test_a_conversation_with_code_may_be_a_layout_and_one_without_is_none(folder):
    def talk(answer: str) -> list:
        return [
            {
                "image": "a.png",
                "conversations": [{"from": "human", "value": "<image>go"}, {"from": "gpt", "value": answer}],
            }
        ]

    assert recognise(Path(write("code.json", talk("pyautogui.click(x=0.1, y=0.2)")))).layouts == ("aguvis",)
    found = recognise(Path(write("words.json", talk("A menu."))))
    assert (found.kind, found.layouts) == ("chat", ())


def test_places_in_another_unit_are_shown_with_the_way_out(folder, capsys):
    records = [
        {**record, "action": {"type": "click", "x": 0.2 + i / 100, "y": 0.3}} for i, record in enumerate(screens())
    ]
    path = write("data.jsonl", records)
    assert main([path]) in (1, 2)
    shown = capsys.readouterr()
    assert "fraction" in shown.out + shown.err
    status, report = check(capsys, path, "--unit", "fraction")
    assert status == 0 and report["config"]["data"]["sources"] == [
        {"path": "data.jsonl", "kind": "computer", "unit": "fraction"}
    ]
    spans = "".join(span["text"] for span in report["first_row"]["spans"] if span["part"] == "call")
    assert '"coordinate": [200, 300]' in spans
