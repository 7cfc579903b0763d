"""Tools of a row in the two forms that are read (OpenAI's, and the same flat), from those of others."""

import json
from functools import lru_cache
from typing import Any

from qwenvl_agent.data.readers.chat.calls import decoded

PYTHON_TYPES = {
    **dict.fromkeys(("str", "string"), "string"),
    **dict.fromkeys(("int", "integer"), "integer"),
    **dict.fromkeys(("float", "number"), "number"),
    **dict.fromkeys(("bool", "boolean"), "boolean"),
    **dict.fromkeys(("list", "array", "tuple", "set"), "array"),
    **dict.fromkeys(("dict", "object"), "object"),
}
"""xLAM's and ToolACE's types of a parameter -> JSON schema's."""


def normal_tools(tools: Any) -> str:
    """Tools as JSON text, for `build_tools`; ValueError for those of a server, which no schema describes."""
    return _normal_tools(tools if isinstance(tools, str) else json.dumps(tools))


@lru_cache(maxsize=64)
def _normal_tools(tools_json: str) -> str:
    tools = decoded(tools_json, "tools") if tools_json.strip() else []
    if isinstance(tools, list):
        tools = [_normal_tool(decoded(tool, f"tools[{i}]"), f"tools[{i}]") for i, tool in enumerate(tools)]
    return json.dumps(tools)


def _normal_tool(tool: Any, place: str) -> Any:
    if not isinstance(tool, dict):
        return tool
    function = tool.get("function")
    if function is None and "input_schema" in tool and "parameters" not in tool:
        rest = {key: value for key, value in tool.items() if key not in ("input_schema", "cache_control", "type")}
        return {**rest, "parameters": tool["input_schema"]}
    if function is None and tool.get("type") not in (None, "function", "custom") and "parameters" not in tool:
        raise ValueError(
            f"{place} is the tool {str(tool.get('type'))[:80]!r} of a server: its calls have no schema here; write its name, "
            "description and parameters"
        )
    if isinstance(function, dict):
        return {**tool, "function": _with_schema(function, place)}
    return _with_schema(tool, place)


def _with_schema(function: dict, place: str) -> dict:
    """The function with its parameters as a JSON schema, where they are given by name and Python type (xLAM)."""
    parameters = function.get("parameters")
    if not isinstance(parameters, dict) or not parameters or not all(map(_is_parameter, parameters.values())):
        return function
    names = [name for name, entry in parameters.items() if not _is_optional(entry)]
    properties = {name: _property(entry, f"{place} parameters.{name}") for name, entry in parameters.items()}
    schema = {"type": "object", "properties": properties, "required": names}
    return {**function, "parameters": schema if names else {key: schema[key] for key in ("type", "properties")}}


def _is_parameter(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("type"), str) and "properties" not in entry


def _is_optional(entry: dict) -> bool:
    return "default" in entry or "optional" in entry["type"] or entry.get("required") is False


def _property(entry: dict, place: str) -> dict:
    name = entry["type"].split(",")[0].split("[")[0].strip().lower()
    if name in ("optional", "union") or name not in PYTHON_TYPES:
        raise ValueError(
            f"{place} has type {entry['type'][:80]!r}: it is no JSON schema's, so no call could be checked; write parameters "
            "as a JSON schema"
        )
    rest = {key: value for key, value in entry.items() if key not in ("type", "required", "default")}
    default = {"default": entry["default"]} if entry.get("default") not in (None, "") else {}
    return {"type": PYTHON_TYPES[name], **rest, **default}
