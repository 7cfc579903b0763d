"""One picture, one instruction, one action: from a run, merged weights, an adapter, a plain model, a server."""

import json
import subprocess
import sys

import pytest
from PIL import Image
from test_endpoint import Server, completion, serving
from tiny_run import save_tiny_checkpoint, tiny_config

import qwenvl_agent
from qwenvl_agent.cli import predict
from qwenvl_agent.computer import Action, build_tool, to_turn
from qwenvl_agent.computer.context import SYSTEM_PROMPT
from qwenvl_agent.config import to_json
from qwenvl_agent.coordinates import Screen
from qwenvl_agent.files import write_json
from qwenvl_agent.inference.agent import Agent, load_agent, to_result
from qwenvl_agent.inference.load import base_of_adapter, find, load_model, local_policy
from qwenvl_agent.model.build import build_model, save_weights
from qwenvl_agent.schema import Answer, ToolCall, Turn

WIDTH, HEIGHT = 400, 200
SCREEN = Screen(WIDTH, HEIGHT)
FLOAT32 = {"method": "lora", "dtype": "float32", "autocast": False, "lora_rank": 4}


class Scripted:
    """Gives the answers in order, and keeps the requests."""

    def __init__(self, *answers: Answer):
        self.answers, self.requests = list(answers), []

    def act(self, requests):
        self.requests += requests
        return [self.answers.pop(0) for _ in requests]


def clicked(x=100, y=50) -> Answer:
    return Answer(to_turn([Action.click(x, y)], SCREEN, "There."))


@pytest.fixture
def screenshot(tmp_path):
    path = tmp_path / "screen.png"
    Image.new("RGB", (WIDTH, HEIGHT), "white").save(path)
    return path


def test_an_action_is_in_pixels_of_the_picture_as_given(screenshot):
    policy = Scripted(clicked(), clicked())
    agent = Agent(policy, ["left_click"])
    expected = {"action": "click", "x": 100, "y": 50, "thought": "There.", "image_size": [WIDTH, HEIGHT]}
    assert agent.act(screenshot, "  open it ") == expected
    assert agent.act(Image.open(screenshot), "open it") == expected
    request = policy.requests[0]
    assert (request.system_prompt, request.observation.text) == (SYSTEM_PROMPT, "Task: open it")
    assert request.tools == (build_tool(["left_click"]),)
    assert request.observation.pictures[0].width == WIDTH


def test_what_was_done_before_can_be_handed_back(screenshot):
    policy = Scripted(clicked(), Answer(Turn(text="Hm.")), clicked())
    agent = Agent(policy)
    first = agent.act(screenshot, "open it")
    second = agent.act(screenshot, "open it", [first])
    agent.act(screenshot, "open it", ["went to the shop", first, second])
    assert policy.requests[2].observation.text.splitlines() == [
        "Task: open it",
        "Steps so far:",
        "1. went to the shop",
        '2. {"action": "left_click", "coordinate": [250, 250]}',
        "3. (unreadable: no_action)",
    ]


def test_several_actions_repairs_and_failures_are_told():
    typed = to_turn([Action.click(100, 50), Action("type", text="cats")], SCREEN)
    result = to_result(Answer(typed), SCREEN)
    assert result["then"] == [{"action": "type", "text": "cats"}] and "repairs" not in result
    assert Agent(Scripted(clicked())).act(Image.new("RGB", (WIDTH, HEIGHT)), "x", [result])["x"] == 100
    mended = Answer(Turn("", (ToolCall("computer_use", {"action": "click", "x": 2000, "y": 5}),)), text="...")
    result = to_result(mended, SCREEN)
    assert (result["x"], result["y"], result["raw"]) == (WIDTH - 1, 1, "...")
    assert set(result["repairs"]) == {"renamed_action", "xy_keys", "clamped"}
    for answer, error in (
        (Answer(Turn(), "{", "json_error"), "json_error"),
        (Answer(Turn(text="No."), "No."), "no_action"),
        (Answer(Turn("", (ToolCall("computer_use", {"action": "fly"}),)), "fly"), "unknown_action"),
    ):
        result = to_result(answer, SCREEN)
        assert (result["action"], result["error"], result["raw"]) == (None, error, answer.text)
    json.dumps(result)


@pytest.mark.parametrize(
    ("history", "message"),
    [([{"action": "click", "x": 1, "y": 2}], "image_size"), ([{"action": "fly", "image_size": [9, 9]}], "no action")],
)
def test_a_history_that_means_nothing_is_refused(screenshot, history, message):
    with pytest.raises(ValueError, match=message):
        Agent(Scripted(clicked())).act(screenshot, "open it", history)


def test_bad_pictures_and_empty_instructions_are_refused(screenshot, tmp_path, monkeypatch):
    agent = Agent(Scripted())
    (tmp_path / "cut.png").write_bytes(screenshot.read_bytes()[:60])
    for path, message in (
        (tmp_path / "gone.png", "does not exist"),
        (tmp_path / "cut.png", "not a readable picture"),
        (tmp_path, "not a readable picture"),
    ):
        with pytest.raises(ValueError, match=message):
            agent.act(path, "open it")
    with pytest.raises(ValueError, match="instruction is empty"):
        agent.act(screenshot, " ")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", WIDTH * HEIGHT - 1)
    with pytest.raises(ValueError, match="more than 79999 pixels"):
        agent.act(screenshot, "open it")


def test_importing_the_package_is_cheap():
    heavy = "torch", "transformers", "PIL", "numpy", "jsonschema"
    code = f"import sys, qwenvl_agent; assert not [m for m in {heavy} if m in sys.modules]; qwenvl_agent.load_agent"
    subprocess.run([sys.executable, "-c", code + "; assert 'torch' not in sys.modules"], check=True)
    assert qwenvl_agent.load_agent is load_agent
    with pytest.raises(AttributeError, match="no attribute 'fly'"):
        qwenvl_agent.fly  # noqa: B018


# real (random, tiny) models


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """(run, its base): the run's adapter is not zero, so that it changes what is written."""
    import torch

    directory = tmp_path_factory.mktemp("models")
    base = save_tiny_checkpoint(directory / "base")
    changes = {"model": FLOAT32, "eval": {"max_new_tokens": 6, "world": {"actions": ["left_click"]}}}
    config = tiny_config(directory, base, directory / "dataset.jsonl", **changes)
    model = build_model(config.model, "cpu")
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.2)
    saved = config.run_dir / "checkpoints" / "step_000001"
    save_weights(model, saved / "model")
    write_json(saved / "config.json", to_json(config))
    (config.run_dir / "checkpoints" / "last").symlink_to("step_000001")
    settings = directory / "settings.json"
    write_json(settings, to_json(config))
    return config.run_dir, base, settings


def written(agent: Agent, path) -> str:
    """What the model wrote: random weights give no action, so the raw text comes back."""
    return agent.act(path, "open it")["raw"]


def test_every_way_to_name_a_model_loads_it(models, screenshot):
    run, base, settings = models
    adapter = run / "checkpoints" / "step_000001" / "model"
    greedy = {"temperature": 0.0, "device": "cpu"}
    of_run = written(load_agent(run, **greedy), screenshot)
    assert of_run == written(load_agent(run, checkpoint="step_000001", **greedy), screenshot)
    assert of_run == written(load_agent(run / "checkpoints" / "last", **greedy), screenshot)
    assert of_run == written(load_agent(adapter, **greedy), screenshot)
    plain = written(load_agent(base, config=settings, **greedy), screenshot)
    assert plain and plain != of_run
    assert load_agent(run, device="cpu").kinds == ("left_click",)
    assert load_agent(run, device="cpu", actions=["type", "key"]).kinds == ("type", "key")
    assert load_agent(run, device="cpu").policy.cfg.temperature == 0.1


def test_an_adapter_away_from_its_run_goes_onto_its_base(models, screenshot, tmp_path):
    import shutil

    run, base, settings = models
    adapter = tmp_path / "adapter"
    shutil.copytree(run / "checkpoints" / "step_000001" / "model", adapter)
    assert base_of_adapter(str(adapter)) == str(base) and base_of_adapter(str(base)) == ""
    greedy = {"temperature": 0.0, "device": "cpu"}
    moved = load_agent(adapter, config=settings, **greedy)
    assert written(moved, screenshot) == written(load_agent(run, **greedy), screenshot)
    (adapter / "adapter_config.json").write_text("{")
    with pytest.raises(ValueError, match="adapter_config.json cannot be read"):
        load_agent(adapter, device="cpu")


def test_merged_weights_bring_their_settings(models, screenshot, tmp_path):
    from qwenvl_agent.export import export_run

    run, _, _ = models
    export_run(run, tmp_path / "merged", device="cpu")
    loaded = load_model(find(tmp_path / "merged"), device="cpu")
    assert loaded.config.vision.max_tokens_per_image == 16 and loaded.config.model.path == str(tmp_path / "merged")
    policy = local_policy(loaded)
    assert Agent(policy).act(screenshot, "open it")["image_size"] == [WIDTH, HEIGHT]


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("runs/nothing", {}, "cannot be read"),
        ("runs/nothing", {"checkpoint": "best"}, "which is no run"),
        ("runs/nothing", {"temperature": -1.0}, "temperature is -1.0"),
        ("runs/nothing", {"format": "xml"}, "format is 'xml'"),
        ("runs/nothing", {"config": "nowhere.json"}, "nowhere.json"),
        ("RUN", {"format": "plain"}, "has its own settings"),
        ("RUN", {"checkpoint": "step_9"}, "holds no checkpoint"),
    ],
)
def test_what_cannot_be_loaded_says_why(models, path, options, message, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=message):
        load_agent(models[0] if path == "RUN" else path, device="cpu", **options)


# the command line


def command(*arguments) -> int:
    return predict.main([str(argument) for argument in arguments])


def test_the_command_prints_one_action_and_draws_it(models, screenshot, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(predict, "load_agent", lambda path, **options: Agent(Scripted(clicked())))
    drawn = tmp_path / "drawn.png"
    assert command("--run", models[0], "--image", screenshot, "--instruction", "open it", "--draw", drawn) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["action"], printed["x"], printed["y"]) == ("click", 100, 50)
    pixels = Image.open(drawn).load()
    assert pixels[100, 50] == (255, 0, 0) and pixels[106, 50] == (255, 0, 0) and pixels[300, 150] == (255, 255, 255)


def test_the_command_runs_a_real_model_and_says_when_nothing_was_read(models, screenshot, capsys):
    arguments = ["--run", models[0], "--image", screenshot, "--instruction", "open it", "--device", "cpu"]
    assert command(*arguments) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["action"] is None and printed["error"] and printed["image_size"] == [WIDTH, HEIGHT]


@pytest.mark.loopback
def test_the_command_asks_a_server(models, screenshot, capsys):
    run, base, settings = models
    call = '<tool_call>\n{"name": "computer_use", "arguments": {"action": "left_click", "coordinate": [250, 250]}}\n</tool_call>'
    collator = load_agent(base, config=settings, device="cpu").policy.collator
    server = Server(collator)
    server.reply = lambda body, number: (200, completion(f"There.\n{call}", server_count(server, collator, body)))
    with serving(server) as url:
        arguments = ["--endpoint", url, "--model", base, "--config", settings, "--image", screenshot]
        assert command(*arguments, "--instruction", "open it", "--history", "came here") == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["action"], printed["x"], printed["y"], printed["thought"]) == ("click", 100, 50, "There.")
    body = server.bodies[-1]
    assert body["temperature"] == 0.1 and body["model"] == str(base)
    assert "1. came here" in json.dumps(body["messages"])


def server_count(server, collator, body) -> int:
    from test_endpoint import served_ids

    with server.lock:
        return len(served_ids(body["messages"], collator.tokenizer, collator.geometry.token_px))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image", "gone.png"], "gone.png' does not exist"),
        (["--image", "SCREEN", "--draw", "out.txt"], "cannot be written"),
        (["--image", "SCREEN", "--draw", "no/folder/out.png"], "cannot be written"),
        (["--image", "SCREEN", "--endpoint", "http://x/v1"], "without --model"),
        (["--image", "THIN", "--device", "cpu"], "aspect ratio"),
        (["--image", "SCREEN", "--instruction", " ", "--device", "cpu"], "instruction is empty"),
    ],
)
def test_a_users_mistake_is_one_message(models, screenshot, arguments, message, capsys, tmp_path):
    Image.new("RGB", (2000, 2)).save(tmp_path / "thin.png")
    places = {"SCREEN": screenshot, "THIN": tmp_path / "thin.png"}
    arguments = [places.get(argument, argument) for argument in arguments]
    assert command("--run", models[0], "--instruction", "open it", *arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and message in captured.err and "Traceback" not in captured.err
