"""Qwen3-VL, the dense Instruct and Thinking checkpoints of 2B, 4B, 8B and 32B, and the tiny family of the same classes.

Legend: T tokens.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from qwenvl_agent.families.architecture import Architecture
from qwenvl_agent.families.calls import HERMES
from qwenvl_agent.families.family import PROJECTION, ClassNames, Family, ModulePaths, Template
from qwenvl_agent.families.mrope import token_positions

TEMPLATE = Template(
    turn_begin="<|im_start|>",
    turn_end="<|im_end|>",
    vision_start="<|vision_start|>",
    image_pad="<|image_pad|>",
    vision_end="<|vision_end|>",
    other_vision=("<|vision_pad|>", "<|video_pad|>"),
    result_begin="<tool_response>",
    result_end="</tool_response>",
    think_begin="<think>",
    think_end="</think>",
    tools_head="""# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>""",
    tools_tail="""
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>""",
)

ADDED_TOKENS = {
    "<|endoftext|>": True,
    "<|im_start|>": True,
    "<|im_end|>": True,
    "<|object_ref_start|>": True,
    "<|object_ref_end|>": True,
    "<|box_start|>": True,
    "<|box_end|>": True,
    "<|quad_start|>": True,
    "<|quad_end|>": True,
    "<|vision_start|>": True,
    "<|vision_end|>": True,
    "<|vision_pad|>": True,
    "<|image_pad|>": True,
    "<|video_pad|>": True,
    "<tool_call>": False,
    "</tool_call>": False,
    "<|fim_prefix|>": False,
    "<|fim_middle|>": False,
    "<|fim_suffix|>": False,
    "<|fim_pad|>": False,
    "<|repo_name|>": False,
    "<|file_sep|>": False,
    "<tool_response>": False,
    "</tool_response>": False,
    "<think>": False,
    "</think>": False,
}

PLAIN_CHAT_TEMPLATE = """\
{%- if tools %}{{ raise_exception('this template takes no tools: write them into the system message') }}{% endif -%}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- else %}
        {%- for part in message.content %}
            {%- if part.type == 'image' or 'image' in part or 'image_url' in part %}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' }}
            {%- else %}
                {{- part.text }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- 'OPENING' }}
{%- endif %}
"""

_SMALL_TOWER: dict[str, Any] = {"vision_hidden": 1024, "vision_depth": 24, "vision_intermediate": 4096}
_LARGE_TOWER: dict[str, Any] = {"vision_hidden": 1152, "vision_depth": 27, "vision_intermediate": 4304}
MODEL_TYPE = "qwen3_vl"
_COMMON: dict[str, Any] = {
    "model_type": MODEL_TYPE,
    "kv_heads": 8,
    "head_dim": 128,
    "vocab": 151936,
    "vision_heads": 16,
    "num_positions": 2304,
    "num_side_mergers": 3,
}
PUBLISHED = {
    "Qwen/Qwen3-VL-2B-Instruct": Architecture(
        hidden=2048, layers=28, heads=16, intermediate=6144, tied=True, **_SMALL_TOWER, **_COMMON
    ),
    "Qwen/Qwen3-VL-4B-Instruct": Architecture(
        hidden=2560, layers=36, heads=32, intermediate=9728, tied=True, **_SMALL_TOWER, **_COMMON
    ),
    "Qwen/Qwen3-VL-8B-Instruct": Architecture(
        hidden=4096, layers=36, heads=32, intermediate=12288, tied=False, **_LARGE_TOWER, **_COMMON
    ),
    "Qwen/Qwen3-VL-32B-Instruct": Architecture(
        hidden=5120, layers=64, heads=64, intermediate=25600, tied=False, **_LARGE_TOWER, **_COMMON
    ),
}


PUBLISHED |= {path.replace("-Instruct", "-Thinking"): arch for path, arch in PUBLISHED.items()}


def read_architecture(values: dict) -> Architecture:
    """From a config.json's values; KeyError names what is missing."""
    text, vision = values["text_config"], values["vision_config"]
    return Architecture(
        model_type=MODEL_TYPE,
        hidden=text["hidden_size"],
        layers=text["num_hidden_layers"],
        heads=text["num_attention_heads"],
        kv_heads=text["num_key_value_heads"],
        head_dim=text["head_dim"],
        intermediate=text["intermediate_size"],
        vocab=text["vocab_size"],
        tied=values.get("tie_word_embeddings", text.get("tie_word_embeddings", False)),
        vision_hidden=vision["hidden_size"],
        vision_depth=vision["depth"],
        vision_intermediate=vision["intermediate_size"],
        vision_heads=vision["num_heads"],
        num_positions=vision["num_position_embeddings"],
        num_side_mergers=len(vision["deepstack_visual_indexes"]),
        patch=vision["patch_size"],
        merge=vision["spatial_merge_size"],
        temporal=vision["temporal_patch_size"],
        channels=vision.get("in_channels", 3),
    )


def config_of(arch: Architecture):
    from transformers import Qwen3VLConfig

    return Qwen3VLConfig(**config_values(arch))


def config_values(arch: Architecture) -> dict[str, Any]:
    """Of a config.json, with the published token ids, positions and blocks before the tower's end."""
    blocks = range(arch.vision_depth // 4, arch.vision_depth, max(1, arch.vision_depth // 4))
    return {
        "tie_word_embeddings": arch.tied,
        "text_config": {
            "hidden_size": arch.hidden,
            "num_hidden_layers": arch.layers,
            "num_attention_heads": arch.heads,
            "num_key_value_heads": arch.kv_heads,
            "head_dim": arch.head_dim,
            "intermediate_size": arch.intermediate,
            "vocab_size": arch.vocab,
            "max_position_embeddings": 262144,
            "tie_word_embeddings": arch.tied,
            "eos_token_id": 151645,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5e6,
                "mrope_interleaved": True,
                "mrope_section": [24, 20, 20],
            },
        },
        "vision_config": {
            "hidden_size": arch.vision_hidden,
            "depth": arch.vision_depth,
            "intermediate_size": arch.vision_intermediate,
            "num_heads": arch.vision_heads,
            "out_hidden_size": arch.hidden,
            "num_position_embeddings": arch.num_positions,
            "deepstack_visual_indexes": DEEPSTACK.get(arch.vision_depth) or list(blocks)[: arch.num_side_mergers],
            "patch_size": arch.patch,
            "spatial_merge_size": arch.merge,
            "temporal_patch_size": arch.temporal,
        },
    }


DEEPSTACK = {24: [5, 11, 17], 27: [8, 16, 24]}
"""Which blocks of the published towers have mergers of their own, by the tower's depth."""


def only_thinks(path: str, chat_template: str | None) -> bool:
    """The Thinking checkpoints, which have the Instruct ones' classes and sizes."""
    return "thinking" in Path(path).name.lower() or "<think>" in (chat_template or "")


def tiny_config(tokenizer, **sizes):
    """`sizes` are those of `tiny_values`."""
    from transformers import Qwen3VLConfig

    return Qwen3VLConfig(**tiny_values(tokenizer, **sizes))


def tiny_values(
    tokenizer,
    *,
    hidden_size: int,
    num_layers: int,
    num_heads: int,
    vision_hidden_size: int,
    vision_depth: int,
    num_kv_heads: int = 2,
    merge_size: int = 2,
    max_grid: int = 32,
) -> dict[str, Any]:
    """`max_grid` is the side of the learned grid of vision positions, in patches."""
    head_dim = hidden_size // num_heads
    section = head_dim // 2 * 20 // 64  # the published 24:20:20 of 64
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "video_pad")}
    return {
        "image_token_id": ids["image_pad"],
        "video_token_id": ids["video_pad"],
        "vision_start_token_id": tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        "vision_end_token_id": tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        "tie_word_embeddings": True,
        "text_config": {
            "vocab_size": math.ceil(len(tokenizer) / 64) * 64,
            "hidden_size": hidden_size,
            "intermediate_size": hidden_size * 3,
            "num_hidden_layers": num_layers,
            "num_attention_heads": num_heads,
            "num_key_value_heads": num_kv_heads,
            "head_dim": head_dim,
            "max_position_embeddings": 32768,
            # No pad_token_id: under ZeRO-3 its row would be initialised in an empty shard.
            "eos_token_id": tokenizer.eos_token_id,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_interleaved": True,
                "mrope_section": [head_dim // 2 - 2 * section, section, section],
            },
            "tie_word_embeddings": True,
        },
        "vision_config": {
            "depth": vision_depth,
            "hidden_size": vision_hidden_size,
            "intermediate_size": vision_hidden_size * 4,
            "num_heads": max(1, vision_hidden_size // 32),
            "out_hidden_size": hidden_size,
            "patch_size": 16,
            "spatial_merge_size": merge_size,
            "temporal_patch_size": 2,
            "num_position_embeddings": max_grid**2,
            "deepstack_visual_indexes": [0],
        },
    }


def encode_pictures(base, pixel_values, grids) -> list[dict]:
    """Of each picture `merged` (T, hidden) and `deepstack` (levels, T, hidden)."""
    import torch

    output = base.model.get_image_features(pixel_values, grids, return_dict=True)
    levels = map(torch.stack, zip(*output.deepstack_features, strict=True))
    return [
        {"merged": merged, "deepstack": deepstack}
        for merged, deepstack in zip(output.pooler_output, levels, strict=True)
    ]


def join_features(pictures: Sequence[dict]) -> SimpleNamespace:
    levels = zip(*(picture["deepstack"] for picture in pictures), strict=True)
    return SimpleNamespace(
        pooler_output=tuple(picture["merged"] for picture in pictures),
        deepstack_features=[tuple(level) for level in levels],
    )


def bind_pictures(base) -> None:
    from qwenvl_agent.families import pictures

    pictures.bind_pictures(base)


QWEN3_VL = Family(
    model_type=MODEL_TYPE,
    title="Qwen3-VL",
    unfit={},
    template=TEMPLATE,
    calls=HERMES,
    added_tokens=ADDED_TOKENS,
    padding="<|endoftext|>",
    control_words=("tool_call", "tool_response", "tools", "think"),
    paths=ModulePaths(
        language="model.language_model",
        layers="model.language_model.layers",
        head="lm_head",
        vision="model.visual",
        patch_projection="model.visual.patch_embed.proj",
        adapters={
            "language": rf"model\.language_model\.layers\.\d+\.\w+\.{PROJECTION}",
            "merger": r"model\.visual\.(merger|deepstack_merger_list\.\d+)\.linear_fc[12]",
            "vision": r"model\.visual\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.linear_fc[12])",
        },
        projections=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    ),
    classes=ClassNames(
        model="Qwen3VLForConditionalGeneration",
        config="Qwen3VLConfig",
        processor="Qwen3VLProcessor",
        tokenizer="Qwen2Tokenizer",
        image_processor="Qwen2VLImageProcessor",
        video_processor="Qwen3VLVideoProcessor",
    ),
    model_inputs=("input_ids", "attention_mask", "position_ids", "mm_token_type_ids", "image_grid_thw"),
    positions=token_positions,
    published=PUBLISHED,
    read_architecture=read_architecture,
    config_of=config_of,
    only_thinks=only_thinks,
    plain_chat_template=PLAIN_CHAT_TEMPLATE,
    tiny_config=tiny_config,
    encode_pictures=encode_pictures,
    join_features=join_features,
    bind_pictures=bind_pictures,
)
