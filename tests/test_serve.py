"""The endpoint policy against the real `transformers serve`, with an exported tiny model."""

import asyncio
import json
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from conftest import request_of
from tiny_run import save_tiny_checkpoint, tiny_config

import eval as evaluation
from qwenvl_agent.config import to_json
from qwenvl_agent.data.collator import Collator
from qwenvl_agent.data.pixels import pixel_values
from qwenvl_agent.export import export_run
from qwenvl_agent.files import write_json
from qwenvl_agent.formats import FORMATS
from qwenvl_agent.inference.endpoint import EndpointPolicy
from qwenvl_agent.inference.policy import ModelPolicy
from qwenvl_agent.model.build import bind_precision, build_model, build_processor, load_base, save_weights
from qwenvl_agent.records import read_records

pytestmark = [pytest.mark.slow, pytest.mark.loopback]
SERVED = [name for name, fmt in FORMATS.items() if not fmt.opening]
"""Those whose prompts the folder makes: of another, whose answers begin otherwise, the check refuses it."""
pytest.importorskip("fastapi", reason="the serving extra is not installed: pip install 'transformers[serving]'")

WORLD = {"width": 20, "height": 20, "num_trees": 48, "num_animals": 10, "max_turns": 3, "tile_px": 16}
# Computed in float32 by both, greedy answers agree to the letter.
FLOAT32 = {"method": "lora", "dtype": "float32", "autocast": False}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(config, folder of the merged model)"""
    directory = tmp_path_factory.mktemp("tiny")
    base = save_tiny_checkpoint(directory / "base")
    changes = {"eval": {"world": WORLD, "max_new_tokens": 24}, "vision": {"max_tokens_per_image": 30}}
    config = tiny_config(directory, base, directory / "dataset.jsonl", model=FLOAT32, **changes)
    model = build_model(config.model, "cpu")
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.05)
    saved = config.run_dir / "checkpoints" / "best"
    save_weights(model, saved / "model")
    write_json(saved / "config.json", to_json(config))
    export_run(config.run_dir, directory / "agent", device="cpu")
    export_run(config.run_dir, directory / "parsed", device="cpu", parse_on_server=True)
    return config, directory / "agent"


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@contextmanager
def serving(folder):
    """`transformers serve` in this process, so that its model's inputs can be seen."""
    from transformers.cli.serve import Serve

    port = free_port()
    server = Serve(
        force_model=str(folder), device="cpu", dtype="float32", host="127.0.0.1", port=port, non_blocking=True
    )
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.kill_server()


def collator_of(config, name: str) -> Collator:
    return Collator(
        build_processor(config.model, config.vision), FORMATS[name], config.prompt, config.vision, config.train
    )


def local_policy(config, folder, collator) -> ModelPolicy:
    """The folder's model under the local policy; the prompts stay those of the run's own processor."""
    model_cfg = replace(config.model, path=str(folder), autocast=False)
    model = load_base(model_cfg, "cpu", None).eval()
    bind_precision(model, model_cfg, "cpu")
    processor = build_processor(config.model, config.vision)
    return ModelPolicy(model, processor, collator, collator.fmt, config.eval)


def test_prompts_and_answers_are_those_of_the_local_policy(exported, monkeypatch):
    from transformers.cli.serving.utils import GenerateManager

    config, folder = exported
    given = []
    generate = GenerateManager.generate_non_streaming

    def watch(self, model, processor, inputs, gen_config, request_id):
        given.append(inputs)
        return generate(self, model, processor, inputs, gen_config, request_id)

    monkeypatch.setattr(GenerateManager, "generate_non_streaming", watch)
    requests = [request_of(0, 1), request_of(6, 1, size=96), request_of(1, 2, size=64, system="")]
    with serving(folder) as url:
        for name in SERVED:
            collator = collator_of(config, name)
            policy = EndpointPolicy(url, str(folder), collator, collator.fmt, replace(config.eval, batch_size=1))
            policy.check()
            given.clear()
            answers = policy.act(requests)
            for request, inputs in zip(requests, given, strict=True):
                local = collator.encode_prompt([request])
                assert inputs["input_ids"].tolist() == local["input_ids"].tolist()
                assert inputs["image_grid_thw"].tolist() == local["image_grid_thw"].tolist()
                assert torch.equal(inputs["pixel_values"], pixel_values(local))
            assert answers == local_policy(config, folder, collator).act(requests)
            together = EndpointPolicy(url, str(folder), collator, collator.fmt, config.eval)
            assert together.act(requests) == answers


def written_instead(monkeypatch, text: str) -> None:
    """Let the server's model write `text`."""
    from transformers.cli.serving.utils import GenerateManager

    async def write(self, model, processor, inputs, gen_config, request_id):
        ids = torch.tensor(processor.tokenizer(text, add_special_tokens=False)["input_ids"])
        await asyncio.sleep(0)
        return processor.decode(ids, skip_special_tokens=True), inputs["input_ids"].shape[-1], ids

    monkeypatch.setattr(GenerateManager, "generate_non_streaming", write)


GOOD = 'Up.\n<tool_call>\n{"name": "move", "arguments": {"direction": "UP"}}\n</tool_call>'
TEXTS = (
    GOOD,
    f"{GOOD}\n{GOOD}",
    GOOD.replace("}}", "}"),
    GOOD[:-20],
    "\n Hm. \n",
    "",
    "<think>a</think>b",
    "<|box_end|> a",
)


@pytest.mark.parametrize("name", SERVED)
def test_malformed_answers_are_read_as_locally(exported, monkeypatch, name):
    config, folder = exported
    collator = collator_of(config, name)
    request = request_of()
    with serving(folder) as url:
        policy = EndpointPolicy(url, str(folder), collator, collator.fmt, replace(config.eval, max_new_tokens=999))
        for text in TEXTS:
            written_instead(monkeypatch, text + "<|im_end|>")
            assert policy.act([request]) == [collator.fmt.parse(text, request.tools)]


def test_a_server_that_parses_shows_it(exported, monkeypatch):
    config, folder = exported
    folder = folder.with_name("parsed")
    collator = collator_of(config, "native")
    request = request_of()
    with serving(folder) as url:
        policy = EndpointPolicy(
            url, str(folder), collator, collator.fmt, replace(config.eval, max_new_tokens=999), first_pause_s=0.01
        )
        written_instead(monkeypatch, GOOD + "<|im_end|>")
        answer = collator.fmt.parse(GOOD, request.tools)
        assert policy.act([request]) == [replace(answer, repairs=("parsed_by_server",))]
        written_instead(monkeypatch, GOOD.replace('"move"', "move") + "<|im_end|>")
        assert [one.error for one in policy.act([request])] == ["server_error"]


def test_another_picture_budget_is_refused(exported):
    config, folder = exported
    collator = collator_of(replace(config, vision=replace(config.vision, min_tokens_per_image=1)), "native")
    with serving(folder) as url:
        policy = EndpointPolicy(url, str(folder), collator, collator.fmt, config.eval)
        with pytest.raises(ValueError, match=r"counts \d+ prompt tokens and the same prompt has \d+ here"):
            policy.check()
        with pytest.raises(ValueError, match="refuses a request for the model 'other' .status 400: .*pinned"):
            EndpointPolicy(url, "other", collator, collator.fmt, config.eval).check()


def test_eval_writes_the_records_of_the_local_model(exported, tmp_path, capsys):
    """From the command line, `transformers serve` too."""
    _, folder = exported
    port = free_port()
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder)]
    options = ["--device", "cpu", "--dtype", "float32", "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    common = [
        "--model",
        str(folder),
        "--config",
        str(folder / "qwenvl_agent.json"),
        "--suite",
        "safari",
        "--episodes",
        "3",
    ]
    try:
        wait_for(port, server)
        served = ["--endpoint", f"http://127.0.0.1:{port}/v1", "--out", str(tmp_path / "served")]
        assert evaluation.main([*common, *served]) == 0, capsys.readouterr().err
    finally:
        server.terminate()
        server.wait(60)
    assert evaluation.main([*common, "--out", str(tmp_path / "local")]) == 0, capsys.readouterr().err
    records = read_records(tmp_path / "served" / "records.jsonl")
    assert records == read_records(tmp_path / "local" / "records.jsonl")
    assert len(records) == 3 and all(step.text for record in records for step in record.steps)
    metrics = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("served", "local")]
    abouts = [result.pop("about") for result in metrics]
    assert metrics[0] == metrics[1] and abouts[0]["prompt_hash"] == abouts[1]["prompt_hash"]


def wait_for(port: int, server: subprocess.Popen, seconds: float = 300.0) -> None:
    """Until something listens there, or an error if the server has ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert server.poll() is None, server.stderr.read()
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise AssertionError(f"nothing listens on port {port} after {seconds} s")
