"""Constrained decoding: which tokens keep an answer inside its format's grammar (`formats.grammar`).

The masks are llguidance's. An answer that ends is read strictly and its calls fit the tools' schemas; one that does not
end within the limit stays endless. A grammar needs tools: a request without any may be answered as the model likes.

Legend: B rows, V tokens of the vocabulary.
"""

import json
from collections.abc import Sequence

import torch

from qwenvl_agent.formats import Format
from qwenvl_agent.schema import Tool

WORD_BITS = 32


class Constraint:
    """Where each answer of a batch stands in its grammar; None for a row that is free."""

    def __init__(self, matchers: Sequence):
        self.matchers = list(matchers)

    def masked(self, rows: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
        """(B, V) logits of these rows of the batch, -inf where the grammar has no such token; ended rows as they are."""
        bits = torch.full((len(rows), -(-logits.shape[1] // WORD_BITS)), -1, dtype=torch.int32)  # (B, V / 32)
        for place, row in enumerate(rows):
            matcher = self.matchers[row]
            if matcher is not None and not matcher.is_stopped():
                matcher.unsafe_compute_mask_ptr(bits[place].data_ptr(), bits.shape[1] * bits.element_size())
                assert not matcher.is_error(), matcher.get_error()
        is_allowed = (bits[:, :, None] >> torch.arange(WORD_BITS)) & 1  # (B, V / 32, 32)
        is_allowed = is_allowed.flatten(1)[:, : logits.shape[1]].bool().to(logits.device)
        return logits.masked_fill(~is_allowed, -torch.inf)

    def advance(self, rows: Sequence[int], ids: Sequence[int]) -> None:
        """Take in the token that each of these rows has got."""
        for row, token in zip(rows, ids, strict=True):
            matcher = self.matchers[row]
            if matcher is not None and not matcher.is_stopped():
                taken = matcher.consume_token(token)
                assert taken, matcher.get_error()


class Grammars:
    """The format's grammars of all tools that were asked for, compiled once each."""

    def __init__(self, fmt: Format, tokenizer, end_id: int, vocab_size: int):
        """`vocab_size` is that of the model's logits, which may have more than the tokenizer."""
        from llguidance.hf import from_tokenizer

        self.fmt = fmt
        self.tokens = from_tokenizer(tokenizer, n_vocab=vocab_size, eos_token=end_id)
        self.compiled: dict[str, object] = {}

    def start(self, tools_of_rows: Sequence[Sequence[Tool]]) -> Constraint:
        """A batch's constraint, before its first tokens."""
        return Constraint([self.compile(tools).deep_copy() if tools else None for tools in tools_of_rows])

    def compile(self, tools: Sequence[Tool]):
        """The matcher of an empty answer; ValueError if the tools have what no grammar can hold."""
        from llguidance import LLMatcher

        key = json.dumps([tool.to_json() for tool in tools])
        if key not in self.compiled:
            matcher = LLMatcher(self.tokens, LLMatcher.grammar_from_lark(self.fmt.grammar(tools)), log_level=0)
            if matcher.is_error():
                raise ValueError(
                    f"the tools {', '.join(tool.name for tool in tools)} make no grammar "
                    f"({matcher.get_error().splitlines()[0]}): set eval.constrained=false, or simplify their schemas"
                )
            self.compiled[key] = matcher
        return self.compiled[key]
