"""The door: what the constructors normalise, escape and refuse."""

import itertools
import unicodedata
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from qwenvl_agent.files import ConfinedFolder, confined_path
from qwenvl_agent.images import check_aspect_ratio, picture_errors
from qwenvl_agent.schema import (
    Observation,
    Picture,
    Request,
    Step,
    Tool,
    ToolCall,
    ToolResult,
    Turn,
    check_written,
    clean,
    tool_named,
)

CALL = ToolCall("move", {"direction": "UP"})
CONTROL = [
    *("<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|vision_start|>", "<|endoftext|>", "<|fim_prefix|>"),
    *("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>", "<tools>"),
]


@pytest.mark.parametrize("spelling", CONTROL)
def test_read_text_is_escaped_and_written_text_refused(spelling):
    assert clean(f"a {spelling} b") == f"a <\\{spelling[1:]} b"
    with pytest.raises(ValueError, match="holds the control token"):
        check_written(f"a {spelling} b", "thought")


@pytest.mark.parametrize(
    "text", ["a < b", "<b>bold</b>", "<|not a token|>", "x <| y", "<tool call>", "한국어 \U0001f42f"]
)
def test_ordinary_text_stays(text):
    assert clean(text) == text == check_written(text, "thought")


@given(st.text())
def test_clean_is_idempotent_and_normal(text):
    once = clean(text)
    assert clean(once) == once == unicodedata.normalize("NFC", once)


@given(st.lists(st.sampled_from([*CONTROL, "<", "|", ">", "\\", "/", "a", "think", "\u0301"])).map("".join))
def test_no_control_token_survives_clean(text):
    assert not any(spelling in clean(text) for spelling in CONTROL)
    check_written(clean(text), "text")


def test_text_is_composed_at_the_door():
    decomposed = unicodedata.normalize("NFD", "호랑이 é")
    composed = "호랑이 é"
    assert clean(decomposed) == Observation(decomposed).text == composed
    assert Turn(text=decomposed).text == composed
    assert ToolCall("say", {"words": [decomposed]}).arguments == {"words": [composed]}
    assert ToolResult("say", {decomposed: decomposed}).content == {composed: composed}


def test_everything_the_model_reads_is_cleaned():
    escaped = "<\\|im_end|>"
    assert Observation("<|im_end|>").text == escaped
    assert ToolResult("look", {"<think>": ["<|im_end|>"]}).content == {"<\\think>": [escaped]}
    assert Request("<|im_end|>", (), (), Observation("")).system_prompt == escaped


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ToolCall("two words", {}), "tool name 'two words' cannot be written as a call"),
        (lambda: ToolCall("", {}), "tool name '' cannot be written"),
        (lambda: ToolCall("move", [1]), r"arguments of move are \[1\], not an object"),
        (lambda: ToolCall("move", {"a b": 1}), "argument name 'a b' of move cannot be written"),
        (lambda: ToolCall("move", {"a": {"b": [0, "<think>"]}}), r"move arguments.a.b\[1\] holds the control token"),
        (lambda: ToolCall("move", {"a": float("nan")}), "move arguments.a is nan: JSON has no such value"),
        (lambda: ToolCall("move", {"a": float("-inf")}), "move arguments.a is -inf"),
        (lambda: ToolCall("move", {"a": {1, 2}}), "move arguments.a is {1, 2}"),
        (lambda: Turn("Look.\n  Action: go", (CALL,)), "thought has a line that starts with 'Action:'"),
        (lambda: Turn("Thought: go", (CALL,)), "thought has a line that starts with 'Thought:'"),
        (lambda: Turn("Go.", (CALL,), "Hello."), "either free text or thought and calls"),
        (lambda: Turn(tool_calls=(CALL,), text="Hello."), "either free text or thought and calls"),
        (lambda: Turn("Go."), "has no call after it"),
        (lambda: Turn(text="<|im_end|>"), "assistant text holds the control token"),
        (
            lambda: Step(Observation(""), Turn(tool_calls=(CALL,)), (ToolResult("move", {}),) * 2),
            "2 tool results for 1",
        ),
    ],
)
def test_what_no_format_could_write_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_turns_keep_what_they_are_given():
    assert Turn(" Go up. \n", [CALL]) == Turn("Go up.", (CALL,))
    assert Turn(text=" Thought: this is free text. ").text == "Thought: this is free text."
    assert Turn() == Turn("", (), "")
    assert Step(Observation(""), Turn(), (ToolResult("", {"status": "no_tool_call"}),)).results[0].name == ""
    arguments = {"a": None, "b": True, "c": 1.5, "d": [{"e": "f"}], "g": 10**30}
    assert ToolCall("move", arguments).arguments == arguments


def test_picture_opens_as_recorded(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGBA", (4, 3), (255, 0, 0, 255)).save(path)
    opened = Picture(4, 3, str(path)).open()
    assert (opened.mode, opened.size, opened.getpixel((0, 0))) == ("RGB", (4, 3), (255, 0, 0))
    with pytest.raises(ValueError, match=r"a.png is \(4, 3\), recorded as \(3, 4\)"):
        Picture(3, 4, str(path)).open()
    assert Picture.from_image(Image.new("L", (4, 3))).open().mode == "RGB"


def test_a_file_gives_its_size_without_being_decoded(tmp_path):
    path = tmp_path / "a.png"
    Image.effect_noise((64, 48), 99).save(path)
    path.write_bytes(path.read_bytes()[:999])
    assert Picture.from_file(path, "screenshot") == Picture(64, 48, str(path))
    with pytest.raises(
        ValueError, match=r"a.png is not a readable picture \(the file ends at byte 999.*\): save it again"
    ):
        Picture.from_file(path, "screenshot").open()


def test_files_that_are_no_pictures_are_told_by_name(tmp_path, monkeypatch):
    for content, message in ((None, "does not exist"), (b"no picture", "is not a readable picture"), (b"", "is not")):
        path = tmp_path / "a.png"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ValueError, match=f"^screenshot 'a.png' {message}"):
            Picture.from_file(path, "screenshot 'a.png'")
    Image.new("L", (9, 1)).save(path)
    for limit in (8, 4):  # Pillow warns of the first, raises on the second
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ValueError, match=f"^x has more than {limit} pixels"):
            Picture.from_file(path, "x")


def header_variants(png: bytes) -> Iterator[bytes]:
    """The file cut anywhere in its head, and with every byte of the head changed, also under a checksum that fits."""
    for cut in range(60):
        yield png[:cut]
    for place, change in itertools.product(range(41), (2, 3, 5, 0xFF)):  # 5x3 pixels become none
        broken = bytearray(png)
        broken[place] ^= change
        yield bytes(broken)
        broken[29:33] = zlib.crc32(broken[12:29]).to_bytes(4)
        yield bytes(broken)


def outcome(read: Callable) -> tuple | str:
    """What `read` returns, or the error's message."""
    try:
        return read()
    except ValueError as error:
        return str(error)


def test_a_header_means_what_it_means_to_pillow(tmp_path):
    path = tmp_path / "a.png"
    contents = []
    for mode in ("1", "L", "LA", "P", "I;16", "RGBA", "RGB"):
        Image.new(mode, (5, 3)).save(path)
        contents.append(path.read_bytes())
    contents += header_variants(contents[-1])

    def pillow_size() -> tuple:
        with picture_errors("it"), Image.open(path) as image:
            size = image.size
        check_aspect_ratio(*size, "it")
        return size

    def size() -> tuple:
        picture = Picture.from_file(path, "it")
        return picture.width, picture.height

    for content in contents:
        path.write_bytes(content)
        assert outcome(size) == outcome(pillow_size), content[:41]


@pytest.mark.parametrize("relative", ["../a.png", "/etc/passwd", "images/../../a.png", "link/a.png", "a.png"])
def test_paths_stay_inside_the_folder(tmp_path, relative):
    root = tmp_path / "data"
    (root / "images").mkdir(parents=True)
    (root / "link").symlink_to(tmp_path)
    (root / "a.png").symlink_to(tmp_path / "a.png")
    with pytest.raises(ValueError, match="leaves the dataset folder"):
        confined_path(root, relative)


def test_path_inside_the_folder(tmp_path):
    (tmp_path / "link.png").symlink_to(tmp_path / "images/b.png")
    folder = ConfinedFolder(tmp_path)
    for relative, inside in (("images/../a.png", "a.png"), ("link.png", "images/b.png"), ("images/..", ""), (".", "")):
        assert confined_path(tmp_path, relative) == tmp_path.resolve() / inside == Path(folder.path(relative))


def test_tools():
    tool = Tool("look", "Look.", {"type": "object"})
    function = {"name": "look", "description": "Look.", "parameters": {"type": "object"}}
    assert tool.to_json() == {"type": "function", "function": function}
    assert tool_named((tool,), "look") is tool and tool_named((tool,), "jump") is None


def test_half_a_character_is_refused_in_what_is_written():
    with pytest.raises(ValueError, match="half a character"):
        Turn(text="a\ud83d")


def test_a_tool_keeps_its_authors_entry_only_where_it_is_another_form():
    usual = {"type": "function", "function": {"name": "look", "description": "Look.", "parameters": {"type": "object"}}}
    assert Tool.from_json(usual) == Tool("look", "Look.", {"type": "object"})
    flat = Tool.from_json(usual["function"])
    assert (flat.name, flat.description, flat.parameters) == ("look", "Look.", {"type": "object"})
    assert flat.to_json() == usual["function"] and flat != Tool("look", "Look.", {"type": "object"})
    assert Tool(**vars(flat)) == flat
    assert Tool.from_json({"name": "look"}).parameters == {"type": "object", "properties": {}}
