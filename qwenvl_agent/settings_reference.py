"""What there is to set, for people and editors: --help, tables in Markdown, JSON schema. Made from the dataclasses alone.

`python scripts/document_config.py` writes docs/CONFIG.md and the schemas; a test compares them with the dataclasses.
"""

import dataclasses
import json
import textwrap
import typing
from collections.abc import Sequence
from typing import Annotated, Any

from qwenvl_agent.settings import (
    Range,
    Setting,
    choices_of,
    default_of,
    docs_of,
    has_no_default,
    hints_of,
    is_optional_group,
    kinds_of,
    list_settings,
    settings_of,
)

SCHEMA = "https://json-schema.org/draft/2020-12/schema"
TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}
WORDS = {str: "text", bool: "true or false", int: "whole number", float: "number", list: "list", dict: "object"}


def help_of(cls: type, width: int = 118) -> str:
    """All settings for a terminal: `key=default` and the meaning, a paragraph for each group."""
    lines = []
    for setting in list_settings(cls):
        if setting.is_group:
            lines += ["", *wrapped(f"{setting.path}: {setting.meaning}", "  ", width)]
        else:
            is_needed = setting.default is dataclasses.MISSING
            shown = setting.path if is_needed else f"{setting.path}={json.dumps(setting.default)}"
            limits = "; ".join(filter(None, ("required" if is_needed else "", allowed(setting.hint))))
            lines += wrapped(f"{shown}{f' ({limits})' if limits else ''}  {setting.meaning}", "    ", width)
    return "\n".join(lines)


def wrapped(text: str, indent: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=f"{indent}    ", break_on_hyphens=False)


def tables_of(cls: type, level: str = "##") -> str:
    """A heading and a table in Markdown for each group that has settings of its own."""
    groups: dict[str, list[Setting]] = {"": []}
    meanings = {}
    for setting in list_settings(cls):
        if setting.is_group:
            groups[setting.group_path], meanings[setting.group_path] = [], setting.meaning
        else:
            groups[setting.path.rpartition(".")[0]].append(setting)
    parts = []
    for path, settings in groups.items():
        heading = [f"{level} {path}", "", meanings[path], ""] if path else []
        parts.append("\n".join([*heading, *table_of(settings)]))
    return "\n\n".join(parts)


def table_of(settings: Sequence[Setting]) -> list[str]:
    rows = ["| setting | type | default | values | meaning |", "|---|---|---|---|---|"]
    for setting in settings:
        default = "required" if setting.default is dataclasses.MISSING else f"`{json.dumps(setting.default)}`"
        cells = (f"`{setting.path}`", words_of(setting.hint), default, allowed(setting.hint), setting.meaning)
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return rows


def words_of(hint: object) -> str:
    """A type in the words of JSON: `whole number`, `list of text`."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return words_of(args[0])
    if origin is tuple:
        return f"list of {words_of(args[0])}" if args[-1] is Ellipsis else f"{len(args)} x {words_of(args[0])}"
    return " or ".join(WORDS[kind] for kind in kinds_of(hint))


def allowed(hint: object) -> str:
    """Which values of its type a setting may have, "" for all."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated and isinstance(args[1], Range):
        return f"{args[1].least:.12g} to {args[1].most:.12g}"
    if origin is tuple:
        return allowed(args[0])
    choices = () if hint is bool else choices_of(hint)
    return ", ".join(choice if isinstance(choice, str) else json.dumps(choice) for choice in choices)


# JSON schema


def schema_of(cls: type, title: str) -> dict:
    """For a file that holds this class; `$schema` in the file names the schema to the editor."""
    schema = {"$schema": SCHEMA, "title": title, **object_schema(cls)}
    schema["properties"] = {"$schema": {"type": "string"}, **schema["properties"]}
    return schema


def object_schema(cls: type) -> dict:
    hints, docs, fields = hints_of(cls), docs_of(cls), settings_of(cls)
    properties = {}
    for field in fields:
        properties[field.name] = {"description": docs.get(field.name, ""), **value_schema(hints[field.name])}
        if not has_no_default(field) and not dataclasses.is_dataclass(hints[field.name]):
            properties[field.name]["default"] = default_of(field)
    required = [field.name for field in fields if has_no_default(field)]
    limits = {"required": required} if required else {}
    return {"type": "object", "properties": properties, **limits, "additionalProperties": False}


def value_schema(hint: Any) -> dict:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if is_optional_group(hint):
        return {"anyOf": [object_schema(args[0]), {"type": "null"}]}
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return object_schema(hint)
    if origin is Annotated:
        return limited(value_schema(args[0]), args[1])
    if origin is tuple and args[-1] is Ellipsis:
        return {"type": "array", "items": value_schema(args[0])}
    if origin is tuple:
        items = [value_schema(arg) for arg in args]
        return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}
    if hint is not bool and (choices := choices_of(hint)):
        return {"enum": list(choices)}
    kinds = [TYPES[kind] for kind in kinds_of(hint)]
    return {"type": kinds[0] if len(kinds) == 1 else kinds}


def limited(schema: dict, limits: Range) -> dict:
    """Of a number or of each number of a list."""
    bounds = {"minimum": limits.least, "maximum": limits.most}
    if "prefixItems" in schema:
        return schema | {"prefixItems": [item | bounds for item in schema["prefixItems"]]}
    return schema | {"items": schema["items"] | bounds} if "items" in schema else schema | bounds
