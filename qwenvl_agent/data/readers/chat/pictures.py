"""The pictures of a conversation: each placeholder takes the next that is listed, and none is left over."""

import re
from pathlib import Path

from qwenvl_agent.files import confined_path
from qwenvl_agent.schema import Picture


class Pictures:
    """Hands out the pictures of a record: a part's own path, or else the next entry of `images`."""

    def __init__(self, root: Path, listed: object):
        self.root = root
        self.listed = listed if isinstance(listed, list) else [listed]
        self.num_used = 0

    def take(self, own: object, place: str) -> Picture:
        if own is not None:
            return self._open(own, place)
        if self.num_used == len(self.listed):
            raise ValueError(
                f"{place} is placeholder {self.num_used + 1} for {len(self.listed)} images: it has no picture; "
                "give one image for each placeholder"
            )
        self.num_used += 1
        return self._open(self.listed[self.num_used - 1], f"images[{self.num_used - 1}]")

    def check_all_used(self) -> None:
        if self.num_used != len(self.listed):
            raise ValueError(
                f"{len(self.listed)} images for {self.num_used} placeholders: where the rest belong is unknown; "
                "write <image> where each stands"
            )

    def _open(self, value: object, place: str) -> Picture:
        for key in ("path", "url"):
            if isinstance(value, dict) and key in value:
                value = value[key]
        if not isinstance(value, str) or not value:
            raise ValueError(f"{place} is {str(value)[:80]!r}: not a file's path; save the picture and name its file")
        if re.match(r"(https?|data):", value):
            raise ValueError(
                f"{place} is {value[:80]!r}: nothing is downloaded or decoded here; save the picture and name its file"
            )
        path = confined_path(self.root, value.removeprefix("file://"))
        return Picture.from_file(path, f"{place} {str(path)!r}")
