"""model.compile: a block is traced without a break, and two programs at most serve all blocks and all lengths.

What is counted is Dynamo's work, which is the same for every backend and device; code is not generated here.
"""

import pytest
import torch
from tiny_run import save_tiny_checkpoint
from torch._dynamo.testing import CompileCounterWithBackend

from qwenvl_agent.config import ModelConfig
from qwenvl_agent.model.build import base_of, build_model, compile_blocks

METHODS = {
    "lora": {"method": "lora", "lora_rank": 4, "lora_dropout": 0.1},
    "qlora": {"method": "qlora", "lora_rank": 4, "lora_dropout": 0.1},
    "full": {"method": "full"},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(save_tiny_checkpoint(tmp_path_factory.mktemp("base"), torch.bfloat16))


def build(base: str, method: str, again=False):
    precision = {"dtype": "bfloat16", "autocast": True, "attention": "sdpa"}
    cfg = ModelConfig(path=base, **METHODS[method], **precision, gradient_checkpointing=again)
    return build_model(cfg, "cpu").train()


def step(model, num_tokens: int) -> None:
    ids = torch.arange(2 * num_tokens).reshape(2, num_tokens)
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()


@pytest.mark.parametrize("method", METHODS)
def test_a_block_has_no_graph_break(base, method):
    model = build(base, method)
    text = base_of(model).model.language_model
    hidden = torch.randn(2, 17, text.config.hidden_size, dtype=torch.bfloat16, requires_grad=True)
    positions = text.rotary_emb(hidden, torch.arange(17).expand(3, 2, -1))
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        explained = torch._dynamo.explain(text.layers[0])(hidden, position_embeddings=positions, attention_mask=None)
    assert explained.graph_break_count == 0, explained.break_reasons
    assert explained.graph_count == 1


@pytest.mark.parametrize(
    ("method", "again", "num_programs"), [("full", False, 1), ("lora", False, 2), ("qlora", True, 2), ("qlora", 1, 2)]
)
def test_few_programs_serve_all_blocks_and_lengths(base, method, again, num_programs):
    """Of adapters the first block is a program of its own: nothing before it trains, so its input needs no gradient.

    With one layer of two computed again the two are also the one that is and the one that is not.
    """
    torch._dynamo.reset()
    model = build(base, method, again)
    counter = CompileCounterWithBackend("eager")
    compile_blocks(model, "cpu", counter)
    for num_tokens in (17, 23, 40):
        step(model, num_tokens)
    assert counter.frame_count == num_programs
