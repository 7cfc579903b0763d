"""A random tiny checkpoint, a small dataset and a config, for tests that train."""

import json
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from qwenvl_agent.config import Config, build_config
from qwenvl_agent.families import DEFAULT, Family
from qwenvl_agent.model.tiny import build_tiny_model, build_tiny_tokenizer, save_tiny

SYSTEM = "You walk in a park. Find the animal of the mission."
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "Do it.",
            "parameters": {"type": "object", "properties": {"direction": {"type": "string"}}},
        },
    }
    for name in ("move", "look")
]
DIRECTIONS = ("UP", "DOWN", "LEFT", "RIGHT")


def save_tiny_checkpoint(
    directory: Path, dtype: torch.dtype = torch.float32, family: Family = DEFAULT, **sizes: int
) -> Path:
    """Random weights that `from_pretrained` loads, hidden size 64, a vocabulary of a few hundred.

    The published checkpoints are bfloat16.
    """
    texts = [SYSTEM, json.dumps(TOOLS), "Thought: the animal is to the right. Action:"]
    tokenizer = build_tiny_tokenizer(texts, 320, family=family)
    save_tiny(directory, tokenizer, build_tiny_model(tokenizer, "test", family=family, **sizes).to(dtype))
    return directory


def save_dataset(directory: Path, num_rows: int = 24) -> Path:
    """A chat-style JSONL: a picture with a bright side, and a call that names it. Rows differ in length."""
    directory.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    lines = []
    for i in range(num_rows):
        pixels = random.integers(0, 100, (64, 64, 3), dtype=np.uint8)
        pixels[: 32 if i % 2 else 64, : 64 if i % 2 else 32] += 120
        Image.fromarray(pixels).save(directory / f"{i}.png")
        call = {"name": TOOLS[i % 2]["function"]["name"], "arguments": {"direction": DIRECTIONS[i % 4]}}
        messages = [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": f"<image>Mission {i}: find it." + " Hurry!" * (i % 5)},
            {
                "role": "assistant",
                "content": "It is there, go on. " * (1 + i % 3),
                "tool_calls": [{"type": "function", "function": call}],
            },
        ]
        lines.append(json.dumps({"id": f"row{i}", "messages": messages, "images": [f"{i}.png"], "tools": TOOLS}))
    (directory / "dataset.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return directory / "dataset.jsonl"


def save_mixed_dataset(directory: Path, num_rows: int, with_picture: Collection[int] = ()) -> Path:
    """A chat-style JSONL of questions, those of `with_picture` about a picture."""
    directory.mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(num_rows):
        pixels = np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(directory / f"{i}.png")
        place = "<image>" if i in with_picture else ""
        messages = [
            {"role": "user", "content": f"{place}What of {i}?"},
            {"role": "assistant", "content": "It is there. " * (1 + i % 3)},
        ]
        row = {"id": f"row{i}", "messages": messages, "images": [f"{i}.png"] if place else []}
        lines.append(json.dumps(row))
    (directory / "dataset.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return directory / "dataset.jsonl"


def tiny_config(directory: Path, checkpoint: Path, dataset: Path, **groups: dict) -> Config:
    """Settings of a short run in `directory`; `groups` override, as `train={"max_steps": 2}`."""
    values = {
        "name": "run",
        "runs_dir": str(directory / "runs"),
        "model": {"path": str(checkpoint), "method": "lora", "lora_rank": 4, "dtype": "float32", "autocast": False},
        "data": {
            "sources": [{"path": str(dataset), "kind": "chat"}],
            "cache_dir": str(dataset.parent / "cache"),
            "eval_fraction": 0.2,
            "num_workers": 0,
        },
        "prompt": {"format": "native"},
        "vision": {"max_tokens_per_image": 16, "min_tokens_per_image": 4},
        "train": {
            "max_steps": 6,
            "batch_size": 2,
            "accumulation": 2,
            "learning_rate": 1e-3,
            "log_every": 1,
            "save_every": 100,
            "eval_every": 0,
        },
        "eval": {"suite": "none", "step_rows": 3, "max_new_tokens": 8, "batch_size": 4},
    }
    for group, changes in groups.items():
        values[group] = values.get(group, {}) | changes if isinstance(changes, dict) else changes
    return build_config(values)


def save_config(config: Config, path: Path) -> Path:
    from qwenvl_agent.config import to_json

    path.write_text(json.dumps(to_json(config)), encoding="utf-8")
    return path
