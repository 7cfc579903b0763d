"""Metrics as numbers for logs and files, and what tells whether two of them rest on the same prompt."""

import hashlib
import math
from dataclasses import replace

from qwenvl_agent.config import PromptConfig
from qwenvl_agent.formats import FORMATS
from qwenvl_agent.prompt import as_asked, render_prompt
from qwenvl_agent.schema import Observation, Request
from qwenvl_agent.statistics import Interval
from qwenvl_agent.worlds.world import Metrics


def as_scalars(metrics: Metrics, group: str) -> dict[str, float]:
    """The values of a group of metrics that have one, for TensorBoard."""
    values = {f"{group}/{name}": m.value for name, m in metrics.items() if isinstance(m, Interval)}
    return {name: value for name, value in values.items() if not math.isnan(value)}


def metrics_json(metrics: Metrics) -> dict:
    """As JSON values; a figure that has no value (nothing was tried) is null."""

    def known(value: float) -> float | None:
        return None if isinstance(value, float) and math.isnan(value) else value

    return {
        name: {key: known(value) for key, value in m._asdict().items()} if isinstance(m, Interval) else m
        for name, m in metrics.items()
    }


def prompt_hash(request: Request, prompt_cfg: PromptConfig) -> str:
    """Short SHA-256 of the prompt around the observation, to see whether two results rest on the same words."""
    asked = as_asked(request, prompt_cfg.ask_for_thought)
    bare = replace(asked, history=(), observation=Observation(""))
    return hashlib.sha256(render_prompt(bare, FORMATS[prompt_cfg.format]).text.encode()).hexdigest()[:16]
