"""Policies that play any world, to compare an agent with: random calls, and another policy with a share of them.

Both are functions of what was asked: the same request has the same answer. In a world whose text and picture do not
change, random play would repeat itself for ever; a step number in the text is enough.
"""

import hashlib
import random
import string
from collections.abc import Mapping, Sequence

from qwenvl_agent.schema import Answer, Policy, Request, Tool, ToolCall, Turn
from qwenvl_agent.tool_schema import argument_error

MAX_TRIES = 50
"""Draws until the arguments fit their schema, for what the draw itself does not heed (patterns, uniqueItems ...)."""
MAX_NUMBER = 1000
"""Of numbers whose schema has no limit."""
MAX_LENGTH = 4
"""Of lists and words beyond what their schema asks for."""


class RandomPolicy:
    """One call of a tool of the request's, with arguments that fit its schema, all chosen blindly."""

    def __init__(self, *, seed: int = 0):
        self.seed = seed

    def act(self, requests: Sequence[Request]) -> list[Answer]:
        return [Answer(random_turn(request.tools, request_rng(self.seed, request))) for request in requests]


class NoisyPolicy:
    """A policy, but with probability `noise` a random turn in place of its own."""

    def __init__(self, policy: Policy, *, noise: float = 0.3, seed: int = 0):
        self.policy, self.noise, self.seed = policy, noise, seed

    def act(self, requests: Sequence[Request]) -> list[Answer]:
        return [self.answer(request) for request in requests]

    def answer(self, request: Request) -> Answer:
        rng = request_rng(self.seed, request)
        if rng.random() < self.noise:
            return Answer(random_turn(request.tools, rng))
        return self.policy.act([request])[0]


def request_rng(seed: int, request: Request) -> random.Random:
    """Randomness that is a function of what was asked: text and pictures."""
    digest = hashlib.sha256(f"{seed}\n{request.observation.text}".encode())
    for picture in request.observation.pictures:
        digest.update(picture.path.encode() if picture.image is None else picture.image.tobytes())
    return random.Random(digest.hexdigest())


def random_turn(tools: Sequence[Tool], rng: random.Random) -> Turn:
    return Turn(tool_calls=(random_call(rng.choice(tools), rng),))


def random_call(tool: Tool, rng: random.Random) -> ToolCall:
    """A call whose arguments fit the tool's schema; ValueError if none is found."""
    for _ in range(MAX_TRIES):
        arguments = random_value(tool.parameters, rng, tool.parameters)
        if isinstance(arguments, dict) and not argument_error(tool.parameters, arguments):
            return ToolCall(tool.name, arguments)
    raise ValueError(
        f"tool {tool.name}: none of {MAX_TRIES} random arguments fits its schema, so it cannot be played at random; write a "
        "simpler schema, or give the world a `random` baseline of its own"
    )


def random_value(schema: object, rng: random.Random, root: Mapping) -> object:
    """A value of a JSON schema, by its commonest keywords; `root` is what its references lead into."""
    if not isinstance(schema, Mapping):
        return rng.randint(0, MAX_NUMBER)
    if "$ref" in schema:
        return random_value(_resolve(schema["$ref"], root), rng, root)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return rng.choice(schema["enum"])
    for key in ("anyOf", "oneOf"):
        if key in schema:
            rest = {name: value for name, value in schema.items() if name != key}
            return random_value(rest | rng.choice(schema[key]), rng, root)
    kinds = schema.get("type") or ("object" if "properties" in schema else "integer")
    kind = kinds if isinstance(kinds, str) else rng.choice(kinds)
    return DRAW[kind](schema, rng, root)


def _resolve(reference: str, root: Mapping) -> object:
    node = root
    for key in reference.removeprefix("#/").split("/"):
        node = node[key.replace("~1", "/").replace("~0", "~")]
    return node


def _integer(schema: Mapping, rng: random.Random, root: Mapping) -> int:
    least = schema.get("minimum", schema.get("exclusiveMinimum", -1) + 1)
    most = schema.get("maximum", schema.get("exclusiveMaximum", max(least, 0) + MAX_NUMBER + 1) - 1)
    step = schema.get("multipleOf", 1)
    return rng.randint(-(-least // step), most // step) * step


def _number(schema: Mapping, rng: random.Random, root: Mapping) -> float:
    least = schema.get("minimum", schema.get("exclusiveMinimum", 0))
    return rng.uniform(least, schema.get("maximum", schema.get("exclusiveMaximum", max(least, 0) + MAX_NUMBER)))


def _string(schema: Mapping, rng: random.Random, root: Mapping) -> str:
    least = schema.get("minLength", 0)
    length = rng.randint(least, min(least + MAX_LENGTH, schema.get("maxLength", least + MAX_LENGTH)))
    return "".join(rng.choices(string.ascii_lowercase, k=length))


def _array(schema: Mapping, rng: random.Random, root: Mapping) -> list:
    least = schema.get("minItems", 0)
    most = schema.get("maxItems", least + MAX_LENGTH)
    return [random_value(schema.get("items", {}), rng, root) for _ in range(rng.randint(least, most))]


def _object(schema: Mapping, rng: random.Random, root: Mapping) -> dict:
    required = schema.get("required", ())
    named = {
        name: part for name, part in schema.get("properties", {}).items() if name in required or rng.random() < 0.5
    }
    return {name: random_value(part, rng, root) for name, part in named.items()}


DRAW = {
    "integer": _integer,
    "number": _number,
    "string": _string,
    "array": _array,
    "object": _object,
    "boolean": lambda schema, rng, root: rng.random() < 0.5,
    "null": lambda schema, rng, root: None,
}
"""By type."""
