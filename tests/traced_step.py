"""The memory of one training step, counted by torch's MemTracker: under fake tensors for sizes that fit nowhere here,
or on real tensors for small models. The model is built by `build_model` and the loss is the loop's own.

On a CPU two things would take other memory than on a GPU; `as_on_cuda` makes them the same.
"""

import contextlib
import copy
import unittest.mock
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils.hooks import RemovableHandle
from transformers.initialization import no_init_weights

from qwenvl_agent.config import Config, ModelConfig
from qwenvl_agent.data.supervision import supervised_places
from qwenvl_agent.families import FAMILIES
from qwenvl_agent.model import build as model_module
from qwenvl_agent.model import kernels
from qwenvl_agent.model.experts import fused_parameters
from qwenvl_agent.planning.vram import RowShape
from qwenvl_agent.training.loss import token_losses
from qwenvl_agent.training.optim import build_optimizer

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Traced:
    """Bytes of tensors."""

    peak: int
    static: int
    """Before the step: weights, gradients of an earlier micro-batch, optimizer state, the batch."""


def trace_fake(config: Config, hf_config, row: RowShape) -> Traced:
    """A step of `hf_config`'s model with no weights and no arithmetic."""
    with as_on_cuda():
        with unittest.mock.patch.object(model_module, "load_base", lambda cfg, *_: meta_base(cfg, hf_config)):
            model = model_module.build_model(config.model, CPU).train()
        batch = make_batch(config, hf_config, row)
        with ShapeMode():
            make_fake(model)
            fake = {key: fake_input(value) if torch.is_tensor(value) else value for key, value in batch.items()}
            return run_step(model, fake, config)


def trace_real(config: Config, row: RowShape) -> Traced:
    """A step of the checkpoint at `config.model.path`, with arithmetic."""
    with as_on_cuda():
        model = model_module.build_model(config.model, CPU).train()
        return run_step(model, make_batch(config, model_module.base_of(model).config, row), config)


class ShapeMode(FakeTensorMode):
    """Fake tensors; integers keep their values, because pictures' sizes and masks decide the shapes of the rest."""

    def may_turn_const(self, t: torch.Tensor) -> bool:
        return not t.is_floating_point() and not self.is_our_fake(t) and t.device.type != "meta"


class StepTracker(MemTracker):
    """The total only: the statistics of every module would take minutes. Frozen parameters can take no hook."""

    def _track_module_params_and_buffers(self, module, install_grad_hooks=True):
        for parameter in module.parameters():
            if not parameter.requires_grad:
                handle = RemovableHandle(OrderedDict())
                self._param_to_grad_hook_handles[parameter] = (handle, handle)
        return super()._track_module_params_and_buffers(module, install_grad_hooks)

    def _pre_fw_hook(self, module, inputs):
        pass

    def _post_fw_hook(self, module, inputs, outputs):
        pass

    def _pre_bw_hook(self, module, args):
        pass

    def _post_bw_hook(self, module, args):
        pass

    def _update_peak_stats(self, peak_state):
        total = self.current
        if total > self._peak_mem.get(CPU, 0):
            self._peak_mem[CPU] = total

    @property
    def current(self) -> int:
        return self._curr_mem_snap.get(CPU, {}).get("Total", 0)

    @property
    def peak(self) -> int:
        return self._peak_mem[CPU]


def run_step(model: nn.Module, batch: dict, config: Config) -> Traced:
    """A micro-batch on top of an earlier one's gradients, then the optimizer's step."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    for parameter in trainable:
        parameter.grad = torch.zeros_like(parameter)
    optimizer = build_optimizer(model, config.train)
    optimizer.step()  # makes its state
    tracker = StepTracker()
    tracker.track_external(model, optimizer, *quantisation_tensors(model), *filter(torch.is_tensor, batch.values()))
    static = tracker.current
    with tracker:
        loss = token_losses(model, batch).weighted_sum
        loss.backward()
        nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
    return Traced(tracker.peak, static)


def make_batch(config: Config, hf_config, row: RowShape) -> dict[str, Any]:
    """`batch_size` rows like `row`."""
    vision, batch_size = hf_config.vision_config, config.train.batch_size
    a_picture = row.image_tokens // row.num_images
    columns = int(a_picture**0.5)
    assert columns**2 == a_picture and row.num_images * a_picture == row.image_tokens, "pictures are squares"
    ids = torch.full((batch_size, row.tokens), 5)
    ids[:, 4 : 4 + row.image_tokens] = hf_config.image_token_id
    labels = torch.full_like(ids, -100)
    labels[:, row.tokens - row.supervised - 1 : row.tokens - 1] = 7
    side = columns * vision.spatial_merge_size
    grids = torch.tensor([[1, side, side]] * (batch_size * row.num_images))
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "position_ids": torch.arange(row.tokens).repeat(4, batch_size, 1),
        "mm_token_type_ids": (ids == hf_config.image_token_id).long(),
        "labels": labels,
        "supervised": supervised_places(labels),
        "parts": torch.zeros_like(labels, dtype=torch.int8),
        "row_index": torch.arange(batch_size)[:, None].expand_as(ids).contiguous(),
        "loss_weights": torch.ones(ids.shape),
        "image_grid_thw": grids,
        "picture_grids": grids.tolist(),
        "picture_places": (ids == hf_config.image_token_id).flatten().nonzero()[:, 0],
        "patches": torch.zeros(int(grids.prod(-1).sum()), vision.in_channels, vision.patch_size**2, dtype=torch.uint8),
        "patch_scale": torch.ones(2, vision.in_channels, vision.temporal_patch_size, 1),
    }


def fake_input(value: torch.Tensor) -> torch.Tensor:
    """Inside the mode: integers with their values, floats as a shape."""
    return torch.empty(value.shape) if value.is_floating_point() else torch.ops.aten.lift_fresh_copy(value)


def meta_base(model_cfg: ModelConfig, hf_config) -> nn.Module:
    """What `load_base` gives, on the meta device."""
    hf_config = copy.deepcopy(hf_config)
    dtype = torch.float32 if model_cfg.method == "full" else getattr(torch, model_cfg.dtype)
    for part in (hf_config, hf_config.text_config, hf_config.vision_config):
        part.dtype = dtype
    hf_config._attn_implementation = model_cfg.attention
    with torch.device("meta"), no_init_weights():
        family = FAMILIES[hf_config.model_type]
        model = family.load_class("model")._from_config(hf_config, dtype=dtype)
        model.get_submodule(family.paths.patch_projection).__class__ = kernels.PatchProjection
        model.lm_head.__class__ = kernels.Head
        if model_cfg.method == "qlora":
            pack(model)
            pack_experts(model, family.paths)
    model.tie_weights()
    return model


def pack(model: nn.Module) -> None:
    """The language model's projections as bitsandbytes leaves them, without data."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    model.is_loaded_in_4bit = True  # peft asks for it
    for module in list(model.model.language_model.layers.modules()):
        for child_name, child in list(module.named_children()):
            if type(child) is not nn.Linear:
                continue
            layer = Linear4bit(
                child.in_features, child.out_features, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4"
            )
            state = empty_state(child.weight)
            packed = torch.empty((child.weight.numel() + 1) // 2, 1, dtype=torch.uint8)
            layer.weight = Params4bit(
                packed, requires_grad=False, quant_state=state, bnb_quantized=True, quant_type="nf4", module=layer
            )
            setattr(module, child_name, layer)


def pack_experts(model: nn.Module, paths) -> None:
    """Fused experts as bitsandbytes leaves them, without data."""
    from bitsandbytes.nn.parametrize import Bnb4bitParametrization

    for module, name in list(fused_parameters(model, paths)):
        weight = getattr(module, name)
        state = empty_state(weight)
        packed = torch.empty((weight.numel() + 1) // 2, 1, dtype=torch.uint8)
        setattr(module, name, nn.Parameter(packed, requires_grad=False))
        nn.utils.parametrize.register_parametrization(module, name, Bnb4bitParametrization(state), unsafe=True)
        module.parametrizations[name].original.quant_state = state


def empty_state(weight: torch.Tensor):
    """Of a weight in NF4 with double quantisation."""
    from bitsandbytes.functional import QuantState

    num_blocks = -(-weight.numel() // 64)
    nested = QuantState(
        absmax=torch.empty(-(-num_blocks // 256)), code=torch.empty(256), blocksize=256, dtype=torch.float32
    )
    return QuantState(
        absmax=torch.empty(num_blocks, dtype=torch.uint8),
        shape=weight.shape,
        code=torch.empty(16),
        blocksize=64,
        quant_type="nf4",
        dtype=torch.bfloat16,
        offset=torch.empty(()),
        state2=nested,
    )


def quantisation_tensors(model: nn.Module) -> list[torch.Tensor]:
    states = [p.quant_state for p in model.parameters() if getattr(p, "quant_state", None) is not None]
    return [t for s in states for t in (s.absmax, s.code, s.offset, s.state2.absmax, s.state2.code)]


def make_fake(model: nn.Module) -> None:
    """Replace meta tensors by fake ones on the CPU, ties kept; inside the mode."""
    made: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def fake(t: torch.Tensor) -> torch.Tensor:
        if id(t) not in made:
            new = torch.empty_strided(t.shape, t.stride(), dtype=t.dtype)
            if isinstance(t, nn.Parameter):
                new = nn.Parameter(new, requires_grad=t.requires_grad)
            made[id(t)] = (t, new)
        return made[id(t)][1]

    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = fake(parameter)
                state = getattr(parameter, "quant_state", None)
                if state is not None:
                    state.absmax, state.code, state.offset = fake(state.absmax), fake(state.code), fake(state.offset)
                    state.state2.absmax, state.state2.code = fake(state.state2.absmax), fake(state.state2.code)
                    module._parameters[name].quant_state = state
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = fake(buffer)


@contextlib.contextmanager
def as_on_cuda() -> Iterator[None]:
    """Dropout that keeps a mask of bytes, and peft's question whether autocast is on, which names no device."""
    is_enabled = torch.is_autocast_enabled

    def dropout(x, p=0.5, training=True, inplace=False):
        return torch.native_dropout(x, p, True)[0] if training and p > 0 else x

    with (
        unittest.mock.patch.object(nn.functional, "dropout", dropout),
        unittest.mock.patch.object(kernels.Dropout, "forward", nn.Dropout.forward),
        unittest.mock.patch.object(torch, "is_autocast_enabled", lambda device="cpu": is_enabled(device)),
    ):
        yield
