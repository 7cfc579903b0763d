"""What a record calls a picture, as a file: one named by its path, or an embedded one, which becomes a file. No torch.

Embedded are bytes, {"bytes": ..., "path": ...} (the Image feature of `datasets`), data URIs and base64 text. They are
kept under the hash of their bytes, so a picture that many records hold lies on the disk once.
"""

import base64
import binascii
import hashlib
import re
from pathlib import Path
from typing import Any

from qwenvl_agent.files import ConfinedFolder, replacing
from qwenvl_agent.images import read_format

MAX_BYTES = 2**26
"""Of an embedded picture: 64 MiB."""
DEFAULT_STORE = Path("cache/pictures")
"""Of a run that does not say where its cache is."""
DATA_URI = re.compile(r"data:(?P<kind>[^,;]*)(?P<parameters>[^,]*),", re.IGNORECASE)
BASE64_STARTS = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR")
"""Of PNG, JPEG, GIF and WebP as text without a data URI's head."""
BASE64_TEXT = re.compile(r"[A-Za-z0-9+/\s]{64,}={0,2}\s*")
ENDINGS = {"JPEG": "jpg", "JPEG2000": "jp2", "TIFF": "tif"}
"""Where it is not the format's name."""


class PictureFolder:
    """Pictures of the records of one file: below its folder, or embedded and kept in `store`."""

    def __init__(self, root: Path, store: Path = DEFAULT_STORE):
        self.root, self.store = Path(root), Path(store)
        self._files = ConfinedFolder(self.root)

    def __reduce__(self) -> tuple:
        return PictureFolder, (self.root, self.store)

    def path(self, value: Any, name: str) -> str:
        """The file of what a record names or holds; ValueError, which calls it `name`, if that cannot be."""
        content = embedded(value, name)
        if content is not None:
            return keep(content, self.store, name)
        return self._files.path(value["path"] if isinstance(value, dict) else value)


def is_embedded(value: Any) -> bool:
    """Whether it holds the picture itself."""
    if isinstance(value, dict):
        return value.get("bytes") is not None
    if isinstance(value, str):
        return bool(DATA_URI.match(value)) or _is_base64(value)
    return isinstance(value, bytes | bytearray | memoryview)


def embedded(value: Any, name: str) -> bytes | None:
    """The embedded picture's bytes; None if there are none; ValueError for base64 that cannot be decoded."""
    if not is_embedded(value):
        return None
    if isinstance(value, dict):
        value = value["bytes"]
    if isinstance(value, str):
        return _decode(value, name)
    if not isinstance(value, bytes | bytearray | memoryview):
        raise ValueError(f"{name} has bytes that are {str(value)[:80]!r}: no picture; write bytes or base64 text")
    _check_size(len(value), name)
    return bytes(value)


def _is_base64(text: str) -> bool:
    return text.startswith(BASE64_STARTS) and bool(BASE64_TEXT.fullmatch(text))


def _decode(text: str, name: str) -> bytes:
    head = DATA_URI.match(text)
    if head and not (head["kind"].lower().startswith("image/") or head["kind"] == ""):
        raise ValueError(f"{name} is a data URI of {head['kind'][:80]!r}: no picture to look at; give one of image/png")
    if head and "base64" not in head["parameters"].lower():
        raise ValueError(f"{name} is a data URI that is not base64: it is not read; encode the picture as base64")
    content = text[head.end() :] if head else text
    _check_size(len(content) * 3 // 4, name)
    try:
        return base64.b64decode("".join(content.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"{name} is no base64 ({error}): the picture is damaged; encode it again") from None


def _check_size(num_bytes: int, name: str) -> None:
    if num_bytes > MAX_BYTES:
        raise ValueError(
            f"{name} is embedded and has {num_bytes} bytes, above {MAX_BYTES}: it is not read; save it as a file and name it"
        )


def keep(content: bytes, store: Path, name: str) -> str:
    """The path of the file in the folder `store` that holds this picture, written if it is not there; ValueError, which
    calls it `name`, for what is no picture."""
    picture_format = read_format(content, name)
    ending = ENDINGS.get(picture_format, picture_format.lower())
    path = store / f"{hashlib.sha256(content).hexdigest()}.{ending}"
    if not path.is_file() or path.stat().st_size != len(content):
        store.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            part.write_bytes(content)
    return str(path)
