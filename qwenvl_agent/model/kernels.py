"""Parts of a model computed another way than transformers, peft and torch do it: the same results, sooner or smaller.

Each takes the place of the layer that it extends by `layer.__class__ = ...`, so that weights keep their names.
N tokens, H hidden size, V vocabulary.
"""

import os
from pathlib import Path

import numpy as np
import torch
from torch import nn

from qwenvl_agent.model.logits import head_rows


class PatchProjection(nn.Conv3d):
    """A Conv3d whose stride is its kernel is one matrix product; cuDNN and oneDNN can be 10 times slower at it."""

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(patches.flatten(1), self.weight.flatten(1), self.bias)


class Dropout(nn.Dropout):
    """On a CPU with masks that take a tenth of the time to draw (torch 2.14); elsewhere torch's own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or x.device.type != "cpu":
            return super().forward(x)
        return x * dropout_mask(x.detach(), self.p)


# Tagged, so that a compiler neither shares one mask between two layers nor draws a second time in backward.
@torch.library.custom_op("qwenvl_agent::dropout_mask", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def dropout_mask(x: torch.Tensor, p: float) -> torch.Tensor:
    """Like `x`: 0 with probability `p`, to 1/65,536, else 1 / (1 - p) in its dtype. Seeded by a draw from torch's generator."""
    kept = draw_bits(x.numel(), 1 - p, seed=int(torch.randint(2**62, ())))
    # A float is written as the bits that it has: NumPy knows no bfloat16.
    bits_type, as_numpy = BITS_OF_SIZE[x.element_size()]
    scale = torch.tensor(1 / (1 - p), dtype=x.dtype).view(bits_type).item()
    mask = kept.astype(as_numpy)
    mask *= as_numpy(scale)
    return torch.from_numpy(mask).view(x.dtype).view(x.shape)


BITS_OF_SIZE = {2: (torch.int16, np.int16), 4: (torch.int32, np.int32), 8: (torch.int64, np.int64)}


@dropout_mask.register_fake
def _(x: torch.Tensor, p: float) -> torch.Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def draw_bits(num: int, p: float, seed: int) -> np.ndarray:
    """(num,) uint8: 1 with probability `p`, to 1/65,536.

    A bit is whether a number of 16 random bits is below p * 2^16, decided for 64 of them at a time, from the least of
    their bits to the first: where that of the threshold is 1 a 0 is below, whatever came before, and where it is 0 a 1
    is not.
    """
    threshold = round(p * 2**16)
    words = np.random.Generator(np.random.SFC64(seed)).integers(2**64, size=(16, -(-num // 64)), dtype=np.uint64)
    is_below = np.zeros_like(words[0])
    for i, bits in enumerate(words):
        # The number's bits are ~bits, as random as bits are.
        if threshold >> i & 1:
            is_below |= bits
        else:
            is_below &= bits
    return np.unpackbits(is_below.view(np.uint8), count=num)


class Head(nn.Linear):
    """The language model's head. Where it is given targets it makes their losses, and never all logits at once."""

    targets: torch.Tensor | None = None
    places: torch.Tensor | None = None

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., H) to logits (..., V); with `targets` (N,), (B, T, H) at `places` to cross-entropies (N,) in float32.

        Places are numbers and no mask: how many a mask keeps, a GPU would have to tell the host.
        """
        if self.targets is None:
            return super().forward(hidden)
        return HeadLoss.apply(hidden.flatten(0, -2).index_select(0, self.places), self.weight, self.targets)


class HeadLoss(torch.autograd.Function):
    """Cross-entropy of `hidden @ weight.T`, in the dtype of autocast where that is on, softmax in float32.

    Hidden states (N, H) get their gradient in the forward, up to the factor of each token's loss, so that a frozen head
    keeps no logits for its backward; one that trains keeps one value for each, in the dtype of the product.
    """

    @staticmethod
    def forward(ctx, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        low, matrix = hidden.to(dtype), weight.to(dtype)
        learns, trains_head = any(ctx.needs_input_grad), ctx.needs_input_grad[1]
        losses = hidden.new_empty(len(hidden), dtype=torch.float32)
        gradients = torch.empty_like(low) if learns else None
        errors = low.new_empty(len(low), len(weight)) if trains_head else None
        num_rows = head_rows(len(hidden), len(weight))
        for start in range(0, len(hidden), num_rows):
            rows = slice(start, start + num_rows)
            ids = targets[rows, None]
            log_p = torch.log_softmax(low[rows] @ matrix.T, -1, dtype=torch.float32)
            losses[rows] = -log_p.gather(1, ids)[:, 0]
            if learns:
                error = log_p.exp_().scatter_add_(1, ids, torch.full_like(log_p[:, :1], -1.0)).to(dtype)
                torch.mm(error, matrix, out=gradients[rows])
            if trains_head:
                errors[rows] = error
            del log_p
        ctx.dtypes = hidden.dtype, weight.dtype
        ctx.save_for_backward(gradients, low if trains_head else None, errors)
        return losses

    @staticmethod
    def backward(ctx, factors: torch.Tensor):
        gradients, low, errors = ctx.saved_tensors
        factors = factors[:, None]
        for_hidden = (gradients * factors).to(ctx.dtypes[0])
        for_weight = None if errors is None else (errors.T @ (low * factors).to(low.dtype)).to(ctx.dtypes[1])
        return for_hidden, for_weight, None


def keep_compiled_code_apart() -> None:
    """A folder for each kind of CPU in torch's cache of compiled code, before anything is compiled.

    Its key leaves the CPU's capability out (torch 2.14): code compiled for AVX2 breaks the heap of a process that uses
    AVX-512, and the other way round gradients are wrong.
    """
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    folder, kind = Path(cache_dir()), torch.backends.cpu.get_cpu_capability()
    if folder.name != kind:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / kind)
