"""How likely a model finds the labels: token accuracy and loss by part, and of the calls' argument values alone."""

import copy
from collections.abc import Sequence

from qwenvl_agent.evaluation.step_metrics import token_metrics
from qwenvl_agent.families import DEFAULT, CallSyntax
from qwenvl_agent.formats import Format, Span
from qwenvl_agent.formats.calls import write_plain
from qwenvl_agent.near_json import json_pieces
from qwenvl_agent.schema import Policy, Row, Turn


def score_scalars(policy: Policy, rows: Sequence[Row]) -> dict[str, float]:
    """Token accuracy and loss by part; of the argument values alone, which are the decisions; tokens of a turn."""
    scores = policy.score(rows)
    metrics = token_metrics(scores) | value_metrics(policy, rows)
    metrics["turn_tokens"] = sum(score["num_tokens"] for score in scores) / max(1, len(rows))
    return {f"eval/{name}": value for name, value in metrics.items()}


def value_metrics(policy: Policy, rows: Sequence[Row]) -> dict[str, float]:
    """`token_accuracy/values`, `token_loss/values`: over the tokens of the calls' argument values alone.

    The rest of a call is the format's own, easy and of different length in each format, so that losses of whole calls
    cannot be compared across formats; these can.
    """
    scorer = copy.copy(policy)
    scorer.collator = copy.copy(policy.collator)
    scorer.collator.fmt = ValueSpans(policy.collator.fmt)
    calls = [row for row in rows if row.turn.tool_calls]
    # In a turn with calls nothing else is of the part `text`.
    values = [score for score in scorer.score(calls) if score["part"] == "text"] if calls else []
    found = token_metrics(values)
    return {name.replace("/text", "/values"): value for name, value in found.items() if name.endswith("/text")}


class ValueSpans:
    """A format whose calls are rendered in pieces: argument values as part `text`, all around them as part `call`."""

    def __init__(self, fmt: Format):
        self.fmt = fmt

    def __getattr__(self, name: str):
        return getattr(self.fmt, name)

    def render(self, turn: Turn) -> list[Span]:
        return [
            piece
            for span in self.fmt.render(turn)
            for piece in (split_values(span, turn, self.fmt.family.calls) if turn.tool_calls else [span])
        ]


def split_values(span: Span, turn: Turn, syntax: CallSyntax = DEFAULT.calls) -> list[Span]:
    """A call span cut at the turn's argument values, in the order in which they are written, in `syntax` or plain."""
    if span.part != "call":
        return [span]
    pieces, start = [], 0
    for call in turn.tool_calls:
        written, parts = syntax.pieces(call.arguments)
        at = span.text.find(written, start)
        if at < 0:
            at = span.text.index(write_plain(call), start) + len(call.name)
            parts = json_pieces(call.arguments)
        for is_value, text in parts:
            at = span.text.index(text, at)
            if is_value:
                pieces += [Span("call", span.text[start:at]), Span("text", text)]
                start = at + len(text)
            at += len(text)
    return [piece for piece in (*pieces, Span("call", span.text[start:])) if piece.text]
