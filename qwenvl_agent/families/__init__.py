"""Model families by the `model_type` of a checkpoint's config.json. A new one: a file beside these, and a row below."""

from collections.abc import Mapping

from qwenvl_agent.families.architecture import Architecture
from qwenvl_agent.families.family import CallSyntax, Family, Template
from qwenvl_agent.families.qwen3_5 import QWEN3_5
from qwenvl_agent.families.qwen3_vl import QWEN3_VL
from qwenvl_agent.families.qwen3_vl_moe import QWEN3_VL_MOE

FAMILIES: dict[str, Family] = {family.model_type: family for family in (QWEN3_VL, QWEN3_VL_MOE, QWEN3_5)}
DEFAULT = QWEN3_VL
"""Where no checkpoint is at hand to say which: a format by its name alone, the tiny family."""


def find_family(model_type: str, source: str) -> Family:
    """ValueError, which names `source`, for a model that no family here is for."""
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    for family in FAMILIES.values():
        if model_type in family.unfit:
            raise ValueError(f"{source} {family.unfit[model_type]}")
    raise ValueError(
        f"{source} is of the family {model_type!r}: its template, positions and vision tokens differ; use a "
        f"{' or '.join(family.title for family in FAMILIES.values())} checkpoint"
    )


def control_words() -> tuple[str, ...]:
    """Of all families, because text is cleaned before a model is known: an escape too many does no harm."""
    return tuple(dict.fromkeys(word for family in FAMILIES.values() for word in family.control_words))


def published_architectures() -> Mapping[str, Architecture]:
    return {path: arch for family in FAMILIES.values() for path, arch in family.published.items()}


__all__ = [
    "DEFAULT",
    "FAMILIES",
    "Architecture",
    "CallSyntax",
    "Family",
    "Template",
    "control_words",
    "find_family",
    "published_architectures",
]
