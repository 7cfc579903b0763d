"""What tools answered, placed with the calls that they answer."""

from collections.abc import Sequence

from qwenvl_agent.data.readers.chat.content import parts
from qwenvl_agent.json_input import read_json
from qwenvl_agent.schema import ToolCall, ToolResult


def build_results(
    messages: Sequence[dict], calls: Sequence[ToolCall], ids: Sequence[str | None]
) -> tuple[ToolResult, ...]:
    """One result a call, in the order of the calls: placed by tool_call_id, or else in the order given."""
    results: dict[int, ToolResult] = {}
    for message in messages:
        call_id = message.get("tool_call_id")
        index = ids.index(call_id) if call_id is not None and call_id in ids else len(results)
        has_stray_id = call_id is not None and call_id not in ids and any(ids)
        if has_stray_id or index >= len(calls) or index in results:
            raise ValueError(f"{message['place']} is a tool result without a call: it cannot be placed; add the call")
        name = message.get("name") or calls[index].name
        if name != calls[index].name:
            raise ValueError(f"{message['place']} is a result of {name!r}, but the call was {calls[index].name!r}")
        results[index] = ToolResult(name, _result_content(message))
    if sorted(results) != list(range(len(results))):
        raise ValueError(f"{messages[0]['place']}: an earlier call has no result though a later one has; add it")
    return tuple(results[index] for index in range(len(results)))


def _result_content(message: dict) -> dict:
    """A JSON object as it is, anything else as {"result": value}."""
    text = "".join(value for kind, value in parts(message) if kind == "text").strip()
    try:
        value = read_json(text)
    except ValueError:
        value = text
    return value if isinstance(value, dict) else {"result": value}
