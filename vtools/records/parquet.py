"""Rows of a parquet file as lines of JSON; no value is written as Python shows it."""

import base64
import datetime
import decimal
import mmap
import warnings
from collections.abc import Iterator
from typing import IO, Any

MAGIC = b"PAR1"


class Unreadable(Exception):
    """The rest of the rows cannot be read."""


def rows(file: IO[bytes]) -> Iterator[bytes]:
    """Every row as one line. Raises Unreadable."""
    import orjson
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=64):
            for row in _dicts(batch):
                yield orjson.dumps(row, default=_as_json, option=orjson.OPT_NON_STR_KEYS) + b"\n"
                number += 1
    except pyarrow.ArrowNotImplementedError as error:
        raise Unreadable(f"the parquet data is of a kind that is not read: {error}") from None
    except (pyarrow.ArrowException, OSError):
        raise Unreadable("the parquet data is damaged or ends early") from None
    except UnicodeDecodeError:
        raise Unreadable(f"the parquet data after row {number} has a text that is not UTF-8") from None
    except (ValueError, TypeError, OverflowError, orjson.JSONEncodeError):
        raise Unreadable(f"the parquet data after row {number} has a value that cannot be written as JSON") from None


def _dicts(batch: Any) -> Iterator[dict[str, Any]]:
    try:
        yield from _converted(batch)
    except (ValueError, OverflowError):  # a time that Python has no type for, such as one with nanoseconds
        single = _with_times_as_text(batch)
        for place in range(len(single)):
            yield from _converted(single.slice(place, 1))


def _converted(batch: Any) -> list[dict[str, Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of two equal keys of a map the last counts, as in JSON
        found: list[dict[str, Any]] = batch.to_pylist(maps_as_pydicts="lossy")
        return found


def _with_times_as_text(batch: Any) -> Any:
    import pyarrow

    for place, field in enumerate(batch.schema):
        if pyarrow.types.is_temporal(field.type):
            batch = batch.set_column(place, field.name, batch.column(place).cast(pyarrow.string()))
    return batch


def _as_json(value: Any) -> Any:
    """A value that JSON has no type for. Bytes that are no text become an object, so that nobody takes them for one."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, decimal.Decimal):
        if value == value.to_integral_value():
            return int(value)
        return float(value) if decimal.Decimal(repr(float(value))) == value else str(value)
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    return str(value)


def several(file: IO[bytes]) -> bool:
    """Whether it is several parquet files: pyarrow would read the first one's data by the last one's index."""
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        place = data.find(MAGIC + MAGIC, 8)
        while place >= 0:
            index = place - 4 - int.from_bytes(data[place - 4 : place], "little")
            if index >= 4 and data[index] == 0x15:  # the first field of an index, a number
                return True
            place = data.find(MAGIC + MAGIC, place + 1)
    return False
