"""Token ids of long texts that repeat: cut at the added tokens, and each piece between them tokenised once.

A tokenizer cuts a text at its added tokens (`<|im_start|>`, `<|image_pad|>` ...) before it does anything else, so its
pieces do not influence each other. System prompt and tools are one piece, the same in every row, and a picture's pads
need no tokenizer at all.
"""

import re
from functools import lru_cache

import numpy as np

NUM_PIECES = 2048
"""Kept for their next use; most are the texts of single rows and go again."""


class PieceTokenizer:
    """`encode` gives what the whole text in one call of the tokenizer gives (tests compare them)."""

    def __init__(self, tokenizer: object):
        # The backend itself: it keeps whatever truncation and padding the last caller set, so both are put off.
        self.backend = tokenizer.backend_tokenizer
        added = {token.content: (id, token) for id, token in self.backend.get_added_tokens_decoder().items()}
        for content, (_, token) in added.items():
            assert not (token.lstrip or token.rstrip or token.single_word), f"{content!r} looks at its neighbours"
        self.added = {content: id for content, (id, _) in added.items()}
        longest_first = sorted(map(re.escape, self.added), key=len, reverse=True)
        self.pattern = re.compile(f"({'|'.join(longest_first)})") if longest_first else None
        self.encode_piece = lru_cache(NUM_PIECES)(self._encode_piece)

    def __getstate__(self) -> dict:
        """For data workers that are spawned: a cache cannot be pickled."""
        return {**self.__dict__, "encode_piece": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self.encode_piece = lru_cache(NUM_PIECES)(self._encode_piece)

    def encode(self, text: str) -> tuple[np.ndarray, list[tuple[int, int]]]:
        """Ids (T,) and where in the text each token's characters stand; nothing is added."""
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        start = 0
        for piece in self.pattern.split(text) if self.pattern else [text]:
            end = start + len(piece)
            if piece in self.added:
                ids.append(self.added[piece])
                offsets.append((start, end))
            elif piece:
                piece_ids, piece_offsets = self.encode_piece(piece)
                ids += piece_ids
                offsets += [(first + start, last + start) for first, last in piece_offsets]
            start = end
        return np.array(ids, dtype=np.int64), offsets

    def _encode_piece(self, piece: str) -> tuple[list[int], list[tuple[int, int]]]:
        self.backend.no_truncation()
        self.backend.no_padding()
        encoding = self.backend.encode(piece, add_special_tokens=False)
        return encoding.ids, encoding.offsets
