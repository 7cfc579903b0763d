"""A run that begins with an earlier run's weights: the same ones, on the base that they are for, with a new optimizer."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tiny_run import save_dataset, save_tiny_checkpoint, tiny_config

from qwenvl_agent.checksums import write_checksums
from qwenvl_agent.config import to_json
from qwenvl_agent.export import distance, export_run, load_plain, probe_inputs, probe_logits
from qwenvl_agent.files import write_json
from qwenvl_agent.inference.load import find, load_model
from qwenvl_agent.model.build import build_model, save_weights
from qwenvl_agent.training.checkpoint import link
from train import train

QUIET = {"step_rows": 0, "suite": "none"}
SAVED_STEP = 3


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """(checkpoint, dataset.jsonl)"""
    directory = tmp_path_factory.mktemp("base")
    return save_tiny_checkpoint(directory / "base"), save_dataset(directory / "data")


@pytest.fixture(scope="module")
def run_of(base, tmp_path_factory):
    """Function from a method to the config of a run whose weights have moved much."""
    directory, done = tmp_path_factory.mktemp("earlier"), {}

    def run(method):
        if method not in done:
            done[method] = tiny_config(directory, *base, name=method, model={"method": method})
            save_run(done[method])
        return done[method]

    return run


def save_run(config) -> None:
    """As train.py leaves it."""
    model = build_model(config.model, "cpu")
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn_like(parameter) * 0.03
    saved = config.run_dir / "checkpoints" / f"step_{SAVED_STEP:06d}"
    saved.mkdir(parents=True)
    save_weights(model, saved / "model")
    write_json(saved / "config.json", to_json(config))
    write_json(saved / "state.json", {"step": SAVED_STEP, "best": {}})
    write_checksums(saved)
    link(config.run_dir / "checkpoints" / "last", saved)


@pytest.fixture
def configure(base, tmp_path):
    """Function from model settings to the config of a run of `num_steps` that moves no weight, or hardly."""

    def config(num_steps=2, name="run", learning_rate=0.0, **model):
        still = {"max_steps": num_steps, "learning_rate": learning_rate, "save_every": 1}
        return tiny_config(tmp_path, *base, name=name, model=model, train=still, eval=QUIET)

    return config


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    files = sorted((run_dir / "checkpoints/last/model").glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def assert_equal(ours: dict, wanted: dict) -> None:
    assert ours.keys() == wanted.keys() and all(torch.equal(ours[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_weights_train_further_and_the_optimizer_is_new(run_of, configure, method):
    before = run_of(method)
    config = configure(method=method, init_from=str(before.run_dir), lora_dropout=0.2)
    train(config)
    assert_equal(weights(config.run_dir), weights(before.run_dir))
    optimizer = load_file(config.run_dir / "checkpoints/last/optimizer.safetensors")
    assert {int(value) for name, value in optimizer.items() if name.endswith(":step")} == {2}
    start = json.loads((config.run_dir / "start.json").read_text())
    assert (start["step"], start["mode"], start["base"], start["path"]) == (3, "continue", *[before.model.path] * 2)


def test_a_resumed_run_needs_the_earlier_one_no_more(run_of, configure, tmp_path):
    moved = tmp_path / "runs" / "earlier"
    shutil.copytree(run_of("lora").run_dir, moved)
    train(configure(num_steps=1, init_from="earlier"))  # a name beside it
    shutil.rmtree(moved)
    train(configure(num_steps=2, init_from="earlier"), resume=True)
    assert_equal(weights(tmp_path / "runs/run"), weights(run_of("lora").run_dir))


def test_weights_that_do_not_fit_are_refused_before_a_folder_is_made(run_of, configure, base, tmp_path):
    before = str(run_of("lora").run_dir)
    other = save_tiny_checkpoint(tmp_path / "other")
    for message, model in {
        "its weights fit no other; set model.path=": {"path": str(other), "init_from": before},
        "set model.lora_alpha=32, or model.init_mode=merge": {"lora_alpha": 8, "init_from": before},
        'set model.lora_targets=.*"v_proj"': {"lora_targets": ["q_proj"], "init_from": before},
        "set model.method=lora": {"method": "qlora", "init_from": before},
        "holds no checkpoint": {"init_from": str(base[0])},
    }.items():
        config = configure(**model)
        with pytest.raises(ValueError, match=message):
            train(config)
        assert not config.run_dir.exists()


def logits_of(run_dir: Path) -> tuple[torch.Tensor, object, dict]:
    """(logits on a probe prompt, config, the prompt)"""
    config, model, processor = load_model(find(run_dir), device="cpu")
    inputs = probe_inputs(config, processor)
    return probe_logits(model, inputs), config, inputs


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full", "qlora"])
def test_merged_weights_are_the_base_of_a_new_adapter(run_of, configure, method, tmp_path, capsys):
    """Through a third run, which trains that adapter further and names the base where all began."""
    before = run_of(method)
    new = "qlora" if method == "qlora" else "lora"
    merged = {"method": new, "lora_rank": 2, "init_mode": "merge", "init_from": str(before.run_dir)}
    config = configure(learning_rate=1e-9, **merged)  # 0 would leave a new adapter without a gradient
    train(config)
    folder = config.run_dir / "base"
    ours, saved, inputs = logits_of(config.run_dir)
    assert saved.model.path == str(folder) and "merged into the base" in capsys.readouterr().out
    apart = distance(logits_of(before.run_dir)[0], ours)  # bfloat16, and of qlora quantised again
    print(method, apart)
    assert apart.mean_kl < (0.05 if method == "qlora" else 1e-3)

    third = configure(name="third", method=new, lora_rank=2, init_from=str(config.run_dir))
    train(third)
    start = json.loads((third.run_dir / "start.json").read_text())
    assert (start["base"], start["path"]) == (before.model.path, str(folder))
    assert_equal(weights(third.run_dir), weights(config.run_dir))

    if new == "lora":  # the adapter by itself, on the base that it says it is for
        adapter = shutil.copytree(third.run_dir / "checkpoints/last/model", tmp_path / "adapter")
        named = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
        plain = PeftModel.from_pretrained(load_plain(Path(named), config.model, "cpu").float(), adapter)
        torch.testing.assert_close(probe_logits(plain, inputs), ours, rtol=1e-3, atol=1e-3)
    card = export_run(third.run_dir, tmp_path / "export", device="cpu").directory / "README.md"
    assert f"The weights of the run `{config.run_dir}` (step 2) were trained further." in card.read_text()
