"""Screenshots that a person marks one after another: which there are, what is done, and what a mark becomes.

The page that shows them (`assets/annotate.html`) asks for everything here by JSON; pictures are named by the hash of
their pixels, never by a path.
"""

import io
import json
import secrets
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from qwenvl_agent.computer import KINDS
from qwenvl_agent.curation.sample_folder import SampleFolder
from qwenvl_agent.data.pictures import see
from qwenvl_agent.files import write_text
from qwenvl_agent.images import read_rgb

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
ORIGIN = "annotated"


@dataclass(frozen=True)
class Listed:
    """A file that is to be marked; `fault` says why it cannot be. `key` is the hash of its pixels."""

    name: str
    path: Path
    key: str = ""
    width: int = 0
    height: int = 0
    fault: str = ""


def find_pictures(places: Sequence[Path]) -> list[tuple[str, Path]]:
    """(name, path) of files, and of all pictures below folders, in order; ValueError where there are none.

    What a link inside a folder shows outside of it is left out: only what was named is shown.
    """
    found = []
    for place in places:
        if not place.exists():
            raise ValueError(f"{place} does not exist: there is nothing to mark; name pictures or folders")
        inside = sorted(p for p in place.rglob("*") if p.suffix.lower() in ENDINGS) if place.is_dir() else [place]
        root = place.resolve()
        found += [(str(p.relative_to(place.parent)), p) for p in inside if p.resolve().is_relative_to(root)]
    if not found:
        raise ValueError(f"no picture is in {', '.join(map(str, places))}: looked for {', '.join(ENDINGS)}")
    return found


def look_at(files: Iterable[tuple[str, Path]]) -> Iterator[Listed]:
    """Each file decoded once; a broken one says so, one whose pixels were there already is a fault, too."""
    names: dict[str, str] = {}
    for name, path in files:
        try:
            seen = see(read_rgb(path, name))
        except ValueError as error:
            yield Listed(name, path, fault=str(error))
            continue
        first = names.setdefault(seen.pixels, name)
        fault = "" if first == name else f"{name} shows the same as {first}: it is marked there"
        yield Listed(name, path, "" if fault else seen.pixels, seen.width, seen.height, fault)


class Annotation:
    """What the page may ask for; each call is one at a time. ValueError is for the person to read."""

    def __init__(self, listed: Iterable[Listed], folder: SampleFolder):
        self.listed = list(listed)
        self.folder = folder
        self._by_key = {item.key: item for item in self.listed if item.key}
        self._lock = threading.Lock()
        self._progress_path = folder.folder / "progress.json"
        self.skipped = self._read_progress()

    def _read_progress(self) -> set[str]:
        if not self._progress_path.exists():
            return set()
        try:
            return set(json.loads(self._progress_path.read_text(encoding="utf-8"))["skipped"])
        except (ValueError, TypeError, KeyError):
            raise ValueError(
                f"{self._progress_path} cannot be read: which pictures were passed over is unknown; delete it to see "
                "them again"
            ) from None

    def state(self) -> dict:
        """All that the page shows: pictures in order, samples, and which pictures are done."""
        marked = {record.get("screenshot") for record in self.folder.records}
        pictures = [
            {
                "name": item.name,
                "key": item.key,
                "width": item.width,
                "height": item.height,
                "fault": item.fault,
                "is_marked": screenshot_of(item.key) in marked,
                "is_skipped": item.key in self.skipped,
            }
            for item in self.listed
        ]
        return {"pictures": pictures, "samples": self.folder.records, "kinds": list(KINDS)}

    def counts(self) -> dict:
        """Numbers for the terminal."""
        pictures = self.state()["pictures"]
        return {
            "samples": len(self.folder.records),
            "pictures": len(pictures),
            "marked": sum(picture["is_marked"] for picture in pictures),
            "skipped": sum(picture["is_skipped"] for picture in pictures),
            "unusable": sum(bool(picture["fault"]) for picture in pictures),
        }

    def picture(self, key: str) -> bytes:
        """The picture as PNG, pixel for pixel as readers decode it; a browser would colour some files by their profile."""
        file = io.BytesIO()
        item = self._item(key)
        read_rgb(item.path, item.name).save(file, "PNG", compress_level=1)
        return file.getvalue()

    def _item(self, key: object) -> Listed:
        item = self._by_key.get(key) if isinstance(key, str) else None
        if item is None:
            raise ValueError(f"picture {str(key)[:40]!r} is not one of those to mark: load the page again")
        return item

    def put(self, asked: dict) -> dict:
        """Save a sample; `id` is that of the one it replaces, if any. Returns its record."""
        with self._lock:
            item = self._item(asked.get("key"))
            image = read_rgb(item.path, item.name)
            if see(image).pixels != item.key:
                raise ValueError(f"{item.name} has changed since it was shown: marks would be wrong; start again")
            screenshot = screenshot_of(item.key)
            if not (self.folder.folder / screenshot).exists():
                screenshot = self.folder.add_picture(image)
            record = {
                "id": str(asked.get("id") or f"{ORIGIN}_{secrets.token_hex(4)}"),
                "instruction": asked.get("instruction"),
                "screenshot": screenshot,
                "image_size": [item.width, item.height],
                "action": asked.get("action"),
                "box": asked.get("box"),
                "origin": ORIGIN,
                "details": {"file": item.name},
            }
            record = self.folder.check(record).to_json(screenshot)
            self.folder.put(record)
            self._skip(item.key, False)
            return record

    def remove(self, asked: dict) -> None:
        with self._lock:
            self.folder.remove(str(asked.get("id")))

    def skip(self, asked: dict) -> None:
        """Pass over a picture, or take that back: a picture may be worth no sample."""
        with self._lock:
            self._skip(self._item(asked.get("key")).key, bool(asked.get("is_skipped")))

    def _skip(self, key: str, is_skipped: bool) -> None:
        skipped = self.skipped | {key} if is_skipped else self.skipped - {key}
        if skipped != self.skipped:
            write_text(self._progress_path, json.dumps({"skipped": sorted(skipped)}), is_flushed=True)
            self.skipped = skipped


def screenshot_of(key: str) -> str:
    """How samples name the picture (`SampleFolder.add_picture`)."""
    return f"images/{key}.png"
