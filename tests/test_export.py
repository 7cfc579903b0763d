"""A run made into a folder: what plain transformers loads is what was trained."""

import json
from dataclasses import asdict, replace

import peft
import pytest
import torch
import transformers
from conftest import request_of
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny_run import save_tiny_checkpoint, tiny_config
from transformers import AutoModelForImageTextToText

from qwenvl_agent import export, model_card
from qwenvl_agent.config import load_config, to_json
from qwenvl_agent.data.collator import Collator
from qwenvl_agent.export import distance, export_adapter, export_run, load_plain, probe_inputs, probe_logits
from qwenvl_agent.files import write_json
from qwenvl_agent.formats import FORMATS
from qwenvl_agent.inference.endpoint import to_chat
from qwenvl_agent.inference.load import find_run, load_model
from qwenvl_agent.model.build import build_model, build_processor, save_weights
from qwenvl_agent.prompt import as_asked, render_prompt
from qwenvl_agent.training.checkpoint import link
from scripts import merge_adapter

MODELS = {
    "lora": {"method": "lora", "dtype": "float32", "autocast": False},
    "lora_vision": {
        "method": "lora",
        "lora_places": ["language", "merger", "vision"],
        "dtype": "float32",
        "autocast": False,
    },
    "qlora": {"method": "qlora", "dtype": "bfloat16", "autocast": True},
    "full": {"method": "full", "dtype": "float32", "autocast": False},
}
RESULT = {
    "about": {"suite": "safari", "policy": "run", "checkpoint": "best"},
    "success_rate": {"value": 0.625, "low": 0.25, "high": 0.9, "n": 8},
    "end_reasons": {"done_ok": 5},
}


def save_run(directory, checkpoint, method):
    """A run as train.py leaves it, with weights that have learnt much, but nothing sensible."""
    config = tiny_config(directory, checkpoint, directory / "dataset.jsonl", model=MODELS[method])
    model = build_model(config.model, "cpu")
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn_like(parameter) * 0.03
    saved = config.run_dir / "checkpoints" / "step_000003"
    saved.mkdir(parents=True)
    save_weights(model, saved / "model")
    write_json(saved / "config.json", to_json(config))
    write_json(saved / "state.json", {"step": 3, "best": {"step": 3}})
    link(config.run_dir / "checkpoints" / "best", saved)
    source = {"path": "data/a.jsonl", "kind": "chat", "num_rows": 24, "num_episodes": 12, "num_rejects": 2}
    data = {"dataset_hash": "abc123", "num_train_rows": 20, "num_held_out_rows": 4, "sources": [source]}
    write_json(config.run_dir / "data.json", data)
    scalars = [{"step": 2, "rollout/success_rate": 0.1}, {"step": 3, "train/loss": 9.0}]
    scalars += [{"step": 3, "rollout/success_rate": 0.3125, "eval/move.recall": 0.7}]
    (config.run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in scalars))
    others = {
        "blank": {"blank_pictures": True},
        "oracle": {"checkpoint": None},
        "pruned": {"checkpoint": "step_000001"},
    }
    results = {
        name: {"about": RESULT["about"] | about, "success_rate": RESULT["success_rate"] | {"n": 77}}
        for name, about in others.items()
    }
    for name, result in (results | {"safari": RESULT}).items():
        (config.run_dir / "eval" / name).mkdir(parents=True)
        write_json(config.run_dir / "eval" / name / "metrics.json", result)
    return config.run_dir


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A base with opinions: random weights alone give nearly even logits, under which nothing could be lost."""
    directory = save_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "base")
    weights = load_file(directory / "model.safetensors")
    weights["model.language_model.norm.weight"] *= 5
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    return directory


@pytest.fixture(scope="module", params=MODELS)
def exported(request, checkpoint, tmp_path_factory):
    """(run, Export)"""
    directory = tmp_path_factory.mktemp(request.param)
    run = save_run(directory, checkpoint, request.param)
    return run, export_run(run, directory / "agent", device="cpu")


def test_plain_transformers_answers_like_the_run(exported):
    run, made = exported
    config, live, processor = load_model(find_run(run), device="cpu")
    inputs = probe_inputs(config, processor)
    found = distance(probe_logits(live, inputs), probe_logits(load_plain(made.directory, config.model, "cpu"), inputs))
    assert found == made.live == made.merged
    assert found.mean_kl < 1e-3 and found.same_choice > 0.95
    if config.model.method != "full":
        assert made.adapter.mean_kl > 0.1  # so that a lost adapter would show


def test_the_folder_is_a_whole_model_in_bfloat16(exported):
    run, made = exported
    names = {path.name for path in made.directory.iterdir()}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "README.md"}
    assert names >= {"preprocessor_config.json", "generation_config.json", "qwenvl_agent.json"}
    tensors = load_file(made.directory / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert not [name for name in tensors if "lora" in name or "base_layer" in name or "absmax" in name]
    assert json.loads((made.directory / "config.json").read_text())["dtype"] == "bfloat16"
    assert "quantization_config" not in (made.directory / "config.json").read_text()
    config = find_run(run).config
    # What was trained under autocast is played in what the device does fast.
    free = {"autocast": "auto", "dtype": "auto"} if config.model.autocast else {}
    assert load_config(made.directory / "qwenvl_agent.json") == replace(config, model=replace(config.model, **free))
    assert not list(made.directory.parent.glob(".*"))


def test_the_folders_processor_makes_the_prompts_of_training(exported):
    """The chat template, the picture budget and the end token: what a server reads."""
    from transformers import AutoProcessor, GenerationConfig

    _, made = exported
    config = load_config(made.directory / "qwenvl_agent.json")
    processor = build_processor(config.model, config.vision)
    whole = AutoProcessor.from_pretrained(made.directory)
    collator = Collator(processor, FORMATS["native"], config.prompt, config.vision, config.train)
    for request in (request_of(6, 0), request_of(1, 1, size=200)):
        request = as_asked(request, config.prompt.ask_for_thought)
        messages = to_chat(
            render_prompt(request, FORMATS["native"]).text, [""] * (2 * bool(request.history[0].observation.pictures))
        )
        pictures = [
            p.open() for o in (*(s.observation for s in request.history), request.observation) for p in o.pictures
        ]
        for message in messages:
            if isinstance(message["content"], list):
                image = {"type": "image", "image": pictures.pop(0)}
                message["content"] = [image if p["type"] == "image_url" else p for p in message["content"]]
        made_here = whole.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        local = collator.encode_prompt([request])
        assert made_here["input_ids"].tolist() == local["input_ids"].tolist()
        assert (
            made_here.get("image_grid_thw", torch.empty(0)).tolist()
            == local.get("image_grid_thw", torch.empty(0)).tolist()
        )
    end_id = whole.tokenizer.convert_tokens_to_ids("<|im_end|>")
    generation = GenerationConfig.from_pretrained(made.directory)
    assert (generation.eos_token_id, generation.do_sample, generation.max_new_tokens) == (end_id, None, 8)


MALFORMED = ' So:\n<tool_call>\n{"name": "move", "arguments": {\n</tool_call> <think>\n'


def test_servers_are_told_to_leave_answers_as_they_are(exported, tmp_path):
    from transformers import AutoTokenizer

    run, made = exported
    tokenizer = AutoTokenizer.from_pretrained(made.directory)
    for text in (MALFORMED, "", "\n up "):
        message = tokenizer.parse_response(text + "<|im_end|>", prefix="<|im_start|>assistant\n")
        assert message == {"role": "assistant", "content": text}
    export_run(run, tmp_path / "parsed", parse_on_server=True, device="cpu")
    assert AutoTokenizer.from_pretrained(tmp_path / "parsed").response_template is None


def test_the_card_says_where_it_comes_from(exported):
    run, made = exported
    card = (made.directory / "README.md").read_text()
    config = find_run(run).config
    assert f"Method {config.model.method}" in card and "step 3" in card and "base_model" not in card
    assert "Dataset hash `abc123`; 20 rows trained on, 4 held out" in card
    assert "| data/a.jsonl | chat | 24 | 12 | 2 |" in card
    assert "| success_rate | 0.625 | 0.25 to 0.9 | 8 |" in card and "| 77 |" not in card
    assert "| rollout/success_rate | 0.3125 |" in card and "move.recall" not in card and "train/loss" not in card
    assert f"| {made.merged.mean_kl:.2g} |" in card
    assert f"Written with transformers {transformers.__version__}. It needs transformers 5" in card
    assert '<tool_call>\n{"name": "move", "arguments": {"direction": "UP"}}\n</tool_call><|im_end|>' in card
    assert "license:" not in card and "## Licence\n\nNot stated here" in card  # a base of the test's own
    assert json.loads(card.split("```json\n")[1].split("```")[0]) == to_json(config)
    hub = replace(config.model, path="Qwen/Qwen3-VL-2B-Instruct")
    matter = model_card.front_matter(hub.path, made, "apache-2.0").splitlines()
    assert matter[3:6] == [
        "base_model: Qwen/Qwen3-VL-2B-Instruct",
        "base_model_relation: finetune",
        "license: apache-2.0",
    ]
    assert "license: apache-2.0" in model_card.front_matter("tiny", made)


def test_an_adapter_is_exported_as_peft_loads_it(checkpoint, tmp_path):
    run = save_run(tmp_path, checkpoint, "lora")
    arguments = [str(run), "--out", str(tmp_path / "adapter"), "--adapter", "--license", "mit"]
    assert merge_adapter.main(arguments) == 0
    names = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert names >= {
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer.json",
        "README.md",
        "qwenvl_agent.json",
    }
    assert not names & {"config.json", "model.safetensors"}
    config, live, processor = load_model(find_run(run), device="cpu")
    base = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager")
    inputs = probe_inputs(config, processor)
    expected = probe_logits(live, inputs)
    torch.testing.assert_close(probe_logits(PeftModel.from_pretrained(base, tmp_path / "adapter"), inputs), expected)
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: peft\n") and "license: mit\n" in card and "rank 4, alpha 32" in card
    assert "| success_rate | 0.625 | 0.25 to 0.9 | 8 |" in card and "Dataset hash `abc123`" in card
    assert 'PeftModel.from_pretrained(base, "adapter")' in card and f"peft {peft.__version__}" in card


def test_adapters_that_cannot_stand_alone_are_refused(checkpoint, tmp_path):
    run = save_run(tmp_path / "full", checkpoint, "full")
    with pytest.raises(ValueError, match="--adapter with method 'full': .* has no adapter"):
        export_adapter(run, tmp_path / "out")
    run = save_run(tmp_path / "lora", checkpoint, "lora")
    write_json(run / "start.json", {"run": "runs/a", "step": 3, "mode": "merge", "base": str(checkpoint), "path": "x"})
    with pytest.raises(ValueError, match="into which an earlier run was merged"):
        export_adapter(run, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_a_qlora_adapter_in_the_original_weights_is_another_model(checkpoint, tmp_path):
    run = save_run(tmp_path, checkpoint, "qlora")
    trained = export_run(run, tmp_path / "trained", device="cpu")
    original = export_run(run, tmp_path / "original", base="original", device="cpu")
    assert original.merged.mean_kl < 1e-3  # the merge itself is right
    assert original.live.mean_kl > 10 * trained.live.mean_kl  # but not of what was trained
    card = (tmp_path / "original" / "README.md").read_text()
    assert "as is the custom" in card and f"| {original.live.mean_kl:.2g} |" in card
    assert "that it was trained on, unpacked" in (tmp_path / "trained" / "README.md").read_text()
    name = "model.language_model.layers.0.self_attn.q_proj"
    adapter = load_file(run / "checkpoints" / "best" / "model" / "adapter_model.safetensors")
    down, up = (adapter[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
    base = load_file(checkpoint / "model.safetensors")[f"{name}.weight"].to(torch.bfloat16)
    expected = (base.float() + 32 / 4 * up @ down).to(torch.bfloat16)
    torch.testing.assert_close(
        load_file(tmp_path / "original" / "model.safetensors")[f"{name}.weight"], expected, rtol=2**-7, atol=1e-6
    )


def test_a_merge_that_lost_the_adapter_is_not_kept(checkpoint, tmp_path, monkeypatch, capsys):
    run = save_run(tmp_path, checkpoint, "lora")
    whole = export.plain_weights

    def without_adapter(base):
        base.get_submodule("model.language_model.layers.0.mlp.up_proj").scaling["default"] = 0.0
        return whole(base)

    monkeypatch.setattr(export, "plain_weights", without_adapter)
    assert merge_adapter.main([str(run), "--out", str(tmp_path / "agent"), "--device", "cpu"]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "error: the merged weights answer otherwise than" in message and "nothing was written" in message
    assert not list(tmp_path.glob("*agent*"))


def test_the_script_prints_the_comparison(checkpoint, tmp_path, capsys):
    run = save_run(tmp_path, checkpoint, "lora")
    arguments = [str(run / "checkpoints" / "step_000003"), "--out", str(tmp_path / "deep" / "agent"), "--json"]
    assert merge_adapter.main([*arguments, "--device", "cpu"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["directory"] == str(tmp_path / "deep" / "agent") and printed["merged"]["mean_kl"] < 1e-3
    assert (tmp_path / "deep" / "agent" / "README.md").exists()


def test_a_users_mistake_is_one_message(checkpoint, tmp_path, capsys):
    run = save_run(tmp_path, checkpoint, "lora")
    for arguments, message in (
        ([tmp_path / "nothing", "--out", tmp_path / "agent"], "holds no checkpoint"),
        ([run, "--out", run], "exists: it would be overwritten"),
        ([run, "--out", tmp_path / "agent", "--base", "original"], "base 'original' with method 'lora'"),
    ):
        assert merge_adapter.main([str(argument) for argument in arguments]) == 2
        captured = capsys.readouterr()
        assert message in " ".join(captured.err.split()) and captured.out == "" and "Traceback" not in captured.err
    assert not (tmp_path / "agent").exists()


def test_distance_is_zero_from_itself_and_grows():
    logits = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    assert asdict(distance(logits, logits)) == {"mean_kl": 0.0, "max_logit_difference": 0.0, "same_choice": 1.0}
    other = distance(logits, torch.tensor([[0.0, 2.0], [0.0, 0.0]]))
    assert other.mean_kl == pytest.approx((0.880797 - 0.119203) * 2 / 2, abs=1e-5)
    assert (other.max_logit_difference, other.same_choice) == (2.0, 0.5)
