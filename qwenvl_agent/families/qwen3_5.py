"""Qwen3.5, the dense checkpoints; those of 3.6 and 3.8 have its classes. What differs from Qwen3-VL:

- three of four language layers are gated linear attention, whose state runs on from token to token: rows cannot share a
  pack, and prompts no padding between their tokens;
- tools stand before the system's text, white space around texts goes, calls are elements (element_calls.py);
- an answer begins inside a think block (format think), or behind an empty one (all others);
- the tower has no mergers before its end, and the vocabulary is 248,320.

Linear attention runs on the kernels that transformers finds (flash-linear-attention, causal-conv1d), else on its own torch code.
"""

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from qwenvl_agent.families import qwen3_vl
from qwenvl_agent.families.architecture import Architecture
from qwenvl_agent.families.element_calls import ElementCalls
from qwenvl_agent.families.family import PROJECTION, ClassNames, ModulePaths
from qwenvl_agent.families.qwen3_vl import PUBLISHED, QWEN3_VL

MODEL_TYPE = "qwen3_5"
TOOLS_TAIL = """
</tools>

If you choose to call a function ONLY reply in the following format with NO suffix:

<tool_call>
<function=example_function_name>
<parameter=example_parameter_1>
value_1
</parameter>
<parameter=example_parameter_2>
This is the value for the second parameter
that can span
multiple lines
</parameter>
</function>
</tool_call>

<IMPORTANT>
Reminder:
- Function calls MUST follow the specified format: an inner <function=...></function> block must be nested within <tool_call></tool_call> XML tags
- Required parameters MUST be specified
- You may provide optional reasoning for your function call in natural language BEFORE the function call, but NOT after
- If there is no function call available, answer the question like normal with your current knowledge and do not tell the user about function calls
</IMPORTANT>"""

LINEAR = ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj")


def read_architecture(values: dict) -> Architecture:
    """From a config.json's values; KeyError names what is missing."""
    text = values["text_config"]
    shared = qwen3_vl.read_architecture(
        values | {"vision_config": values["vision_config"] | {"deepstack_visual_indexes": ()}}
    )
    every = text.get("full_attention_interval", 4)
    kinds = text.get("layer_types") or [
        "full_attention" if (i + 1) % every == 0 else "linear_attention" for i in range(shared.layers)
    ]
    return replace(
        shared,
        model_type=MODEL_TYPE,
        gated=True,
        linear_layers=kinds.count("linear_attention"),
        linear_keys=text["linear_num_key_heads"] * text["linear_key_head_dim"],
        linear_values=text["linear_num_value_heads"] * text["linear_value_head_dim"],
        linear_heads=text["linear_num_value_heads"],
        linear_kernel=text["linear_conv_kernel_dim"],
    )


def config_of(arch: Architecture):
    from transformers import Qwen3_5Config

    values = qwen3_vl.config_values(arch)
    del values["vision_config"]["deepstack_visual_indexes"]
    values["text_config"] |= linear_values(arch) | {
        "eos_token_id": 248044,
        "rope_parameters": rope(arch.head_dim, 1e7),
    }
    return Qwen3_5Config(**values)


def linear_values(arch: Architecture) -> dict[str, Any]:
    head = arch.linear_values // arch.linear_heads
    every = arch.layers // max(1, arch.full_layers)
    return {
        "linear_num_key_heads": arch.linear_keys // head,
        "linear_num_value_heads": arch.linear_heads,
        "linear_key_head_dim": head,
        "linear_value_head_dim": head,
        "linear_conv_kernel_dim": arch.linear_kernel,
        "full_attention_interval": every,
        "layer_types": ["linear_attention" if (i + 1) % every else "full_attention" for i in range(arch.layers)],
    }


def rope(head_dim: int, theta: float) -> dict[str, Any]:
    """A quarter of each head turns, by the published 11:11:10 of 32."""
    turning = head_dim // 8
    section = max(1, turning * 11 // 32)
    return {
        "rope_type": "default",
        "rope_theta": theta,
        "partial_rotary_factor": 0.25,
        "mrope_interleaved": True,
        "mrope_section": [section, section, turning - 2 * section],
    }


def tiny_config(tokenizer, **sizes: Any):
    """A language model of which every second layer is linear, so that two layers have both kinds."""
    from transformers import Qwen3_5Config

    values = qwen3_vl.tiny_values(tokenizer, **sizes)
    del values["vision_config"]["deepstack_visual_indexes"]
    num_layers, head_dim = sizes["num_layers"], values["text_config"]["head_dim"]
    values["text_config"] |= {
        "layer_types": ["full_attention" if i % 2 else "linear_attention" for i in range(num_layers)],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "linear_conv_kernel_dim": 4,
        "rope_parameters": rope(head_dim, 1e6),
    }
    return Qwen3_5Config(**values)


def encode_pictures(base, pixel_values, grids) -> list[dict]:
    """Of each picture `merged` (T, hidden)."""
    output = base.model.get_image_features(pixel_values, grids, return_dict=True)
    return [{"merged": merged} for merged in output.pooler_output]


def join_features(pictures: Sequence[dict]) -> SimpleNamespace:
    return SimpleNamespace(pooler_output=tuple(picture["merged"] for picture in pictures))


QWEN3_5 = replace(
    QWEN3_VL,
    model_type=MODEL_TYPE,
    title="Qwen3.5",
    template=replace(
        QWEN3_VL.template,
        opening="<think>\n\n</think>\n\n",
        tools_head="# Tools\n\nYou have access to the following functions:\n\n<tools>",
        tools_tail=TOOLS_TAIL,
        tools_before_text=True,
        shows_empty_thoughts=True,
        strips_text=True,
    ),
    calls=ElementCalls(),
    paths=ModulePaths(
        language="model.language_model",
        layers="model.language_model.layers",
        head="lm_head",
        vision="model.visual",
        patch_projection="model.visual.patch_embed.proj",
        adapters={
            "language": rf"model\.language_model\.layers\.\d+\.\w+\.{PROJECTION}",
            "merger": r"model\.visual\.merger\.linear_fc[12]",
            "vision": r"model\.visual\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.linear_fc[12])",
        },
        projections=(*QWEN3_VL.paths.projections, *LINEAR),
    ),
    classes=ClassNames(
        model="Qwen3_5ForConditionalGeneration",
        config="Qwen3_5Config",
        processor="Qwen3VLProcessor",
        tokenizer="Qwen3_5Tokenizer",
        image_processor="Qwen2VLImageProcessor",
        video_processor="Qwen3VLVideoProcessor",
    ),
    packs=False,
    published={
        "Qwen/Qwen3.5-9B": replace(
            PUBLISHED["Qwen/Qwen3-VL-8B-Instruct"],
            model_type=MODEL_TYPE,
            layers=32,
            heads=16,
            kv_heads=4,
            head_dim=256,
            vocab=248320,
            num_side_mergers=0,
            gated=True,
            linear_layers=24,
            linear_keys=2048,
            linear_values=4096,
            linear_heads=32,
        )
    },
    read_architecture=read_architecture,
    config_of=config_of,
    only_thinks=lambda path, chat_template: False,
    tiny_config=tiny_config,
    encode_pictures=encode_pictures,
    join_features=join_features,
)
