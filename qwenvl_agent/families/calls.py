"""Syntaxes of calls that families share. The seam is `family.CallSyntax`: a syntax of one family alone is in its file."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from qwenvl_agent.families.family import GrammarRules
from qwenvl_agent.near_json import ParseError, Repairs, json_pieces, json_text, read_json, skip_space

CLOSERS = re.compile(r"[\s}\])]*")
NEXT_OBJECT = re.compile(r"(?:,\s*)?(?=\{)")
ARGUMENT_KEYS = ("arguments", "parameters", "args", "params", "input", "kwargs")
"""What models call a call's arguments, our own first."""
DROPPED = {
    **dict.fromkeys(("id", "call_id", "type", "index"), "dropped_key"),
    **dict.fromkeys(("thought", "reasoning", "description"), "dropped_remark"),
}
"""Keys that stand beside a call and are no argument of it, and the names of the repairs that leave them out."""
BARE_CALL = re.compile(
    r"""(?:\[\s*)?(?:\{\s*(?:["']type["']\s*:\s*["']function["']\s*,\s*)?["']function["']\s*:\s*)?"""
    r"""\{\s*["']name["']\s*:\s*(?:["'](?P<name>[^"'\n]{1,100})["']\s*"""
    r"""(?P<has_arguments>,\s*["'](?:arguments|parameters|args|params|input|kwargs)["']\s*:)?|["'][^"'\n]{0,100}\Z|\Z)"""
)
"""One or a list of them; also one that breaks off in its name."""


@dataclass(frozen=True)
class JsonCalls:
    """A call is JSON between two tags, each on a line of its own: `{"name": ..., "arguments": {...}}`."""

    open: str
    close: str
    gap: str = "\n"
    between: str = "\n"
    bare: re.Pattern = BARE_CALL

    def write(self, name: str, arguments: Mapping) -> str:
        return self.write_served(name, json_text(arguments))

    def pieces(self, arguments: Mapping) -> tuple[str, Iterable[tuple[bool, str]]]:
        return json_text(arguments), json_pieces(arguments)

    def write_served(self, name: str, arguments: str) -> str:
        return f'{self.open}\n{{"name": "{name}", "arguments": {arguments}}}\n{self.close}'

    def read(
        self, body: str, is_closed: bool, parameters_of: Callable[[str], Mapping], repairs: Repairs
    ) -> Iterator[tuple[object, object]]:
        # A number at the end of a block was written out; at the end of an answer it may have been cut.
        body = body + "\n" if is_closed else body
        at = skip_space(body, 0)
        while True:
            try:
                value, at = read_json(body, at, repairs)
            except ParseError as error:
                # Inside a closed block it is the JSON that is broken, not the answer that ends too early.
                raise ParseError("json_error" if is_closed and error.name == "unclosed_call" else error.name) from None
            yield from _calls_of(value, repairs)
            closers = CLOSERS.match(body, at)
            assert closers is not None, "it matches nothing, too"
            if closers.group().strip():
                repairs.add("extra_brace")
            at = closers.end()
            following = self._next(body, at)
            if following < 0:
                break
            repairs.add("missing_close_tag")
            if body[at:following].strip(" \t\r\n,"):
                repairs.add("text_between_calls")
            at = following
        if body[at:].strip():
            repairs.add("text_after_call")

    def _next(self, body: str, at: int) -> int:
        """Where the next call begins: at once, behind a comma, or behind words; -1 if there is none."""
        if following := NEXT_OBJECT.match(body, at):
            return following.end()
        return next((match.start() for match in self.bare.finditer(body, at) if match["has_arguments"]), -1)

    def expression(self, name: str, parameters: dict, rules: GrammarRules) -> str:
        return rules.json_call(name, parameters, self.write)


def _calls_of(value: object, repairs: Repairs) -> Iterator[tuple[object, object]]:
    """(name, arguments) of a call, or of each of a list."""
    if isinstance(value, list) and value:
        repairs.add("list_of_calls")
    for item in value if isinstance(value, list) and value else [value]:
        yield name_and_arguments(item, repairs)


def name_and_arguments(value: object, repairs: Repairs) -> tuple[object, object]:
    """Of `{"name": ..., "arguments": {...}}`; a name of None where there is none.

    ParseError for keys beside these two that say more than what kind of object this is: they would be lost.
    """
    if isinstance(value, dict) and isinstance(value.get("function"), dict) and "name" not in value:
        repairs.add("nested_call")
        _check_rest(value, ("function",), repairs)
        value = value["function"]
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None, {}
    given = [key for key in ARGUMENT_KEYS if key in value]
    if len(given) > 1:
        raise ParseError("bad_arguments")
    _check_rest(value, ("name", *given), repairs)
    if not given:
        repairs.add("missing_arguments")
        return value.get("name"), {}
    if given != ["arguments"]:
        repairs.add("renamed_arguments")
    return value.get("name"), value[given[0]]


def _check_rest(value: Mapping, read: tuple[str, ...], repairs: Repairs) -> None:
    for key, item in value.items():
        if key in read:
            continue
        if key not in DROPPED or not isinstance(item, str | int | float | None):
            raise ParseError("bad_arguments")
        repairs.add(DROPPED[key])


HERMES = JsonCalls("<tool_call>", "</tool_call>")
"""After the models that brought it; chat files write calls into text this way too, whatever model they are for."""
