"""Fixtures that many tests share: a tiny processor made in-process, the real one if it is there, example turns."""

import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest
from PIL import Image

from qwenvl_agent.families import DEFAULT, Family
from qwenvl_agent.schema import Observation, Picture, Request, Step, Tool, ToolCall, ToolResult, Turn
from qwenvl_agent.vision import Geometry

GUARD = Path(__file__).parent / "guard"
sys.path.append(str(GUARD))
import connections  # noqa: E402

ATTEMPTS = Path(tempfile.gettempdir()) / f"connections-{os.getpid()}"
LOOPBACK = Path(f"{ATTEMPTS}{connections.LOOPBACK}")


def pytest_configure(config):
    """Not at import: what takes a fixture from here for another use is not guarded."""
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(GUARD), os.environ.get("PYTHONPATH")]))
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported
    os.environ[connections.LOG] = str(ATTEMPTS)
    connections.install()


def pytest_unconfigure(config):
    ATTEMPTS.unlink(missing_ok=True)
    LOOPBACK.unlink(missing_ok=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item):
    """Before any fixture, and with the mark `loopback` for those of this test too."""
    ATTEMPTS.write_text("")
    LOOPBACK.unlink(missing_ok=True)
    if any(item.get_closest_marker(mark) for mark in ("loopback", "browser", "slow")):  # slow ones start ranks
        LOOPBACK.touch()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item):
    """The test fails if it, or a Python process of it, asked for an address that it may not have."""
    result = yield
    attempts = ATTEMPTS.read_text(encoding="utf-8").splitlines()
    assert not attempts, f"no test reaches the network (mark `loopback`: this machine alone): {attempts[:5]}"
    return result


# A busy machine is not a fault of the code.
hypothesis.settings.register_profile("no_deadline", deadline=None)
hypothesis.settings.load_profile("no_deadline")

CONTROL_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>"),
    *("<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<|image_pad|>", "<|video_pad|>"),
)
ADDED_TOKENS = (
    *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"),
    *("<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>"),
)
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SENTENCES = (
    "You are an agent in a safari park. Find the animal that the mission names.",
    "Thought: I stand at (3, 4). The red tiger is two tiles to the right.\nAction: move",
    '{"name": "move", "arguments": {"actions": [{"direction": "RIGHT", "steps": 2}]}}',
    "assistant\nuser\nsystem\nMission: 파란색 기린을 잡아줘. 호랑이는 오른쪽에 있다.",
    "任务：找到红色的老虎。我在左边，老虎在右边。",
)


@dataclass
class FakeProcessor:
    """What `model.Processor` holds, for tests that need no model."""

    tokenizer: object
    image_processor: object
    geometry: Geometry
    name: str
    family: Family = DEFAULT
    only_thinks: bool = False


def tiny_tokenizer():
    """Byte-level BPE with Qwen's split, normaliser and control tokens, trained on a few sentences."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=512, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )
    fast.add_special_tokens({"additional_special_tokens": list(CONTROL_TOKENS)})
    fast.add_tokens(list(ADDED_TOKENS))
    return fast


def tiny_processor(merge_size: int) -> FakeProcessor:
    from transformers import Qwen2VLImageProcessor

    token_area = (16 * merge_size) ** 2
    geometry = Geometry(patch_size=16, merge_size=merge_size, min_pixels=4 * token_area, max_pixels=1024 * token_area)
    image_processor = Qwen2VLImageProcessor(
        patch_size=16,
        merge_size=merge_size,
        size={"shortest_edge": geometry.min_pixels, "longest_edge": geometry.max_pixels},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return FakeProcessor(tiny_tokenizer(), image_processor, geometry, f"tiny-merge{merge_size}")


@pytest.fixture(scope="session", params=[1, 2], ids=["merge1", "merge2"])
def processor(request) -> FakeProcessor:
    """The tiny processor, at one patch a token and at 2x2."""
    return tiny_processor(request.param)


@pytest.fixture(scope="session")
def auto_processor():
    """Qwen3-VL's published processor, from the folder in QWENVL_PROCESSOR."""
    path = os.environ.get("QWENVL_PROCESSOR")
    if not path:
        pytest.skip("QWENVL_PROCESSOR names no folder with the files of Qwen3-VL's processor")
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(path)


@pytest.fixture(scope="session")
def real_processor(auto_processor) -> FakeProcessor:
    """The published processor in the form of the tiny one."""
    image_processor = auto_processor.image_processor
    size = image_processor.size
    geometry = Geometry(16, 2, size["shortest_edge"], size["longest_edge"])
    return FakeProcessor(auto_processor.tokenizer, image_processor, geometry, "real")


@pytest.fixture(scope="session", params=["tiny", "real"])
def any_processor(request) -> FakeProcessor:
    """The tiny and the real processor in turn."""
    return tiny_processor(1) if request.param == "tiny" else request.getfixturevalue("real_processor")


DIRECTIONS = ["UP", "DOWN", "LEFT", "RIGHT"]
ACTION_ITEM = {
    "type": "object",
    "properties": {"direction": {"type": "string", "enum": DIRECTIONS}, "steps": {"type": "integer"}},
    "required": ["direction", "steps"],
}
MOVE = Tool(
    "move",
    "Walk; stops at the first obstacle.",
    {"type": "object", "properties": {"actions": {"type": "array", "items": ACTION_ITEM}}, "required": ["actions"]},
)
NOTEPAD = Tool(
    "update_notepad",
    'Overwrite the notepad ("메모").',
    {"type": "object", "properties": {"content": {"type": "string"}}, "required": ["content"]},
)
DONE = Tool("declare_done", "End.", {"type": "object", "properties": {"reason": {"type": "string"}}, "required": []})
TOOLS = (MOVE, NOTEPAD, DONE)


def move(direction: str = "RIGHT", steps: int = 2) -> ToolCall:
    return ToolCall("move", {"actions": [{"direction": direction, "steps": steps}]})


TURNS = (
    Turn("The red tiger is two tiles to the right.", (move(),)),
    Turn(
        "호랑이가 위에 있다. 위로 간다.",
        (ToolCall("update_notepad", {"content": "계획:\n위로 3칸 {!}"}), move("UP", 3)),
    ),
    Turn("老虎在左边（“红色”）。", (move("LEFT", 1), ToolCall("declare_done", {}))),
    Turn(tool_calls=(ToolCall("update_notepad", {"content": 'he said "don\'t"\n\n```\n🐯\u200d🔥'}),)),
    Turn("One.\n\nTwo: a, b\n", (ToolCall("declare_done", {"reason": "끝", "extra": [1.5, True, None, {"키": []}]}),)),
    Turn(text="I see no tiger here.\n아직 없다."),
)


def picture(width: int = 160, height: int = 160, seed: int = 0) -> Picture:
    """A picture of noise: no two pixels of two seeds agree by construction."""
    import numpy as np

    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Picture.from_image(Image.fromarray(pixels))


def request_of(num_steps: int = 0, num_pictures: int = 1, size: int = 160, tools=TOOLS, system="You play.") -> Request:
    """A request with `num_steps` steps of history (all TURNS in turn), `num_pictures` in every observation."""
    steps = []
    for i in range(num_steps):
        turn = TURNS[i % len(TURNS)]
        results = tuple(ToolResult(call.name, {"status": "ok", "위치": [i, 2]}) for call in turn.tool_calls)
        pictures = tuple(picture(size, size, 100 * i + j) for j in range(num_pictures))
        steps.append(Step(Observation(f"Step: {i}\nNotepad:\n(empty)", pictures), turn, results))
    pictures = tuple(picture(size, size, 7 + j) for j in range(num_pictures))
    return Request(system, tools, tuple(steps), Observation("Mission: 호랑이\nassistant\n", pictures))


@pytest.fixture(scope="module")
def browser(request):
    """A Chromium, whose pages reach what the test file's REACH says, by default their own server alone."""
    from qwenvl_agent.worlds.browser import chromium

    try:
        chromium.find_chromium()
    except ValueError as error:
        pytest.skip(str(error))
    with chromium.open_browser(reach=getattr(request.module, "REACH", "own")) as running:
        yield running
