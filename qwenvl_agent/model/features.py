"""What a frozen vision tower makes of a picture, kept on disk: after the first epoch no picture is decoded or encoded.

    cache/features-TOWER/KEY.safetensors     tensors by name, as the family gives them (`Family.encode_pictures`)

TOWER is a hash of the tower's weights and precision, KEY one of the picture's bytes and the size at which it is seen
(data/pixels.py), so nothing stale can be read. The collator leaves out the pixels of a picture that is there; this
file reads it, memory-mapped, and encodes and keeps the others. What is there stays: when the cache is full, further
pictures are encoded each time.
"""

import hashlib
import os
from contextlib import nullcontext
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from qwenvl_agent.config import Config
from qwenvl_agent.data.pixels import feature_path, pixel_values
from qwenvl_agent.files import replacing
from qwenvl_agent.model.build import Processor, base_of, family_of


class FeatureCache:
    """Features of one model's tower in `directory`, at most `max_bytes` of them."""

    def __init__(self, directory: Path, max_bytes: int, model: nn.Module):
        self.base, self.family = base_of(model), family_of(model)
        self.directory, self.max_bytes = directory, max_bytes
        directory.mkdir(parents=True, exist_ok=True)
        self.num_bytes = sum(entry.stat().st_size for entry in os.scandir(directory))

    def attach(self, batch: dict) -> dict:
        """The batch with `features` in place of `patches`; as it is if it has no picture.

        `features` is what the model takes as `mm_encoder_outputs["image"]`.
        """
        if "picture_keys" not in batch:
            return batch
        device = batch["input_ids"].device
        made = self._encode(batch)
        kept = [made[key] if key in made else self._read(key, device) for key in batch["picture_keys"]]
        rest = {key: value for key, value in batch.items() if key not in ("patches", "patch_scale", "image_grid_thw")}
        return rest | {"features": self.family.join_features(kept)}

    @torch.no_grad()
    def _encode(self, batch: dict) -> dict[str, dict[str, torch.Tensor]]:
        """Of the pictures that came with pixels, which are kept from now on."""
        if "patches" not in batch:
            return {}
        device = batch["input_ids"].device
        is_half = self.base.computes_in_bfloat16
        with torch.autocast(device.type, torch.bfloat16, cache_enabled=False) if is_half else nullcontext():
            pictures = self.family.encode_pictures(self.base, pixel_values(batch), batch["image_grid_thw"])
        for key, tensors in zip(batch["encoded_keys"], pictures, strict=True):
            self._write(key, tensors)
        return dict(zip(batch["encoded_keys"], pictures, strict=True))

    def _read(self, key: str, device: torch.device) -> dict[str, torch.Tensor]:
        with safe_open(feature_path(self.directory, key), "pt", device=str(device)) as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    def _write(self, key: str, tensors: dict[str, torch.Tensor]) -> None:
        path = feature_path(self.directory, key)
        size = sum(tensor.nbytes for tensor in tensors.values())
        if self.num_bytes + size > self.max_bytes or path.exists():
            return
        # Whole or not at all: other ranks and data workers look for it by its name.
        with replacing(path) as part:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part)
        self.num_bytes += size


def build_features(config: Config, model: nn.Module, processor: Processor) -> FeatureCache | None:
    """The cache that `vision.feature_cache_gb` asks for, under data.cache_dir."""
    if not config.vision.feature_cache_gb:
        return None
    directory = Path(config.data.cache_dir) / f"features-{tower_hash(model, processor)}"
    return FeatureCache(directory, int(config.vision.feature_cache_gb * 1e9), model)


def tower_hash(model: nn.Module, processor: Processor) -> str:
    """Of all that makes features from a picture: weights, precision, normalisation, patches."""
    base, images = base_of(model), processor.image_processor
    about = (base.computes_in_bfloat16, images.image_mean, images.image_std, images.rescale_factor, processor.geometry)
    digest = hashlib.blake2b(f"{about}".encode(), digest_size=8)
    for name, weight in base.get_submodule(family_of(model).paths.vision).state_dict().items():
        digest.update(f"{name} {weight.dtype}".encode())
        digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()
