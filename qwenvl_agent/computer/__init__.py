"""The computer: its one tool, actions in pixels, and the dialects in which others write them."""

from qwenvl_agent.computer.actions import Action, ActionError, read_call, read_turn, to_call, to_turn
from qwenvl_agent.computer.tool import COMPUTER_USE, KINDS, build_tool

__all__ = [
    "COMPUTER_USE",
    "KINDS",
    "Action",
    "ActionError",
    "build_tool",
    "read_call",
    "read_turn",
    "to_call",
    "to_turn",
]
