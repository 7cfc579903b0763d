"""The pictures of a conversation: each placeholder takes the next that is listed, and none is left over."""

import re

from qwenvl_agent.coordinates import Screen
from qwenvl_agent.picture_store import PictureFolder, is_embedded
from qwenvl_agent.schema import Picture


class Pictures:
    """Hands out the pictures of a record: a part's own path, or else the next entry of `images`."""

    def __init__(self, folder: PictureFolder, listed: object):
        self.folder = folder
        self.listed = listed if isinstance(listed, list) else [listed]
        self.num_used = self.num_shown = 0
        self._opened: dict[int, Picture] = {}

    def take(self, own: object, place: str) -> Picture:
        self.num_shown += 1
        if own is not None:
            return self._open(own, place)
        if self.num_used == len(self.listed):
            raise ValueError(
                f"{place} is placeholder {self.num_used + 1} for {len(self.listed)} images: it has no picture; "
                "give one image for each placeholder"
            )
        self.num_used += 1
        return self._listed(self.num_used - 1)

    def screen(self, index: int) -> Screen:
        """The size of a listed picture, for places in it."""
        if index >= len(self.listed):
            raise ValueError(
                f"objects.image_id is {index} for {len(self.listed)} images: the size of its picture is unknown; list the "
                "pictures in images"
            )
        return Screen.of(self._listed(index))

    def _listed(self, index: int) -> Picture:
        if index not in self._opened:
            self._opened[index] = self._open(self.listed[index], f"images[{index}]")
        return self._opened[index]

    def check_all_used(self) -> None:
        if self.num_used != len(self.listed):
            raise ValueError(
                f"{len(self.listed)} images for {self.num_used} placeholders: where the rest belong is unknown; "
                "write <image> where each stands"
            )

    def _open(self, value: object, place: str) -> Picture:
        if isinstance(value, dict) and isinstance(value.get("url"), str) and is_embedded(value["url"]):
            value = value["url"]
        if is_embedded(value):
            return Picture.from_file(self.folder.path(value, place), f"{place} (embedded)")
        for key in ("path", "url"):
            if isinstance(value, dict) and key in value:
                value = value[key]
        if not isinstance(value, str) or not value:
            raise ValueError(f"{place} is {str(value)[:80]!r}: not a file's path; save the picture and name its file")
        if re.match(r"https?:", value):
            raise ValueError(
                f"{place} is {value[:80]!r}: nothing is downloaded here; save the picture and name its file"
            )
        path = self.folder.path(value.removeprefix("file://"), place)
        return Picture.from_file(path, f"{place} {path!r}")
