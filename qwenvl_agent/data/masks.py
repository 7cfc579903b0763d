"""From labelled text to labels and weights; and the audit that proves them from the ids alone.

Both ways lead to the same answer by different roads: `label_tokens` goes by the span in which a token starts,
`MaskAudit` by the control tokens in the final ids. Neither tokenises a message by itself.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from qwenvl_agent.data.processor import Tokenizer
from qwenvl_agent.families import DEFAULT, Family
from qwenvl_agent.formats import Span

IGNORE_INDEX = -100
PARTS = ("prompt", "thought", "call", "text", "end")


def label_tokens(
    input_ids: Sequence[int] | np.ndarray,
    offsets: Sequence[tuple[int, int]] | np.ndarray,
    spans: Sequence[Span],
    weights: Mapping[str, float],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(labels, loss weights, parts), each (T,): those of the span that holds the token's first character.

    For the spans prompt "Hi\\n", thought "up\\n", call "go()", end "<end>" and weights {"thought": 0.5, "call": 1,
    "end": 1}:

        tokens   Hi    \\n    up    \\n   go   ()  <end>
        labels   -100  -100  up    \\n   go   ()  <end>
        weights  0     0     0.5   0.5  1    1   1
        parts    0     0     1     1    2    2   4
    """
    input_ids = np.asarray(input_ids, dtype=np.int64)
    starts = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)[:, 0]
    span_ends = np.cumsum([len(span.text) for span in spans])
    span_parts = np.array([PARTS.index(span.part) for span in spans], dtype=np.int8)
    parts = span_parts[np.searchsorted(span_ends, starts, side="right")]
    part_weights = np.array([0.0, *(weights[part] for part in PARTS[1:])], dtype=np.float32)
    return np.where(parts > 0, input_ids, IGNORE_INDEX), part_weights[parts], parts


@dataclass(frozen=True)
class MaskAudit:
    """Checks rows of ids against the mask rule, knowing nothing of spans.

    Supervised is what stands between the beginning of an assistant's turn and its end token, that token included: of
    the last such turn, or of all of them with `supervise_history`; and nothing else.
    """

    tokenizer: Tokenizer
    supervise_history: bool = False
    family: Family = DEFAULT
    opening: str | None = None
    """What the last turn has behind its head, before what is to be written; None: as the family's template has it."""

    @cached_property
    def _begin(self) -> int:
        return self._id(self.family.template.turn_begin)

    @cached_property
    def _end(self) -> int:
        return self._id(self.family.template.turn_end)

    @cached_property
    def _head(self) -> list[int]:
        """Ids with which an assistant's turn begins."""
        after = self.family.template.assistant.removeprefix(self.family.template.turn_begin)
        return [self._begin, *self.tokenizer.encode(after, add_special_tokens=False)]

    @cached_property
    def _opening(self) -> list[int]:
        """Ids that the last turn has behind its head, before what is to be written; an earlier one has them or not."""
        opening = self.family.template.opening if self.opening is None else self.opening
        return self.tokenizer.encode(opening, add_special_tokens=False)

    @cached_property
    def _vision(self) -> list[int]:
        return [self._id(text) for text in self.family.template.vision_tokens]

    def _id(self, token: str) -> int:
        return self.tokenizer.convert_tokens_to_ids(token)

    def check(
        self,
        input_ids: np.ndarray,
        labels: np.ndarray,
        parts: np.ndarray,
        spans: Sequence[Span],
        num_turns: int,
    ) -> Counter:
        """Counts of the row's tokens by part; AssertionError names the first token that breaks the rule.

        `num_turns` messages were rendered, so as many begin and end in the ids: text that spelled a turn of its own
        would be one more.
        """
        for token in (self.family.template.turn_begin, self.family.template.turn_end):
            found = int((input_ids == self._id(token)).sum())
            assert found == num_turns, f"{found} times {token} in the ids, {num_turns} messages were rendered"
        supervised = labels != IGNORE_INDEX
        expected = self._expected(input_ids)
        if (supervised != expected).any():
            at = int(np.argmax(supervised != expected))
            around = self.tokenizer.decode(input_ids[max(0, at - 8) : at + 8])
            raise AssertionError(f"token {at} is {'' if supervised[at] else 'not '}supervised, in {around!r}")
        assert (labels[supervised] == input_ids[supervised]).all(), "a label is not its token"
        assert not np.isin(input_ids[supervised], self._vision).any(), "a vision token is supervised"
        assert not supervised[self._inside_responses(input_ids)].any(), "a tool response is supervised"
        text = self.tokenizer.decode(input_ids[supervised], clean_up_tokenization_spaces=False)
        written = "".join(span.text for span in spans if span.part != "prompt")
        assert text == written, f"supervised text is {text!r}, the turn is {written!r}"
        counts = Counter({part: int((parts == i).sum()) for i, part in enumerate(PARTS)})
        counts["image"] = int((input_ids == self._id(self.family.template.image_pad)).sum())
        return counts

    def _expected(self, ids: np.ndarray) -> np.ndarray:
        """(T,) bool: inside assistant turns."""
        expected = np.zeros(len(ids), dtype=bool)
        starts = [i for i in np.flatnonzero(ids == self._head[0]) if list(ids[i : i + len(self._head)]) == self._head]
        for start in starts if self.supervise_history else starts[-1:]:
            begin = start + len(self._head)
            is_opened = list(ids[begin : begin + len(self._opening)]) == self._opening
            begin += len(self._opening) if start == starts[-1] or is_opened else 0
            end = begin + int(np.argmax(ids[begin:] == self._end))
            expected[begin : end + 1] = True
        return expected

    def _inside_responses(self, ids: np.ndarray) -> np.ndarray:
        opened = np.cumsum(ids == self._id(self.family.template.result_begin))
        closed = np.cumsum(ids == self._id(self.family.template.result_end))
        return opened > closed
