"""An end to thoughts that are too long: from `limit` tokens on, the end of the think block is written for the model.

It is written token by token as if the model had chosen it, so that what follows, calls, is the model's own again.

Legend: B rows, V tokens of the vocabulary.
"""

from collections.abc import Sequence

import torch

from qwenvl_agent.inference.constraint import Constraint


class ThoughtBudget:
    """Where each answer of a batch stands in its thought, inside `constraint` if there is one."""

    def __init__(self, num_rows: int, limit: int, closing: Sequence[int], end_id: int, constraint: Constraint | None):
        """`closing` are the ids that end a thought, `end_id` the one among them that is the block's end."""
        self.limit, self.closing, self.end_id, self.constraint = limit, list(closing), end_id, constraint
        self.written = [0] * num_rows
        self.thinks = [True] * num_rows
        self.to_write: list[list[int]] = [[] for _ in range(num_rows)]
        self.cut: set[int] = set()
        """Rows whose thought was ended for them."""

    def masked(self, rows: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
        """(B, V) logits of these rows, -inf for all but the closing's next token where a thought is at its limit."""
        if self.constraint is not None:
            logits = self.constraint.masked(rows, logits)
        for place, row in enumerate(rows):
            if not self.thinks[row] or self.written[row] < self.limit:
                continue
            if not self.to_write[row]:
                if logits[place, self.closing[0]] == -torch.inf:  # a grammar in which the thought cannot end here
                    continue
                self.to_write[row] = list(self.closing)
                self.cut.add(row)
            forced = self.to_write[row][0]
            logits[place] = -torch.inf
            logits[place, forced] = 0.0
        return logits

    def advance(self, rows: Sequence[int], ids: Sequence[int]) -> None:
        """Take in the token that each of these rows has got."""
        for row, token in zip(rows, ids, strict=True):
            self.written[row] += 1
            if self.to_write[row]:
                self.to_write[row].pop(0)
                self.thinks[row] = bool(self.to_write[row])
            elif token == self.end_id:
                self.thinks[row] = False
        if self.constraint is not None:
            self.constraint.advance(rows, ids)
