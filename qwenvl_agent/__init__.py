"""qwenvl-agent: turn Qwen3-VL into an agent that looks, thinks and calls tools. Imports nothing heavy."""

import importlib
from typing import TYPE_CHECKING

from qwenvl_agent import threads as threads

if TYPE_CHECKING:
    from qwenvl_agent.inference.agent import load_agent
    from qwenvl_agent.inference.load import load_policy

__version__ = "0.2.0"
__all__ = ["load_agent", "load_policy"]

HOMES = {"load_agent": "qwenvl_agent.inference.agent", "load_policy": "qwenvl_agent.inference.load"}


def __getattr__(name: str):
    """A public name, imported when it is first used."""
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(HOMES[name]), name)
