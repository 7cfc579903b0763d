"""What is written is there whole or as it was before; what is damaged is named with its place."""

import pytest

from qwenvl_agent.files import is_leftover, read_json, replacing, write_json, write_text


def test_a_file_is_replaced_at_once_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"name": "나"})
    assert path.read_text(encoding="utf-8") == '{\n "name": "나"\n}\n'
    with pytest.raises(OSError, match="disk full"), replacing(path) as part:
        part.write_text("half")
        assert is_leftover(part) and path.read_text(encoding="utf-8").startswith("{") and not is_leftover(path)
        raise OSError("disk full")
    with pytest.raises(TypeError):
        write_json(path, {"name": object()})
    assert read_json(path) == {"name": "나"} and list(tmp_path.iterdir()) == [path]
    write_text(path, "{}", is_flushed=True)
    assert read_json(path) == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1,\n', "a.json:2: not JSON .*: it is damaged, and what it said is lost; restore the file"),
        (b"\xff", "a.json: byte 0 is not UTF-8"),
        (b"[1]", "a.json holds list, no object"),
        (b"[" * 100_000, "a.json: no JSON of ours .*it is damaged; restore the file"),
        (b"1" * 5_000, "a.json: no JSON of ours .*it is damaged; restore the file"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_json(tmp_path / "a.json")
