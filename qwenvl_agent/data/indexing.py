"""A source's files -> what its cache keeps, in the files' order: in this process, and in others too if that takes long.

Records are read each by itself, a chunk of them in one process, and come back in order, so rows, rejects and their hash
are what one process gives. What depends on other records (`Reader.survey`, `Reader.join`) is done in this one.
"""

import itertools
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from qwenvl_agent.config import DataConfig, SourceConfig
from qwenvl_agent.containers import Record, records_of
from qwenvl_agent.containers.note import Note
from qwenvl_agent.data.cache_files import Encoded, encode
from qwenvl_agent.data.readers import READERS
from qwenvl_agent.data.source import Item, Reject, SourceRow, origin_of
from qwenvl_agent.processes import parallel_map

ALONE_SECONDS = 0.5
"""For so long one process reads, before others are started."""
CHUNK_SECONDS = 0.1
CHUNK_RECORDS = 1000
CHUNK_BYTES = 2**20
"""A chunk takes about so long, and is no larger."""
MAX_WORKERS = 32
"""Then the one that writes has no more time."""
DECODED_AHEAD = 64

Work = Callable[[list[Record]], Any]


def index(
    files: Sequence[Path], cfg: SourceConfig, data_cfg: DataConfig, note: Note, *, decodes_pictures: bool
) -> Iterator[Encoded]:
    """All items of a source, in order; `decodes_pictures`: a row with a picture that cannot be decoded is a reject."""
    reader, origin = READERS[cfg.kind], origin_of(files[0], cfg, data_cfg)
    origin = replace(origin, surveyed=reader.survey(records_of(files), origin))
    read, records = reader.open(origin), _Chunks(files, note)
    if reader.join is None:
        yield from _in_processes(partial(_read_and_encode, read, decodes_pictures), records)
        return
    items = reader.join(itertools.chain.from_iterable(_in_processes(partial(_read, read), records)), origin)
    items = _with_whole_pictures(items) if decodes_pictures else iter(items)
    while some := list(itertools.islice(items, CHUNK_RECORDS)):
        yield encode(some)


def _read(read: Callable[[Record], Iterable[Any]], records: list[Record]) -> list[Any]:
    return [item for record in records for item in read(record)]


def _read_and_encode(
    read: Callable[[Record], Iterable[Item]], decodes_pictures: bool, records: list[Record]
) -> Encoded:
    items = _read(read, records)
    return encode(map(_if_pictures_are_whole, items) if decodes_pictures else items)


def _with_whole_pictures(items: Iterable[Item]) -> Iterator[Item]:
    """The items, with a reject for each row that has a picture which cannot be decoded."""
    items = iter(items)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while some := list(itertools.islice(items, DECODED_AHEAD)):
            yield from pool.map(_if_pictures_are_whole, some)


def _if_pictures_are_whole(item: Item) -> Item:
    for picture in item.step.observation.pictures if isinstance(item, SourceRow) else ():
        try:
            picture.open()
        except ValueError as error:
            return Reject(item.source, str(error).replace(picture.path, repr(picture.path)))
    return item


class _Chunks:
    """Records of a source, some at a time."""

    def __init__(self, files: Sequence[Path], note: Note):
        self.num_bytes, self.note = 0, note
        self.records = records_of(files, self._tell)
        self.name = str(files[0])

    def _tell(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        self.note(num_bytes)

    def take(self, num_records: int) -> list[Record]:
        """The next so many, or fewer if they are large; none at the end."""
        chunk, before, num_chars = list[Record](), self.num_bytes, 0
        for record in itertools.islice(self.records, num_records):
            chunk.append(record)
            num_chars += len(record.content) if isinstance(record.content, bytes) else 0
            if max(num_chars, self.num_bytes - before) >= CHUNK_BYTES:
                break
        return chunk


def num_processes() -> int:
    """That may read a source; 1 in a process that may have none of its own."""
    return 1 if multiprocessing.current_process().daemon else min(len(os.sched_getaffinity(0)), MAX_WORKERS)


def _in_processes(work: Work, chunks: _Chunks) -> Iterator[Any]:
    """`work` of all chunks in order; ValueError if a process that reads some of them is killed."""
    num_workers, started, num_read, size = num_processes(), time.monotonic(), 0, 1
    while chunk := chunks.take(size):
        yield work(chunk)
        num_read += len(chunk)
        seconds = time.monotonic() - started
        if seconds > ALONE_SECONDS and num_workers > 1:
            break
        size = min(2 * size, CHUNK_RECORDS)
    else:
        return
    size = min(max(1, int(CHUNK_SECONDS * num_read / seconds)), CHUNK_RECORDS)
    try:
        with parallel_map(num_workers, begin=partial(_begin, work)) as mapped:
            yield from mapped(_do, iter(lambda: chunks.take(size), []))
    except BrokenProcessPool:
        raise ValueError(
            f"{chunks.name}: a process that read a part of it was killed, most likely for lack of memory: nothing is kept of "
            "it; give the run more memory, or fewer cores (taskset -c 0-3 ...), which read it"
        ) from None


_work: Work | None = None
"""Of a process that `_in_processes` started."""


def _begin(work: Work) -> None:
    global _work
    _work = work


def _do(chunk: list[Record]) -> Any:
    assert _work is not None, "begun in a process of the pool"
    return _work(chunk)
