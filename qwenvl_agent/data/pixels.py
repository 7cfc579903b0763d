"""Pictures to the image processor's `pixel_values`, to the bit, in a fraction of its time.

The size is decided by the budget (`vision.fit_picture`), so that the processor has nothing left to resize. Pictures
travel as bytes of one frame, an eighth of the processor's floats; `pixel_values` makes those on the model's device.

Legend: C channels, H height, W width, P patches of all M pictures.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torchvision.io import decode_png
from torchvision.transforms.v2 import functional

from qwenvl_agent import png
from qwenvl_agent.data.processor import ImageProcessor
from qwenvl_agent.images import file_bytes
from qwenvl_agent.schema import Picture


def load_pixels(picture: Picture, height: int, width: int) -> torch.Tensor:
    """(C, H, W) uint8 of the picture at the size that the model sees; ValueError if it cannot be read."""
    pixels = _read_plain_png(picture)
    if pixels is None:
        pixels = torch.from_numpy(np.array(picture.open())).permute(2, 0, 1)
    if pixels.shape[1:] == (height, width):
        return pixels
    return functional.resize(
        pixels, [height, width], interpolation=functional.InterpolationMode.BICUBIC, antialias=True
    )


def _read_plain_png(picture: Picture) -> torch.Tensor | None:
    """(C, H, W) of a plain RGB PNG of the recorded size, in less than Pillow's time; None for all that Pillow judges."""
    if picture.image is not None:
        return None
    try:
        content = file_bytes(picture.path)
    except (OSError, ValueError):
        return None
    whole = png.restored(content, picture.width, picture.height)
    return None if whole is None else decode_png(torch.frombuffer(whole, dtype=torch.uint8))


def picture_key(picture: Picture, height: int, width: int) -> str:
    """Of what the model sees: the picture's bytes, and the size to which they are brought."""
    digest = hashlib.blake2b(f"{height}x{width}".encode(), digest_size=16)
    if picture.image is not None:
        digest.update(f"{picture.image.mode} {picture.image.size}".encode() + picture.image.tobytes())
    else:
        try:
            digest.update(file_bytes(picture.path))
        except (OSError, ValueError) as error:
            raise ValueError(f"picture {picture.path}: {error}: its row cannot be used; restore the file") from None
    return digest.hexdigest()


def feature_path(directory: Path, key: str) -> Path:
    """Where training/features.py keeps what a frozen tower made of that picture."""
    return directory / f"{key}.safetensors"


def patchify(images: Sequence[torch.Tensor], image_processor: ImageProcessor) -> dict[str, torch.Tensor]:
    """What a batch carries of uint8 images (C, H, W): bytes of one frame, and what `pixel_values` needs besides.

    patches (P, C, patch * patch) uint8; patch_scale (2, C, frames, 1) float32, mean and deviation of byte values;
    image_grid_thw (M, 3). Patches that merge into one token stand together.
    """
    patch, frames = image_processor.patch_size, image_processor.temporal_patch_size
    # The processor folds the rescaling into mean and deviation; the same order of operations gives the same floats.
    scale = torch.tensor([image_processor.image_mean, image_processor.image_std])
    scale = scale * (1.0 / image_processor.rescale_factor)
    return {
        "patches": torch.from_numpy(np.concatenate([_patches(i, patch, image_processor.merge_size) for i in images])),
        "patch_scale": scale[:, :, None, None].repeat(1, 1, frames, 1),
        "image_grid_thw": torch.tensor([(1, image.shape[1] // patch, image.shape[2] // patch) for image in images]),
    }


def pixel_values(batch: dict) -> torch.Tensor:
    """(P, C * frames * patch * patch) float32 of a batch's patches, made where they are: what the model is given."""
    mean, deviation = batch["patch_scale"]
    return (batch["patches"][:, :, None] - mean).div_(deviation).flatten(1)


def _patches(image: torch.Tensor, patch: int, merge: int) -> np.ndarray:
    """(P, C, patch * patch); NumPy copies bytes in another order in half of torch's time."""
    order = "c (row down h) (column across w) -> (row column down across) c (h w)"
    return rearrange(image.numpy(), order, down=merge, across=merge, h=patch, w=patch)
