"""JSON schemas of tools, which come with data and with strangers' worlds: nothing is fetched, nothing runs for ever.

jsonschema does the work, with four parts exchanged. References are looked up in the schema alone. Patterns run on RE2,
whose time grows linearly with the text, where Python's engine takes for ever on `(a+)+$`. `uniqueItems` is a set. And
all keywords are counted, because references that double at each of forty levels are a small schema and a long check.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from urllib.parse import unquote

from jsonschema import Draft202012Validator, ValidationError
from jsonschema.exceptions import best_match
from jsonschema.validators import extend
from referencing import Registry
from referencing.exceptions import Unresolvable

MAX_CHECKS = 100_000
"""Keywords looked at for one call: a second's work."""
DATA_KEYWORDS = ("const", "enum", "default", "examples")
"""What stands below them is no schema."""
MAX_KNOWN = 256

_checks_left: ContextVar[list[float]] = ContextVar("checks_left")


def check_schema(schema: object) -> None:
    """ValueError for what is no JSON schema, or one that cannot be checked here."""
    error = _first_error(_checker(Draft202012Validator.META_SCHEMA), schema, float("inf"))
    if error:
        raise ValueError(f"not a JSON schema ({_short(error.message)}): no arguments could be checked; correct it")
    try:
        json.dumps(schema, allow_nan=False)
    except ValueError:
        raise ValueError(
            "a number that JSON has not (NaN, infinity): no server could be given it; correct it"
        ) from None
    nodes = list(_subschemas(schema))
    for node in nodes:
        for key in ("$ref", "$dynamicRef"):
            if key in node:
                _check_reference(schema, node[key])
        for pattern in _patterns(node):
            matches(pattern, "")
    if any("unevaluatedProperties" in node for node in nodes) and any("patternProperties" in node for node in nodes):
        raise ValueError(
            "unevaluatedProperties beside patternProperties: they are not checked here; use additionalProperties"
        )


def argument_error(schema: dict, arguments: dict) -> str:
    """What is wrong with a call's arguments by the tool's schema, "" if nothing is.

    ValueError if the schema cannot say: it refers to what is not in it, or checking has no end.
    """
    try:
        error = _first_error(_checker(schema), arguments, MAX_CHECKS)
    except Unresolvable as fault:
        raise ValueError(_unresolved(str(getattr(fault, "ref", fault)))) from None
    except RecursionError:
        raise ValueError("the schema refers to itself without end: no arguments can be checked; correct it") from None
    except ArithmeticError as fault:
        raise ValueError(
            f"numbers too large or too small to check ({fault}): the schema's or the arguments'; correct them"
        ) from None
    return _short(error.message) if error else ""


def _short(message: str) -> str:
    # The value stands first, what is wrong with it last.
    return message if len(message) <= 200 else f"{message[:80]}...{message[-80:]}"


def matches(pattern: str, text: str) -> bool:
    """Whether the pattern is found in the text; ValueError if RE2 has no such pattern."""
    from pyarrow import ArrowInvalid, compute, scalar

    try:
        return compute.match_substring_regex(scalar(text), _to_re2(pattern)).as_py()
    except (ArrowInvalid, UnicodeEncodeError) as error:
        reason = str(error).rpartition("regular expression: ")[2]
        raise ValueError(
            f"pattern {pattern[:80]!r} cannot be checked in bounded time ({reason[:80]}): look-around, back references "
            "and more than 1000 repetitions are not taken; write it without, or leave it out"
        ) from None


def _to_re2(pattern: str) -> str:
    """JSON schema's \\uXXXX as RE2 has it."""
    return re.sub(
        r"\\(?:u([0-9a-fA-F]{4})|.)",
        lambda match: rf"\x{{{match.group(1)}}}" if match.group(1) else match.group(),
        pattern,
        flags=re.DOTALL,
    )


def _first_error(checker: Draft202012Validator, value: object, max_checks: float) -> ValidationError | None:
    token = _checks_left.set([max_checks])
    try:
        return best_match(checker.iter_errors(value))
    finally:
        _checks_left.reset(token)


def _counted(keyword: Callable) -> Callable:
    def check(validator, value, instance, schema):
        left = _checks_left.get()
        left[0] -= 1
        if left[0] < 0:
            raise ValueError(f"more than {MAX_CHECKS} steps to check a call by its schema; write a simpler schema")
        return keyword(validator, value, instance, schema)

    return check


def _check_pattern(validator, pattern, instance, schema) -> Iterator[ValidationError]:
    if validator.is_type(instance, "string") and not matches(pattern, instance):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


def _check_pattern_properties(validator, properties, instance, schema) -> Iterator[ValidationError]:
    for pattern, subschema in properties.items() if validator.is_type(instance, "object") else ():
        for key in [key for key in instance if matches(pattern, key)]:
            yield from validator.descend(instance[key], subschema, path=key, schema_path=pattern)


def _check_additional(validator, allowed, instance, schema) -> Iterator[ValidationError]:
    """As jsonschema has it, of what no pattern names."""
    patterns = schema.get("patternProperties", ())
    if patterns and validator.is_type(instance, "object"):
        instance = {key: item for key, item in instance.items() if not any(matches(p, key) for p in patterns)}
        schema = {key: item for key, item in schema.items() if key != "patternProperties"}
    yield from STOCK["additionalProperties"](validator, allowed, instance, schema) or ()


def _check_unique(validator, is_unique, instance, schema) -> Iterator[ValidationError]:
    if is_unique and validator.is_type(instance, "array"):
        seen = {json.dumps(_whole_numbers(item), sort_keys=True) for item in instance}
        if len(seen) < len(instance):
            yield ValidationError(f"{instance!r} has non-unique elements")


def _whole_numbers(value: object) -> object:
    """With 1.0 as 1, which JSON schema holds to be equal."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_whole_numbers(item) for item in value]
    return {key: _whole_numbers(item) for key, item in value.items()} if isinstance(value, dict) else value


STOCK = dict(Draft202012Validator.VALIDATORS)
OWN = {
    "pattern": _check_pattern,
    "patternProperties": _check_pattern_properties,
    "additionalProperties": _check_additional,
    "uniqueItems": _check_unique,
}
Checker = extend(Draft202012Validator, {name: _counted(keyword) for name, keyword in (STOCK | OWN).items()})
_known: dict[int, tuple[object, Draft202012Validator]] = {}


def _checker(schema: object) -> Draft202012Validator:
    """The schema's checker, known again by the schema's identity (which the checker's own reference keeps)."""
    known = _known.get(id(schema))
    if known is None:
        if len(_known) >= MAX_KNOWN:
            _known.clear()
        # A registry of its own: the default one opens http: and file: references.
        known = _known[id(schema)] = (schema, Checker(schema, registry=Registry()))
    return known[1]


def _subschemas(value: object) -> Iterator[Mapping]:
    """Every object below that may be a schema, the value itself first."""
    waiting = [value]
    while waiting:
        node = waiting.pop()
        if isinstance(node, Mapping):
            yield node
            waiting += [item for key, item in node.items() if key not in DATA_KEYWORDS]
        elif isinstance(node, list):
            waiting += node


def _patterns(node: Mapping) -> list[str]:
    named = node.get("patternProperties")
    own = [node["pattern"]] if isinstance(node.get("pattern"), str) else []
    return own + (list(named) if isinstance(named, Mapping) else [])


def _check_reference(schema: object, reference: object) -> None:
    """ValueError unless the reference leads to a schema in this one (a property of that name is no reference)."""
    if not isinstance(reference, str):
        return
    target: str | None = reference
    seen: set[str] = set()
    while isinstance(target, str):
        if target in seen:
            raise ValueError(f"$ref {reference[:80]!r} leads to itself: it describes nothing; correct it")
        seen.add(target)
        node = _at(schema, target)
        if not isinstance(node, bool | Mapping):
            raise ValueError(_unresolved(reference))
        target = node.get("$ref") if isinstance(node, Mapping) else None


def _at(schema: object, reference: str) -> object:
    """What a reference `#/...` names, None if nothing."""
    first, *keys = reference.split("/")
    if first != "#":
        return None
    for key in keys:
        key = unquote(key).replace("~1", "/").replace("~0", "~")
        if isinstance(schema, list) and key.isascii() and key.isdigit() and int(key[:9]) < len(schema):
            schema = schema[int(key[:9])]
        elif isinstance(schema, Mapping) and key in schema:
            schema = schema[key]
        else:
            return None
    return schema


def _unresolved(reference: str) -> str:
    return (
        f"$ref {reference[:80]!r} leads to nothing in the schema, and nothing is fetched from elsewhere: no arguments "
        "could be checked; put what it names into the schema's $defs, and refer to it as '#/$defs/NAME'"
    )
