"""Packs by FlexAttention, as a GPU computes them: who sees whom, outputs and gradients are those of rows by themselves.

FlexAttention has no backward kernel for CPUs. Its plain form, all scores at once and as torch itself differentiates it,
stands for the kernel here; compiled, its forward alone runs.
"""

import shutil

import pytest
import torch
from test_packing import ROWS, losses_and_gradient, parts  # noqa: F401
from torch import nn
from torch._dynamo.utils import counters
from torch.nn.attention import flex_attention
from torch.nn.attention.flex_attention import create_block_mask

from qwenvl_agent.data.packing import PADDING
from qwenvl_agent.model import attention
from qwenvl_agent.model.attention import attend, compiled_flex_attention, pack_blocks, pack_mask


@pytest.fixture
def backward_on_a_cpu(monkeypatch):
    """Torch refuses it because it has no kernel for it."""
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *tensors: None)


def segments_of(*packs: list[int], num_tokens: int) -> torch.Tensor:
    """(B, T) of packs by the sizes of their common beginning and rows, filled up."""
    rows = [[i for i, size in enumerate(sizes) for _ in range(size)] for sizes in packs]
    return torch.tensor([row + [PADDING] * (num_tokens - len(row)) for row in rows])


PACKS = {
    100: ([60, 20, 20], [0, 30, 70]),
    256: ([128, 64, 64], [0, 256]),
    300: ([150, 40, 1, 60], [7, 100]),
    1024: ([500, 130, 130, 200], [0, 300, 5, 5, 300]),
}


@pytest.mark.parametrize("num_tokens", PACKS)
def test_blocks_show_what_the_mask_shows(num_tokens):
    segments = segments_of(*PACKS[num_tokens], num_tokens=num_tokens)
    blocks = pack_blocks(segments)
    is_seen = pack_mask(segments)[:, 0] == 0
    heads = torch.zeros((), dtype=torch.long)
    for pack in range(2):
        for query in range(0, num_tokens, 37):
            row = [
                bool(blocks.mask_mod(torch.tensor(pack), heads, torch.tensor(query), torch.tensor(key)))
                for key in range(0, num_tokens, 29)
            ]
            assert row == is_seen[pack, query, ::29].tolist()
    stock = create_block_mask(blocks.mask_mod, 2, None, num_tokens, num_tokens, device="cpu")
    assert torch.equal(blocks.to_dense(), stock.to_dense())
    if num_tokens % attention.BLOCK == 0:
        assert torch.equal(blocks.full_kv_num_blocks, stock.full_kv_num_blocks)
        assert torch.equal(blocks.full_q_num_blocks, stock.full_q_num_blocks)


def test_most_blocks_of_a_pack_of_many_rows_are_left_out():
    """8 rows of 512 tokens that begin with the same 256: of 18 x 18 blocks 171 are before a token, and these are used."""
    blocks = pack_blocks(segments_of([256] + [256] * 8, num_tokens=2304))
    assert int(blocks.to_dense().sum()) == 3 + 8 * (2 * 2 + 3)
    assert int(blocks.full_kv_num_blocks.sum()) == 1 + 8 * (2 * 2 + 1)


def states(num_tokens: int) -> list[torch.Tensor]:
    """Queries of 4 heads, keys and values of 2."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, heads, num_tokens, 16, generator=generator).requires_grad_() for heads in (4, 2, 2)]


def grouped() -> nn.Module:
    module = nn.Module()
    module.num_key_value_groups, module.is_causal = 2, True
    return module


@pytest.mark.parametrize("num_tokens", PACKS)
def test_outputs_and_gradients_are_those_of_the_mask(num_tokens, backward_on_a_cpu):
    segments, tensors = segments_of(*PACKS[num_tokens], num_tokens=num_tokens), states(num_tokens)
    found = []
    for mask in (pack_blocks(segments), pack_mask(segments)):
        output, _ = attend(grouped(), *tensors, mask, scaling=0.25)
        factors = torch.linspace(-1, 1, output.numel()).view_as(output)
        found.append((output, *torch.autograd.grad(output, tensors, factors)))
    for blocks, whole in zip(*found, strict=True):
        torch.testing.assert_close(blocks, whole, rtol=1e-4, atol=1e-5)


def test_under_autocast_the_kernel_gets_one_type_as_sdpa_does(backward_on_a_cpu, monkeypatch):
    """Of a model that trains in full: its norms make float32 of queries and keys."""
    seen = []

    def flex(query, key, value, **options):
        seen.append({query.dtype, key.dtype, value.dtype})
        return flex_attention.flex_attention(query, key, value, **options)

    monkeypatch.setattr(attention, "flex_attention", flex)
    segments, (query, key, value) = segments_of([60, 20, 20], [0, 100], num_tokens=100), states(100)
    found = []
    for mask in (pack_blocks(segments), pack_mask(segments)):
        with torch.autocast("cpu", torch.bfloat16):
            output, _ = attend(grouped(), query, key, value.bfloat16(), mask, scaling=0.25)
        found.append((output, *torch.autograd.grad(output.float().square().sum(), (query, key, value))))
    assert seen == [{torch.bfloat16}]
    for blocks, whole in zip(*found, strict=True):
        assert blocks.dtype == whole.dtype
        torch.testing.assert_close(blocks, whole, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("parts", ["sdpa"], indirect=True)
@pytest.mark.parametrize("pack_tokens", [400, 100_000])
def test_a_models_losses_and_gradient_are_those_of_padded_rows(
    parts,  # noqa: F811
    pack_tokens,
    backward_on_a_cpu,
    monkeypatch,
):
    model, collator = parts
    wanted, total, gradient = losses_and_gradient(model, collator(ROWS))
    monkeypatch.setattr(attention, "FLEX_DEVICES", {"cpu"})
    monkeypatch.delattr(attention, "_attend_packs")  # not row by row
    by_row, packed_total, packed_gradient = losses_and_gradient(model, collator(ROWS, pack_tokens))
    for losses, expected in zip(by_row, wanted, strict=True):
        torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(packed_total, total, rtol=1e-6, atol=0)
    torch.testing.assert_close(packed_gradient, gradient, rtol=1e-4, atol=1e-5 * gradient.abs().max().item())


def test_eager_attention_and_cpus_get_a_mask_and_sizes(monkeypatch):
    segments, sizes = segments_of([2, 3], num_tokens=6), [[2, 3]]
    assert attention.pack_inputs(segments, sizes, "sdpa").keys() == {"attention_mask", "pack_sizes"}
    monkeypatch.setattr(attention, "FLEX_DEVICES", {"cpu"})
    assert attention.pack_inputs(segments, sizes, "eager").keys() == {"attention_mask", "pack_sizes"}
    assert attention.pack_inputs(segments, sizes, "sdpa").keys() == {"attention_mask"}


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="nothing to compile with")
def test_two_programs_serve_all_lengths():
    """The first is of its own number of blocks, the second of any."""
    torch._dynamo.reset()
    counters.clear()
    for num_tokens, packs in PACKS.items():
        segments = segments_of(*packs, num_tokens=num_tokens)
        tensors = [state.detach() for state in states(num_tokens)]
        with torch.no_grad():
            blocks = pack_blocks(segments)
            output = compiled_flex_attention()(*tensors, block_mask=blocks, scale=0.25, enable_gqa=True)
            wanted, _ = attend(grouped(), *tensors, pack_mask(segments), scaling=0.25)
        torch.testing.assert_close(output.transpose(1, 2), wanted, rtol=1e-4, atol=1e-5)
    assert counters["stats"]["unique_graphs"] <= 2 and not counters["graph_break"]
