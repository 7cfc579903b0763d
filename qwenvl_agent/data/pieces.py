"""Token ids of long texts that repeat: cut at the added tokens, and each piece tokenised once.

A tokenizer cuts a text at its added tokens (`<|im_start|>`, `<|image_pad|>` ...) before it does anything else, so its
pieces do not influence each other. System prompt and tools are one piece, the same in every row, and all tokens of a
picture are another.
"""

import re
from functools import lru_cache

import numpy as np

from qwenvl_agent.data.processor import Tokenizer

NUM_PIECES = 2048
"""Kept for their next use; most are the texts of single rows and go again."""


class PieceTokenizer:
    """`encode` gives what the whole text in one call of the tokenizer gives (tests compare them)."""

    def __init__(self, tokenizer: Tokenizer):
        # The backend itself: it keeps whatever truncation and padding the last caller set, so both are put off.
        self.backend = tokenizer.backend_tokenizer
        added = self.backend.get_added_tokens_decoder().values()
        for token in added:
            assert not (token.lstrip or token.rstrip or token.single_word), f"{token} looks at its neighbours"
        longest_first = sorted((re.escape(token.content) for token in added), key=len, reverse=True)
        self.pattern = re.compile(f"((?:{'|'.join(longest_first)})+)") if longest_first else None
        self.encode_piece = lru_cache(NUM_PIECES)(self._encode_piece)

    def __getstate__(self) -> dict:
        """For data workers that are spawned: a cache cannot be pickled."""
        return {**self.__dict__, "encode_piece": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self.encode_piece = lru_cache(NUM_PIECES)(self._encode_piece)

    def encode(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Ids (T,) and where in the text each token's characters stand (T, 2); nothing is added."""
        ids: list = []
        offsets: list = []
        start = 0
        for piece in self.pattern.split(text) if self.pattern else [text]:
            piece_ids, piece_offsets = self.encode_piece(piece)
            ids.append(piece_ids)
            offsets.append(piece_offsets + start)
            start += len(piece)
        return np.concatenate(ids), np.concatenate(offsets)

    def _encode_piece(self, piece: str) -> tuple[np.ndarray, np.ndarray]:
        self.backend.no_truncation()
        self.backend.no_padding()
        encoding = self.backend.encode(piece, add_special_tokens=False)
        return np.array(encoding.ids, dtype=np.int64), np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
