"""Pictures into the language model without a question to the device: the host knows their sizes and places.

transformers asks a GPU in every forward how large the pictures are (three times in each block of the tower), whether as
many features came as there are places, and where those are: a mask as an index, for the embedding and for each of
deepstack's levels, and again in backward. The GPU stands still at each. A training batch brings sizes as numbers of the
host and places as indices (`picture_grids`, `picture_places`), so that nobody asks. Then also pictures of one size are one
call of attention, where stock code makes one for each picture.

For the towers and models of Qwen's vision families, whose parts have the same names. A call without `picture_places`
(generation, features) goes the stock way.

P patches and N tokens of all M pictures; B rows, T tokens.
"""

import sys
import types
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from itertools import accumulate

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_position_ids

Grid = tuple[int, int, int]
"""Frames, rows and columns of a picture, in patches."""
NOT_FOR_LANGUAGE = (
    "pixel_values_videos",
    "image_grid_thw",
    "video_grid_thw",
    "inputs_embeds",
    "mm_token_type_ids",
)
MAX_KEPT_SIZES = 64
"""Of pictures whose positions stay on the device: 64 bytes a patch, half a MB for a large screenshot."""


def bind_pictures(base: nn.Module) -> None:
    """Let the model take `picture_grids` and `picture_places` through its forward."""
    inner = base.model
    inner.forward = types.MethodType(_forward, inner)
    inner.language_model._deepstack_process = types.MethodType(_add_features, inner.language_model)
    tower = inner.visual
    tower.positions_of_picture = lru_cache(MAX_KEPT_SIZES)(partial(_positions, settings_of_positions(tower)))
    for block in tower.blocks:
        block.attn.forward = types.MethodType(_attend, block.attn)


def _forward(
    self,
    input_ids: torch.Tensor | None = None,
    *,
    picture_grids: Sequence[Sequence[int]] | None = None,
    picture_places: torch.Tensor | None = None,
    pixel_values: torch.Tensor | None = None,
    mm_encoder_outputs: dict | None = None,
    **kwargs,
):
    """`picture_places` (N,) of B * T, in the order of the pictures; `picture_grids` of those in `pixel_values`."""
    if picture_places is None:
        pictures = {"pixel_values": pixel_values, "mm_encoder_outputs": mm_encoder_outputs}
        return type(self).forward(self, input_ids=input_ids, **pictures, **kwargs)
    if mm_encoder_outputs is None:
        assert pixel_values is not None and picture_grids is not None, "places without pictures"
        features = encode(self.visual, pixel_values, [(t, h, w) for t, h, w in picture_grids])
    else:
        features = mm_encoder_outputs["image"]
    embeds = self.get_input_embeddings()(input_ids)
    merged = _joined(features.pooler_output).to(embeds.device, embeds.dtype)
    embeds = embeds.flatten(0, 1).index_copy(0, picture_places, merged).view_as(embeds)
    levels = getattr(features, "deepstack_features", None)
    if levels is not None:
        kwargs["visual_pos_masks"] = picture_places
        kwargs["deepstack_visual_embeds"] = [_joined(level) for level in levels]
    rest = {key: value for key, value in kwargs.items() if key not in NOT_FOR_LANGUAGE}
    return self.language_model(input_ids=None, inputs_embeds=embeds, **rest)


def _joined(features: torch.Tensor | Sequence[torch.Tensor]) -> torch.Tensor:
    """(N, hidden), of all pictures or of each."""
    return features if isinstance(features, torch.Tensor) else torch.cat(tuple(features))


def encode(tower: nn.Module, pixel_values: torch.Tensor, grids: Sequence[Grid]):
    """What the tower makes of pixel values (P, values of a patch) of pictures with these grids."""
    pixels = pixel_values.type(tower.dtype)
    sizes = [rows * columns for frames, rows, columns in grids for _ in range(frames)]
    ends = torch.tensor([0, *accumulate(sizes)], dtype=torch.int32)
    return tower(
        pixels,
        grid_thw=None,
        return_dict=True,
        picture_sizes=sizes,
        cu_seqlens=ends.to(pixels.device, non_blocking=True),
        max_seqlen=max(sizes),
        **positions_of(tower, grids, pixels.device),
    )


def settings_of_positions(tower: nn.Module) -> dict:
    return {
        "num_grid_per_side": tower.num_grid_per_side,
        "mode": tower.interpolation_mode,
        "align_corners": tower.interpolation_align_corners,
        "spatial_merge_size": tower.spatial_merge_size,
    }


def positions_of(tower: nn.Module, grids: Sequence[Grid], device: torch.device) -> dict[str, torch.Tensor]:
    """The tower's own positions of every patch, (P, ...) by name."""
    each = [tower.positions_of_picture(grid, str(device)) for grid in grids]
    return {name: torch.cat([one[name] for one in each]) if len(each) > 1 else each[0][name] for name in each[0]}


def _positions(settings: dict, grid: Grid, device: str) -> dict[str, torch.Tensor]:
    """Of one picture. They are the same for every picture of that size, and an agent's pictures are mostly of one."""
    with torch.inference_mode(False):  # kept, and used where gradients are wanted
        thw = torch.tensor([grid])
        indices, weights = get_vision_interpolation_indices_and_weights(thw, **settings)
        places = get_vision_position_ids(thw, settings["spatial_merge_size"])
        made = {"interp_indices": indices, "interp_weights": weights, "position_ids": places}
        return {name: tensor.to(device, non_blocking=True) for name, tensor in made.items()}


def _attend(
    self,
    hidden_states: torch.Tensor,
    cu_seqlens: torch.Tensor,
    position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
    max_seqlen: int | None = None,
    picture_sizes: Sequence[int] | None = None,
    **kwargs,
) -> torch.Tensor:
    """The tower's attention, each picture for itself; with `picture_sizes`, tokens of each, in one call for each size."""
    kind = self.config._attn_implementation
    if picture_sizes is None or kind not in ("sdpa", "eager"):  # flash attention takes the ends as they are
        return type(self).forward(self, hidden_states, cu_seqlens, position_embeddings, max_seqlen, **kwargs)
    assert position_embeddings is not None, "the tower gives them"
    family = sys.modules[type(self).__module__]
    states = self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, -1)).unbind(1)  # (P, heads, head size)
    queries, keys = family.apply_rotary_pos_emb_vision(states[0], states[1], *position_embeddings)
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(kind, family.eager_attention_forward)

    def together(*states: torch.Tensor) -> torch.Tensor:
        """Of pictures of one size, (M, size, heads, head size)."""
        states = tuple(x.transpose(1, 2) for x in states)
        options = {"scaling": self.scaling, "dropout": 0.0, "is_causal": False, **kwargs}
        return attend(self, *states, attention_mask=None, **options)[0]

    # Eager attention keeps a matrix for each picture: one at a time, as before.
    outputs = attend_by_size(together, picture_sizes, (queries, keys, states[2]), at_once=kind == "sdpa")
    return self.proj(outputs.flatten(1))


def attend_by_size(
    attend: Callable[..., torch.Tensor], sizes: Sequence[int], states: Sequence[torch.Tensor], at_once: bool
) -> torch.Tensor:
    """`attend` of all pictures of a size at once, or of one picture at a time; states (P, ...) and (M, size, ...)."""
    if at_once and len(set(sizes)) == 1:
        return attend(*(x.unflatten(0, (-1, sizes[0])) for x in states)).flatten(0, 1)
    parts: list[tuple[torch.Tensor, ...]] = [x.split(list(sizes)) for x in states]
    groups = [[i for i, other in enumerate(sizes) if other == size] for size in dict.fromkeys(sizes)]
    if not at_once:
        groups = [[i] for i in range(len(sizes))]
    outputs: dict[int, torch.Tensor] = {}
    for group in groups:
        stacked = [torch.stack([x[i] for i in group]) for x in parts]
        outputs.update(zip(group, attend(*stacked).unbind(), strict=True))
    return torch.cat([outputs[i] for i in range(len(sizes))])


def _add_features(
    self, hidden_states: torch.Tensor, visual_pos_masks: torch.Tensor, visual_embeds: torch.Tensor
) -> torch.Tensor:
    """Deepstack: features (N, hidden) onto hidden states (B, T, hidden) at places (N,), or where a mask (B, T) says so."""
    if visual_pos_masks.dtype == torch.bool:
        return type(self)._deepstack_process(self, hidden_states, visual_pos_masks, visual_embeds)
    features = visual_embeds.to(hidden_states.device, hidden_states.dtype)
    return hidden_states.flatten(0, 1).index_add(0, visual_pos_masks, features).view_as(hidden_states)
