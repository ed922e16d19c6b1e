"""What others put into a message's properties must not end the connection of whoever reads it.

The library raises at texts that are no UTF-8, at times beyond all calendars and at tables within
tables within tables, and drops the connection, each time that it comes to such a message: one in
the stream would keep everybody from all that comes behind it.
"""

from datetime import UTC, datetime

from pamqp import decode
from pamqp.common import FieldTable, FieldValue

_NESTED = (b"F", b"A")  # tables and arrays, which tell their length
_NEVER = datetime.fromtimestamp(0, UTC)


def _text(value: bytes) -> tuple[int, str]:
    end = 1 + value[0]
    return end, value[1:end].decode(errors="backslashreplace")


def _time(value: bytes) -> tuple[int, datetime]:
    try:
        return decode.timestamp(value)
    except (ValueError, OverflowError, OSError):
        return 8, _NEVER


def _table(value: bytes) -> tuple[int, FieldTable]:
    offset, end = 4, 4 + int.from_bytes(value[:4])
    found: dict[str, FieldValue] = {}
    while offset < end:
        size, key = _text(value[offset:])
        offset += size
        rest = value[offset:]
        try:
            size, found[key] = decode.embedded_value(rest)
        except (ValueError, RecursionError):
            if rest[:1] not in _NESTED:
                raise
            size, found[key] = 5 + int.from_bytes(rest[1:5]), None
        offset += size
    return end, found


def be_tolerant() -> None:
    """Have the library read what it would fall over."""
    decode.METHODS.update(shortstr=_text, timestamp=_time, table=_table)
    decode.TABLE_MAPPING.update({b"T": _time, b"F": _table})
