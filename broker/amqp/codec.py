"""Tolerant AMQP decoder: malformed properties and headers do not close the connection.

The broker passes on what a publisher wrote: a time in the year 146140482, text that is not UTF-8,
tables nested to any depth. The library's decoder raises an error for each of these and ends its
connection; the broker then delivers the message again, and it ends the next connection. One such
report would keep every reader of the stream from all later ones. This decoder replaces such values
by harmless ones; the receiver checks the message.

It is also faster for the three frames of a delivery, almost all frames that a consumer reads.
"""

import re
import struct
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from typing import Any

from pamqp import commands, constants, decode
from pamqp.body import ContentBody
from pamqp.exceptions import UnmarshalingException
from pamqp.frame import FrameTypes, unmarshal
from pamqp.header import ContentHeader

_DEEPEST = 20  # nested tables; the broker's x-death header has three levels
_FRAME_HEADER = struct.Struct(">BHI")  # kind, channel, payload size
_INDEX = struct.Struct(">I")  # class and method
_CONTENT = struct.Struct(">HHQH")  # class, weight, body size, property flags
_CODE = struct.Struct(">H")
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


def decode_frame(data: bytes) -> tuple[int, int, FrameTypes]:
    """Return a frame's size, its channel and the frame, as `pamqp.frame.unmarshal` does.

    Args:
        data: one complete frame.

    Raises:
        UnmarshalingException: it is not an AMQP frame.
    """
    kind, channel, _ = _FRAME_HEADER.unpack_from(data)
    if data[-1] != constants.FRAME_END:
        raise UnmarshalingException("Unknown", "Last byte error")
    if kind == constants.FRAME_BODY:
        return len(data), channel, ContentBody(data[_FRAME_HEADER.size : -1])
    try:
        if kind == constants.FRAME_HEADER:
            return len(data), channel, _content_header(data)
        if kind == constants.FRAME_METHOD:
            (index,) = _INDEX.unpack_from(data, _FRAME_HEADER.size)
            if read := _METHODS.get(index):
                return len(data), channel, read(data, _FRAME_HEADER.size + _INDEX.size)
    except (ValueError, LookupError, struct.error) as error:
        raise UnmarshalingException("Unknown", error) from error
    return unmarshal(data)


def _deliver(data: bytes, at: int) -> commands.Basic.Deliver:
    frame = commands.Basic.Deliver.__new__(commands.Basic.Deliver)
    at, frame.consumer_tag = _short_text_at(data, at)
    frame.delivery_tag, flags = _TAG.unpack_from(data, at)
    frame.redelivered = bool(flags & 1)
    at, frame.exchange = _short_text_at(data, at + _TAG.size)
    _, frame.routing_key = _short_text_at(data, at)
    return frame


def _get_ok(data: bytes, at: int) -> commands.Basic.GetOk:
    tag, flags = _TAG.unpack_from(data, at)
    at, exchange = _short_text_at(data, at + _TAG.size)
    at, key = _short_text_at(data, at)
    (count,) = _LENGTH.unpack_from(data, at)
    return commands.Basic.GetOk(tag, bool(flags & 1), exchange, key, count)


def _return(data: bytes, at: int) -> commands.Basic.Return:
    (code,) = _CODE.unpack_from(data, at)
    at, text = _short_text_at(data, at + _CODE.size)
    at, exchange = _short_text_at(data, at)
    _, key = _short_text_at(data, at)
    return commands.Basic.Return(code, text, exchange, key)


def _content_header(data: bytes) -> ContentHeader:
    _, _, size, flags = _CONTENT.unpack_from(data, _FRAME_HEADER.size)
    properties = _Properties()
    at = _FRAME_HEADER.size + _CONTENT.size
    # A truncated frame, which no broker sends, has the properties before the end.
    try:
        for name, read in _present(flags):
            at, value = read(data, at)
            setattr(properties, name, value)
    except (ValueError, LookupError, struct.error, ArithmeticError):
        pass
    # RabbitMQ refuses other values from AMQP clients; aio-pika fails on them.
    if properties.delivery_mode not in {1, 2}:
        properties.delivery_mode = None
    if properties.expiration is not None and not _MILLISECONDS.fullmatch(properties.expiration):
        properties.expiration = None
    return ContentHeader(body_size=size, properties=properties)


def _octet_at(data: bytes, at: int) -> tuple[int, int]:
    return at + 1, data[at]


def _short_text_at(data: bytes, at: int) -> tuple[int, str]:
    end = at + 1 + data[at]
    return end, _text(data[at + 1 : end])


def _time_at(data: bytes, at: int) -> tuple[int, datetime | None]:
    return at + 8, _time(data[at : at + 8])[1]


def _table_at(data: bytes, at: int) -> tuple[int, dict[str, Any]]:
    return _fields(data, at, len(data), 0)


def _text(data: bytes) -> str:
    return data.decode(errors="backslashreplace")


def _long_text(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _time(data: bytes) -> tuple[int, datetime | None]:
    try:
        return decode.timestamp(data)
    except (ValueError, OverflowError, OSError):
        return 8, None


def _fields(data: bytes, start: int, limit: int, depth: int) -> tuple[int, dict[str, Any]]:
    """Decode a table; return the offset behind it, and its fields."""
    at, end = _span(data, start, limit)
    table: dict[str, Any] = {}
    while at < end and depth < _DEEPEST:
        after = at + 1 + data[at]
        name = _text(data[at + 1 : after])
        at, table[name] = _value(data, after, end, depth)
    return end, table


def _items(data: bytes, start: int, limit: int, depth: int) -> tuple[int, list[Any]]:
    """Decode an array; return the offset behind it, and its items."""
    at, end = _span(data, start, limit)
    items: list[Any] = []
    while at < end and depth < _DEEPEST:
        at, value = _value(data, at, end, depth)
        items.append(value)
    return end, items


def _value(data: bytes, at: int, end: int, depth: int) -> tuple[int, Any]:
    kind, at = data[at : at + 1], at + 1
    if kind == b"F":
        return _fields(data, at, end, depth + 1)
    if kind == b"A":
        return _items(data, at, end, depth + 1)
    if kind in {b"S", b"x"}:
        at, after = _span(data, at, end)
        return after, _long_text(data[at:after]) if kind == b"S" else data[at:after]
    if kind == b"T":
        return at + 8, _time(data[at : at + 8])[1]
    if kind not in _SIZES:  # of unknown length
        return end, _UNREADABLE
    _, value = decode.TABLE_MAPPING[kind](data[at : at + _SIZES[kind]])
    return at + _SIZES[kind], value


def _span(data: bytes, start: int, limit: int) -> tuple[int, int]:
    """Return the offsets of the content behind a length field: start and end.

    The end is at most `limit`, where the table around it ends: no byte is decoded twice.
    """
    (length,) = _LENGTH.unpack_from(data, start)
    return start + 4, min(start + 4 + length, limit)


_METHODS: dict[int, Callable[[bytes, int], FrameTypes]] = {
    commands.Basic.Deliver.index: _deliver,
    commands.Basic.GetOk.index: _get_ok,
    commands.Basic.Return.index: _return,
}
_Reader = Callable[[bytes, int], tuple[int, Any]]
_READERS: dict[str, _Reader] = {
    "octet": _octet_at,
    "shortstr": _short_text_at,
    "table": _table_at,
    "timestamp": _time_at,
}
# In wire order. The library looks up each property and copies the rest for each message, which
# takes a quarter of a consumer's time.
_PROPERTIES = tuple(
    (_Properties.flags[name], name, _READERS[_Properties.amqp_type(name)])
    for name in _Properties.__slots__
)


@lru_cache(maxsize=256)
def _present(flags: int) -> tuple[tuple[str, _Reader], ...]:
    """Return the names and readers of the properties that are set; cached."""
    return tuple((name, read) for flag, name, read in _PROPERTIES if flags & flag)
