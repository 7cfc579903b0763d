import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from qwenvl_agent.model import logits
from qwenvl_agent.model.attention import BatchedAttention, pack_mask
from qwenvl_agent.model.kernels import Dropout, Head, draw_bits, dropout_mask
from qwenvl_agent.model.logits import head_rows


@pytest.mark.parametrize("p", [0.95, 0.5, 3 / 2**16, 0.0, 1 - 2**-16])
def test_a_drawn_bit_is_whether_a_number_of_16_bits_is_below_its_probability(p):
    num = 1000
    words = np.random.Generator(np.random.SFC64(7)).integers(2**64, size=(16, 16), dtype=np.uint64)
    bits = np.unpackbits(words.view(np.uint8), axis=1, count=num).astype(int)
    numbers = ((1 - bits) << np.arange(16)[:, None]).sum(0)
    assert draw_bits(num, p, seed=7).tolist() == (numbers < p * 2**16).astype(int).tolist()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_dropout_keeps_its_share_scaled_up(dtype):
    torch.manual_seed(0)
    x = torch.full((300, 1001), 2.0, dtype=dtype)
    y = Dropout(0.2)(x)
    assert set(y.unique().tolist()) == {0.0, (x[0, 0] * torch.tensor(1 / 0.8, dtype=dtype)).item()}
    # 5 standard deviations of a binomial share
    assert abs((y == 0).double().mean().item() - 0.2) < 5 * (0.2 * 0.8 / x.numel()) ** 0.5
    neighbours = (y[:, 1:] == 0) & (y[:, :-1] == 0)
    assert abs(neighbours.double().mean().item() - 0.04) < 0.003
    assert torch.equal(Dropout(0.2).eval()(x), x)


def test_masks_follow_torchs_seed_and_differ_from_draw_to_draw():
    x = torch.ones(1000)
    torch.manual_seed(3)
    first, second = dropout_mask(x, 0.5), dropout_mask(x, 0.5)
    torch.manual_seed(3)
    assert torch.equal(dropout_mask(x, 0.5), first) and not torch.equal(first, second)


COMPILED = """
import torch
from qwenvl_agent.model.kernels import Dropout, keep_compiled_code_apart
keep_compiled_code_apart()
keep_compiled_code_apart()
one, two = Dropout(0.5), Dropout(0.5)
compiled = torch.compile(lambda x: (one(x), two(x)))
x = torch.ones(4096, requires_grad=True)
first, second = compiled(x)
assert not torch.equal(first, second)
(first + 3 * second).sum().backward()
assert torch.equal(x.grad, first.detach() + 3 * second.detach())
"""


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="nothing to compile with")
def test_compiled_layers_have_masks_of_their_own_and_the_same_one_backward_on_every_kind_of_cpu(tmp_path):
    """With one cache of compiled code for a CPU as it is and for one limited to AVX2, in turn."""
    kind = torch.backends.cpu.get_cpu_capability()
    for is_limited in (False, True, False):
        environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
        environment |= {"ATEN_CPU_CAPABILITY": "avx2"} if is_limited else {}
        done = subprocess.run([sys.executable, "-c", COMPILED], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} >= {kind, "AVX2"} if kind != "DEFAULT" else {kind}


@pytest.fixture
def head():
    head = nn.Linear(8, 50, bias=False)
    head.__class__ = Head
    return head


@pytest.mark.parametrize("max_logits", [50, 120, 2**25])
def test_the_heads_losses_and_gradients_are_those_of_all_logits_at_once(head, monkeypatch, max_logits):
    monkeypatch.setattr(logits, "MAX_LOGITS", max_logits)
    hidden = torch.randn(7, 8, requires_grad=True)
    targets, factors = torch.tensor([3, 0, 49, 3, 3, 11, 20]), torch.rand(7)
    expected = nn.functional.cross_entropy(head(hidden), targets, reduction="none")
    wanted = torch.autograd.grad((expected * factors).sum(), [hidden, head.weight])
    others = torch.randn(2, 8)  # not supervised: before and among the seven
    sequence = torch.cat([others[:1], hidden[:4], others[1:], hidden[4:]])
    head.targets, head.places = targets, torch.tensor([1, 2, 3, 4, 6, 7, 8])
    losses = head(sequence[None])
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(torch.autograd.grad((losses * factors).sum(), [hidden, head.weight]), wanted)


def test_logits_are_made_in_even_parts_of_a_bounded_number():
    assert head_rows(473, 151_936) == 158  # 3 parts: 220 of them would be 2**25
    assert head_rows(220, 151_936) == 220
    assert head_rows(5, 2**26) == 1 and head_rows(0, 151_936) == 1


def test_a_frozen_head_keeps_no_logits_and_one_that_trains_keeps_them_once(head):
    kept = []

    def keep(tensor):
        kept.append(tuple(tensor.shape))
        return tensor

    head.targets, head.places = torch.tensor([1, 2, 3]), torch.arange(3)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        head(torch.randn(3, 8, requires_grad=True))
        assert kept.count((3, 50)) == 1
        kept.clear()
        head.requires_grad_(False)
        head(torch.randn(3, 8, requires_grad=True))
        assert kept == [(3,), (3, 8)]  # the places, and the gradient of the hidden states


def test_no_supervised_token_has_no_loss(head):
    hidden = torch.randn(0, 8, requires_grad=True)
    head.targets = head.places = torch.zeros(0, dtype=torch.long)
    losses = head(hidden)
    losses.sum().backward()
    assert losses.shape == (0,) and hidden.grad.shape == (0, 8) and not head.weight.grad.any()


def test_batched_attention_in_bfloat16_is_as_near_to_float32_as_torchs_own():
    torch.manual_seed(0)
    mask = pack_mask(torch.tensor([[0] * 9 + [1] * 31]))[:, :, 9:]
    query, key, value, gradient = (torch.randn(1, h, t, 16) for h, t in ((6, 31), (2, 40), (2, 40), (6, 31)))

    def outcome(attend, dtype):
        inputs = [x.to(dtype).requires_grad_() for x in (query, key, value)]
        output = attend(*inputs, mask.to(dtype))
        return [output, *torch.autograd.grad(output, inputs, gradient.to(dtype))]

    def torchs_own(query, key, value, mask):
        module = nn.Module()
        module.num_key_value_groups = 3
        return sdpa_attention_forward(module, query, key, value, mask, scaling=0.3)[0].transpose(1, 2)

    def ours(query, key, value, mask):
        return BatchedAttention.apply(query, key, value, mask, 0.3)

    exact = outcome(torchs_own, torch.float32)
    for same, reference in zip(outcome(ours, torch.float32), exact, strict=True):
        torch.testing.assert_close(same, reference)
    for low, flash, reference in zip(
        outcome(ours, torch.bfloat16), outcome(torchs_own, torch.bfloat16), exact, strict=True
    ):
        scale = reference.abs().max()
        assert (low - reference).abs().max() < max(1.5 * (flash - reference).abs().max(), 0.01 * scale)
