"""What the data path asks of a processor: its tokenizer and image processor are transformers', of any family."""

from collections.abc import Sequence
from typing import Any, Protocol

from qwenvl_agent.families import Family
from qwenvl_agent.vision import Geometry


class Tokenizer(Protocol):
    """Of transformers, with a backend of `tokenizers`."""

    @property
    def backend_tokenizer(self) -> Any: ...

    @property
    def pad_token_id(self) -> int: ...

    chat_template: str | None
    """None: the checkpoint has none."""
    response_template: dict | None
    """Of transformers' server: how it reads an answer."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...

    def decode(self, token_ids: Any, **options: Any) -> str: ...

    def convert_tokens_to_ids(self, tokens: str) -> int: ...


class ImageProcessor(Protocol):
    @property
    def patch_size(self) -> int: ...

    @property
    def temporal_patch_size(self) -> int: ...

    @property
    def merge_size(self) -> int: ...

    @property
    def image_mean(self) -> Sequence[float]: ...

    @property
    def image_std(self) -> Sequence[float]: ...

    @property
    def rescale_factor(self) -> float: ...

    def __call__(self, *, images: Sequence, return_tensors: str) -> Any: ...


class Processor(Protocol):
    """`model.build.Processor`, or another with the same parts."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def image_processor(self) -> ImageProcessor: ...

    @property
    def geometry(self) -> Geometry: ...

    @property
    def family(self) -> Family: ...

    @property
    def name(self) -> str: ...

    @property
    def only_thinks(self) -> bool:
        """Whether the checkpoint begins every answer in a think block."""
