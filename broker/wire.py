"""Lets whatever the broker delivers be received, however odd its properties and headers are.

The broker passes on what a publisher wrote: a time in the year 146140482, text that is no UTF-8,
tables in tables to any depth. The library that reads frames ends its connection over each of
these; the broker would deliver the message again, and it would end the next one: one such report
would keep every reader of the stream from all that comes behind it. So what cannot be said in
Python becomes something harmless here, and whoever gets the message judges it.
"""

import re
import struct
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from typing import Any

from pamqp import commands, decode

_DEEPEST = 20  # tables in tables; the broker's own record of deaths has three levels
_TAG = struct.Struct(">QB")
_LENGTH = struct.Struct(">I")
_SIZES = {
    **dict.fromkeys((b"t", b"b", b"B"), 1),
    **dict.fromkeys((b"s", b"u"), 2),
    **dict.fromkeys((b"I", b"i", b"f"), 4),
    b"D": 5,
    **dict.fromkeys((b"l", b"L", b"d", b"T"), 8),
    b"V": 0,
    b"\x00": 0,
}
_UNREADABLE = "unreadable"
_Properties = commands.Basic.Properties
_MILLISECONDS = re.compile(r"[0-9]{1,20}")


def be_tolerant() -> None:
    """Have the library receive what it would end a connection over."""
    decode.METHODS["shortstr"] = _short_text
    decode.METHODS["timestamp"] = _time
    decode.METHODS["table"] = _table
    commands.Basic.Deliver.unmarshal = _deliver  # type: ignore[assignment, method-assign]
    commands.Basic.Properties.unmarshal = _properties  # type: ignore[assignment, method-assign]


def _deliver(self: commands.Basic.Deliver, data: bytes) -> None:
    # As the library does it, in one pass: of each message that comes.
    at, self.consumer_tag = _short_text_at(data, 0)
    self.delivery_tag, flags = _TAG.unpack_from(data, at)
    self.redelivered = bool(flags & 1)
    at, self.exchange = _short_text_at(data, at + _TAG.size)
    _, self.routing_key = _short_text_at(data, at)


def _properties(self: commands.Basic.Properties, flags: int, data: bytes) -> None:
    # A frame that is cut off, as no broker sends it, has the properties that came before the cut.
    at = 0
    try:
        for name, read in _present(flags):
            at, value = read(data, at)
            setattr(self, name, value)
    except (ValueError, LookupError, struct.error, ArithmeticError):
        pass
    # RabbitMQ refuses other ones, where they come by AMQP; aio-pika makes no message of them.
    if self.delivery_mode not in {1, 2}:
        self.delivery_mode = None
    if self.expiration is not None and not _MILLISECONDS.fullmatch(self.expiration):
        self.expiration = None


def _octet_at(data: bytes, at: int) -> tuple[int, int]:
    return at + 1, data[at]


def _short_text_at(data: bytes, at: int) -> tuple[int, str]:
    end = at + 1 + data[at]
    return end, _text(data[at + 1 : end])


def _time_at(data: bytes, at: int) -> tuple[int, datetime | None]:
    return at + 8, _time(data[at : at + 8])[1]


def _table_at(data: bytes, at: int) -> tuple[int, dict[str, Any]]:
    return _fields(data, at, 0)


def _text(data: bytes) -> str:
    return data.decode(errors="backslashreplace")


def _long_text(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _short_text(data: bytes) -> tuple[int, str]:
    end = 1 + data[0]
    return end, _text(data[1:end])


def _time(data: bytes) -> tuple[int, datetime | None]:
    try:
        return decode.timestamp(data)
    except (ValueError, OverflowError, OSError):
        return 8, None


def _table(data: bytes) -> tuple[int, Any]:
    return _fields(data, 0, 0)


def _fields(data: bytes, start: int, depth: int) -> tuple[int, dict[str, Any]]:
    """Return where the table ends that begins at a place, and what is in it."""
    at, end = _span(data, start)
    found: dict[str, Any] = {}
    while at < end and depth < _DEEPEST:
        after = at + 1 + data[at]
        name = _text(data[at + 1 : after])
        at, found[name] = _value(data, after, end, depth)
    return end, found


def _items(data: bytes, start: int, depth: int) -> tuple[int, list[Any]]:
    """Return where the array ends that begins at a place, and what is in it."""
    at, end = _span(data, start)
    found: list[Any] = []
    while at < end and depth < _DEEPEST:
        at, value = _value(data, at, end, depth)
        found.append(value)
    return end, found


def _value(data: bytes, at: int, end: int, depth: int) -> tuple[int, Any]:
    kind, at = data[at : at + 1], at + 1
    if kind == b"F":
        return _fields(data, at, depth + 1)
    if kind == b"A":
        return _items(data, at, depth + 1)
    if kind in {b"S", b"x"}:
        at, after = _span(data, at)
        return after, _long_text(data[at:after]) if kind == b"S" else data[at:after]
    if kind == b"T":
        return at + 8, _time(data[at : at + 8])[1]
    if kind not in _SIZES:  # nobody knows how long it is
        return end, _UNREADABLE
    _, value = decode.TABLE_MAPPING[kind](data[at : at + _SIZES[kind]])
    return at + _SIZES[kind], value


def _span(data: bytes, start: int) -> tuple[int, int]:
    """Return where what bears its length begins and ends."""
    (length,) = _LENGTH.unpack_from(data, start)
    return start + 4, min(start + 4 + length, len(data))


_Reader = Callable[[bytes, int], tuple[int, Any]]
_READERS: dict[str, _Reader] = {
    "octet": _octet_at,
    "shortstr": _short_text_at,
    "table": _table_at,
    "timestamp": _time_at,
}
# In their order on the wire. The library looks each of them up anew, and cuts what is left, for
# each message: a quarter of the time of who reads many.
_PROPERTIES = tuple(
    (_Properties.flags[name], name, _READERS[_Properties.amqp_type(name)])
    for name in _Properties.__slots__
)


@lru_cache(maxsize=256)
def _present(flags: int) -> tuple[tuple[str, _Reader], ...]:
    """Return the properties that are there, and what reads each: of one sender's, the same."""
    return tuple((name, read) for flag, name, read in _PROPERTIES if flags & flag)
