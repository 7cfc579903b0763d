"""Qwen3-VL with a mixture of experts: the 30B-A3B checkpoints. All but the language model's MLPs is as in Qwen3-VL.

The experts of a layer are two parameters of three dimensions, not linear layers. So `lora_targets` are of the attention;
adapters on experts are peft's `target_parameters`, by `model.lora_places=["language", "experts"]`. Which experts a token
meets is the pretrained router's: it stays as it is, and the loss that balances experts, which would move nothing but
the router's inputs, is not added (the published config has `output_router_logits` false, so transformers adds none
either).
"""

from dataclasses import replace
from typing import Any

from qwenvl_agent.families import qwen3_vl
from qwenvl_agent.families.architecture import Architecture
from qwenvl_agent.families.qwen3_vl import PUBLISHED, QWEN3_VL

MODEL_TYPE = "qwen3_vl_moe"
A3B = replace(
    PUBLISHED["Qwen/Qwen3-VL-8B-Instruct"],
    model_type=MODEL_TYPE,
    hidden=2048,
    layers=48,
    heads=32,
    kv_heads=4,
    intermediate=768,
    experts=128,
    experts_used=8,
)


def read_architecture(values: dict) -> Architecture:
    """From a config.json's values; KeyError names what is missing, ValueError layers that have no experts."""
    text = values["text_config"]
    dense = text.get("mlp_only_layers") or [i for i in range(text["num_hidden_layers"]) if not has_experts(text, i)]
    if dense:
        raise ValueError(
            f"layers {dense} of the model have no experts: its memory and adapters would be planned wrongly; no published "
            "checkpoint is so, use one of them"
        )
    return replace(
        qwen3_vl.read_architecture(values),
        model_type=MODEL_TYPE,
        intermediate=text["moe_intermediate_size"],
        experts=text.get("num_experts") or text["num_local_experts"],
        experts_used=text["num_experts_per_tok"],
    )


def has_experts(text: dict, layer: int) -> bool:
    return (layer + 1) % (text.get("decoder_sparse_step") or 1) == 0


def config_of(arch: Architecture):
    from transformers import Qwen3VLMoeConfig

    values = qwen3_vl.config_values(arch)
    values["text_config"] |= {
        "intermediate_size": 3 * arch.hidden,  # of layers without experts, of which there is none
        "moe_intermediate_size": arch.intermediate,
        "num_experts": arch.experts,
        "num_experts_per_tok": arch.experts_used,
        "mlp_only_layers": [],
    }
    return Qwen3VLMoeConfig(**values)


def stored(name: str, weight: Any) -> Any:
    """Experts are published as (experts, inputs, outputs); transformers turns them round as it reads them."""
    return weight.transpose(1, 2).contiguous() if ".mlp.experts." in name else weight


def tiny_config(tokenizer, *, num_experts: int = 4, num_experts_used: int = 2, **sizes: Any):
    """Experts so wide that a token meets as many numbers as in the dense member of the same sizes."""
    from transformers import Qwen3VLMoeConfig

    values = qwen3_vl.tiny_values(tokenizer, **sizes)
    values["text_config"] |= {
        # Neither half nor all of the hidden size: transformers tells by the sizes which way round a stored expert is.
        "moe_intermediate_size": sizes["hidden_size"] * 3 // 2,
        "num_experts": num_experts,
        "num_experts_per_tok": num_experts_used,
        "decoder_sparse_step": 1,
    }
    return Qwen3VLMoeConfig(**values)


QWEN3_VL_MOE = replace(
    QWEN3_VL,
    model_type=MODEL_TYPE,
    title="Qwen3-VL-30B-A3B",
    paths=replace(
        QWEN3_VL.paths,
        projections=("q_proj", "k_proj", "v_proj", "o_proj"),
        fused_experts=("mlp.experts.gate_up_proj", "mlp.experts.down_proj"),
        frozen=".mlp.gate.",
    ),
    classes=replace(QWEN3_VL.classes, model="Qwen3VLMoeForConditionalGeneration", config="Qwen3VLMoeConfig"),
    remark="the router is frozen, and no loss that balances experts is added",
    gathered_whole=("Qwen3VLMoeTextSparseMoeBlock",),
    published={f"Qwen/Qwen3-VL-30B-A3B-{kind}": A3B for kind in ("Instruct", "Thinking")},
    read_architecture=read_architecture,
    config_of=config_of,
    stored=stored,
    tiny_config=tiny_config,
)
