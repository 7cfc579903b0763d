"""Syntaxes of calls that families share. The seam is `family.CallSyntax`: a syntax of one family alone is in its file."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from qwenvl_agent.families.family import GrammarRules
from qwenvl_agent.near_json import ParseError, Repairs, json_text, read_json, skip_space

CLOSERS = re.compile(r"[\s}\])]*")


@dataclass(frozen=True)
class JsonCalls:
    """A call is JSON between two tags, each on a line of its own: `{"name": ..., "arguments": {...}}`."""

    open: str
    close: str
    gap: str = "\n"
    between: str = "\n"
    bare: re.Pattern = re.compile(r"""\{\s*["']name["']\s*:""")

    def write(self, name: str, arguments: Mapping) -> str:
        return self.write_served(name, json_text(arguments))

    def write_served(self, name: str, arguments: str) -> str:
        return f'{self.open}\n{{"name": "{name}", "arguments": {arguments}}}\n{self.close}'

    def read(
        self, body: str, is_closed: bool, parameters_of: Callable[[str], Mapping], repairs: Repairs
    ) -> Iterator[tuple[object, object]]:
        at = skip_space(body, 0)
        is_first = True
        while is_first or body[at : at + 1] == "{":
            if not is_first:
                repairs.add("missing_close_tag")
            is_first = False
            try:
                value, at = read_json(body, at, repairs)
            except ParseError as error:
                # Inside a closed block it is the JSON that is broken, not the answer that ends too early.
                raise ParseError("json_error" if is_closed and error.name == "unclosed_call" else error.name) from None
            yield name_and_arguments(value, repairs)
            closers = CLOSERS.match(body, at)
            assert closers is not None, "it matches nothing, too"
            if closers.group().strip():
                repairs.add("extra_brace")
            at = closers.end()
        if body[at:].strip():
            repairs.add("text_after_call")

    def expression(self, name: str, parameters: dict, rules: GrammarRules) -> str:
        return rules.json_call(name, parameters, self.write)


def name_and_arguments(value: object, repairs: Repairs) -> tuple[object, object]:
    """Of `{"name": ..., "arguments": {...}}`; a name of None where there is none."""
    if not isinstance(value, dict):
        return None, {}
    if "arguments" not in value:
        repairs.add("missing_arguments")
    return value.get("name"), value.get("arguments", {})


HERMES = JsonCalls("<tool_call>", "</tool_call>")
"""After the models that brought it; chat files write calls into text this way too, whatever model they are for."""
