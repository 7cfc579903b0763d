"""A Parquet table's rows as the plain values that JSON would hold, a batch at a time."""

import datetime
import decimal
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qwenvl_agent.containers.note import Note, ignore

MAGIC = b"PAR1"
ROWS_A_BATCH = 64
"""They may hold pictures."""


def read_rows(path: Path, note: Note = ignore) -> Iterator[tuple[str, object]]:
    """`file:row` (from 1) and value of each row; a ValueError as the value of one that cannot be read.

    A null field is one that is not there: a table has every field in every row. Pictures' bytes stay bytes.
    """
    import pyarrow as pa  # here, because it takes a tenth of a second to import
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path, buffer_size=2**20, pre_buffer=False) as file:
            size, num_rows = path.stat().st_size, file.metadata.num_rows
            for batch in file.iter_batches(batch_size=ROWS_A_BATCH, use_threads=False):
                for i in range(batch.num_rows):
                    number += 1
                    yield f"{path}:{number}", _row(batch, i)
                note(size * number // num_rows)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last one: of a damaged column's name
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the machine's fault, not the file's
        fault = f"the table is damaged ({error}): the rest of the file is not read; write or fetch it again"
        yield f"{path}:{number + 1}", ValueError(fault)


def num_rows(path: Path) -> int:
    """0 for a table that cannot be read: its reading says why."""
    import pyarrow as pa
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_metadata(path).num_rows
    except (pa.ArrowException, OSError):
        return 0


def _row(batch: Any, index: int) -> object:
    try:
        row = {
            name: batch.column(i)[index].as_py(maps_as_pydicts="strict") for i, name in enumerate(batch.schema.names)
        }
        return plain(row)
    except (ValueError, KeyError, OverflowError) as error:
        return ValueError(f"a cell has no plain value ({error}): the row is skipped; write it as text or numbers")


def plain(value: Any) -> Any:
    """Of lists, dicts, texts, numbers, booleans and bytes alone: dates as ISO 8601, durations in seconds."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, decimal.Decimal):
        return int(value) if value.as_tuple().exponent == 0 else float(value)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, uuid.UUID):
        return str(value)
    return value.item() if hasattr(value, "item") else value
