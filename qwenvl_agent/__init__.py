"""qwenvl-agent: turn Qwen3-VL into an agent that looks, thinks and calls tools. Imports nothing heavy."""

__version__ = "0.1.0"
