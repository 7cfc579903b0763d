"""qwenvl-agent: turn Qwen3-VL into an agent that looks, thinks and calls tools. Imports nothing heavy."""

from typing import TYPE_CHECKING

from qwenvl_agent import threads as threads

if TYPE_CHECKING:
    from qwenvl_agent.inference.agent import load_agent

__version__ = "0.1.0"
__all__ = ["load_agent"]


def __getattr__(name: str):
    """`load_agent`, imported when it is first used."""
    if name == "load_agent":
        from qwenvl_agent.inference.agent import load_agent

        return load_agent
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
