"""The sizes of a model, as numbers: what a family reads out of a config.json and the planner counts with."""

from dataclasses import dataclass, replace
from functools import cached_property


@dataclass(frozen=True)
class Architecture:
    """The numbers of a config.json that memory and time depend on; what follows from them, unless a family says otherwise."""

    model_type: str
    """Of the family."""
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool
    vision_hidden: int
    vision_depth: int
    vision_intermediate: int
    vision_heads: int
    num_positions: int
    num_side_mergers: int
    """Mergers of blocks before the tower's end (deepstack)."""
    patch: int = 16
    merge: int = 2
    temporal: int = 2
    channels: int = 3
    experts: int = 0
    """Of each layer, in place of one MLP: then `intermediate` is the width of one. 0: the layers are dense."""
    experts_used: int = 0
    """By one token."""
    gated: bool = False
    """Whether a query has a gate beside it, of the same width."""
    linear_layers: int = 0
    """Language layers whose attention is linear: a state in place of keys and values."""
    linear_keys: int = 0
    """Width of all heads of queries, or of keys, in such a layer."""
    linear_values: int = 0
    linear_heads: int = 0
    """Of values."""
    linear_kernel: int = 4
    """Tokens that the convolution before it sees."""

    @property
    def q(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def patch_values(self) -> int:
        """Pixel values of one patch."""
        return self.channels * self.temporal * self.patch**2

    @cached_property
    def projections(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of the linear layers of a language layer with full attention."""
        h, q, kv = self.hidden, self.q, self.kv
        attention = {"q_proj": (h, q * (1 + self.gated)), "k_proj": (h, kv), "v_proj": (h, kv), "o_proj": (q, h)}
        return attention | self.mlp

    @property
    def mlp(self) -> dict[str, tuple[int, int]]:
        h, f = self.hidden, self.intermediate
        return {} if self.experts else {"gate_proj": (h, f), "up_proj": (h, f), "down_proj": (f, h)}

    @cached_property
    def linear_projections(self) -> dict[str, tuple[int, int]]:
        """Of a layer with linear attention; {} if there is none."""
        h, k, v, heads = self.hidden, self.linear_keys, self.linear_values, self.linear_heads
        attention = {
            "in_proj_qkv": (h, 2 * k + v),
            "in_proj_z": (h, v),
            "in_proj_b": (h, heads),
            "in_proj_a": (h, heads),
            "out_proj": (v, h),
        }
        return attention | self.mlp if self.linear_layers else {}

    @cached_property
    def all_projections(self) -> list[tuple[str, int, int]]:
        """(name, inputs, outputs) of each linear layer of all language layers."""
        kinds = ((self.full_layers, self.projections), (self.linear_layers, self.linear_projections))
        return [(name, *shape) for number, kind in kinds for name, shape in kind.items() for _ in range(number)]

    @property
    def projection_names(self) -> tuple[str, ...]:
        return tuple(self.projections | self.linear_projections)

    @property
    def full_layers(self) -> int:
        return self.layers - self.linear_layers

    def first_layers(self, number: int) -> "Architecture":
        """The same with its first `number` language layers, at most all; ValueError for a part of a round of layers of
        several kinds, of which another model would have been made."""
        number = min(number, self.layers)
        a_round = self.layers // max(1, self.full_layers) if self.linear_layers else 1
        if number % a_round:
            raise ValueError(
                f"{number} layers are no whole rounds of {a_round} (all but the last of a round have linear attention): the "
                f"model would be another one; use a multiple of {a_round}"
            )
        return replace(self, layers=number, linear_layers=self.linear_layers * number // self.layers)

    @cached_property
    def fused(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of one expert in each parameter that holds all of a layer's experts."""
        h, f = self.hidden, self.intermediate
        return {"gate_up_proj": (h, 2 * f), "down_proj": (f, h)} if self.experts else {}

    @property
    def projection_matrices(self) -> int:
        """Parameters of the linear layers of all language layers."""
        return sum(inputs * outputs for _, inputs, outputs in self.all_projections)

    @property
    def an_expert(self) -> int:
        return sum(inputs * outputs for inputs, outputs in self.fused.values())

    @property
    def layer_experts(self) -> int:
        """Parameters of all experts of one layer."""
        return self.experts * self.an_expert

    @property
    def router(self) -> int:
        return self.experts * self.hidden

    @property
    def matrices(self) -> int:
        """Parameters of all language layers' projections, experts and routers."""
        return self.projection_matrices + self.layers * (self.layer_experts + self.router)

    @property
    def active_matrices(self) -> int:
        """Of these what one token meets."""
        return self.projection_matrices + self.layers * (self.experts_used * self.an_expert + self.router)

    @property
    def largest_layer(self) -> int:
        """Parameters of the largest language layer's projections, experts and router."""
        kinds = (self.projections, self.linear_projections)
        largest = max(sum(inputs * outputs for inputs, outputs in kind.values()) for kind in kinds)
        return largest + self.layer_experts + self.router

    @property
    def embedding(self) -> int:
        return self.vocab * self.hidden

    @property
    def language_other(self) -> int:
        """Parameters of the language model outside the projections: embedding, an untied head, norms."""
        norms = self.layers * 2 * self.hidden + self.full_layers * 2 * self.head_dim + self.hidden
        return self.embedding * (1 if self.tied else 2) + norms + self.linear_layers * self.linear_other

    @property
    def linear_other(self) -> int:
        """Of a layer with linear attention outside its projections: convolution, decays, the norm of a head."""
        if not self.linear_layers:
            return 0
        return self.convolution + 2 * self.linear_heads + self.linear_values // self.linear_heads

    @property
    def convolution(self) -> int:
        """Parameters of the one before linear attention."""
        return (2 * self.linear_keys + self.linear_values) * self.linear_kernel

    @property
    def language(self) -> int:
        return self.matrices + self.language_other

    @property
    def active(self) -> int:
        """Parameters of the language model that one token meets."""
        return self.active_matrices + self.language_other

    @property
    def vision_block(self) -> int:
        v, i = self.vision_hidden, self.vision_intermediate
        return 3 * v * v + 3 * v + v * v + v + 2 * v * i + v + i + 4 * v

    @property
    def merger_matrices(self) -> tuple[tuple[int, int], ...]:
        """(inputs, outputs) of the two linear layers of one merger."""
        wide = self.vision_hidden * self.merge**2
        return (wide, wide), (wide, self.hidden)

    @property
    def vision_matrices(self) -> tuple[tuple[int, int], ...]:
        """(inputs, outputs) of the four linear layers of one of the tower's blocks."""
        v, i = self.vision_hidden, self.vision_intermediate
        return (v, 3 * v), (v, v), (v, i), (i, v)

    @property
    def num_mergers(self) -> int:
        return 1 + self.num_side_mergers

    @property
    def mergers(self) -> int:
        """Parameters of the mergers from patches to tokens, one for the tower's end and the side ones."""
        wide = self.vision_hidden * self.merge**2
        merger = wide * wide + wide + wide * self.hidden + self.hidden
        return (1 + self.num_side_mergers) * merger + 2 * self.vision_hidden + self.num_side_mergers * 2 * wide

    @property
    def vision(self) -> int:
        """Parameters of the vision tower with its mergers."""
        stem = (self.patch_values + 1 + self.num_positions) * self.vision_hidden
        return stem + self.vision_depth * self.vision_block + self.mergers
