"""Action formats: five ways to write a turn as text, each with a parser that never raises.

A parser gives `Answer(turn)`, with `repairs` naming what had to be mended (none: the text was strictly right), or
`Answer(Turn(), error=name)`. Text without any call is a turn of free text, not an error. An unknown tool's name is
not an error here: the environment answers it.

| error | the answer |
|---|---|
| empty | holds nothing but white space |
| control_token | holds the spelling of a control token, such as <think>, or half a surrogate pair |
| no_call | has a Thought or Action marker, or a think block, and nothing else |
| unclosed_thought | ends inside its think block |
| unclosed_call | ends inside a call |
| json_error | has a call whose arguments are no JSON, even mended, or have a key twice |
| bad_name | has a call without a name, or with one that no tool can have |
| bad_arguments | has arguments that are no object, or values that no call can carry (NaN, control tokens) |

A policy may add its own: `endless` (no end within the limit), `server_error` (inference/endpoint.py).
The repairs are listed in `repair`.
"""

import functools

from qwenvl_agent.families import DEFAULT, Family
from qwenvl_agent.formats.format import Format, Span
from qwenvl_agent.formats.hybrid import Hybrid
from qwenvl_agent.formats.native import Native
from qwenvl_agent.formats.no_thought import NoThought
from qwenvl_agent.formats.plain import Plain
from qwenvl_agent.formats.think import Think


@functools.cache
def formats_of(family: Family) -> dict[str, Format]:
    """All formats by name, as models of this family read and write them."""
    return {f.name: f for f in (Plain(family), Native(family), Hybrid(family), NoThought(family), Think(family))}


FORMATS = formats_of(DEFAULT)
"""Where no model is at hand: names, and what does not depend on the family."""

__all__ = ["FORMATS", "Format", "Span", "formats_of"]
