"""Piece by piece, a text has the ids and offsets of one call of the tokenizer, with the tiny and the real one."""

import pickle

import pytest

from qwenvl_agent.data.pieces import PieceTokenizer

TEXTS = [
    "",
    "plain text",
    "<|im_start|>",
    "<|im_start|>system\nYou walk.\n\n# Tools\n<tools>\n{}\n</tools><|im_end|>\n<|im_start|>user\n",
    "a<|vision_start|><|image_pad|><|image_pad|><|vision_end|>b",
    "  <|im_end|>  \n\n<|im_start|>  x ",
    '<tool_call>\n{"name": "move", "arguments": {"steps": 12345}}\n</tool_call><|im_end|>\n',
    "빨간 돼지를 찾아\u1112\u1161\u11ab<|im_end|>找到红色的猪 é e\u0301",
    "<|im_start|<|im_end|>|> <tool_call ></tool_call>",
    "one\n<|im_end|>\ntwo's 3.14 ...\t\t<|im_start|>don't",
]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_make_up_the_whole(any_processor, text):
    pieces = PieceTokenizer(any_processor.tokenizer)
    for _ in range(2):  # the second time from the cache
        ids, offsets = pieces.encode(text)
        whole = any_processor.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
        assert ids.tolist() == whole.ids and offsets.tolist() == [list(pair) for pair in whole.offsets]


def test_a_piece_is_tokenised_once(any_processor):
    pieces = PieceTokenizer(any_processor.tokenizer)
    for question in ("Where?", "Where to?"):
        pieces.encode(f"<|im_start|>system\nYou walk.<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n")
    info = pieces.encode_piece.cache_info()
    assert info.misses == 7  # the system, a line end, two questions, both control tokens, nothing at the text's start
    assert info.hits == 11


def test_a_worker_gets_it_without_its_cache(any_processor):
    pieces = PieceTokenizer(any_processor.tokenizer)
    pieces.encode(TEXTS[3])
    copy = pickle.loads(pickle.dumps(pieces))
    assert copy.encode_piece.cache_info().currsize == 0
    assert copy.encode(TEXTS[3])[0].tolist() == pieces.encode(TEXTS[3])[0].tolist()
