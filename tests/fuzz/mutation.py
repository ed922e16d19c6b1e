"""Makes bad bytes of good ones: their structure is kept, or broken, in one to four places."""

import json
from contextlib import suppress
from random import Random
from typing import Any

# What cannot be said by json.dumps stands in it as text, and is put in afterwards.
_RAW = {
    '"@huge float@"': "1e400",
    '"@huge int@"': "9" * 5000,
    '"@zero@"': "-0",
    '"@lone@"': '"\\ud800"',
    '"@deep@"': "[" * 3000 + "]" * 3000,
    '"@nested@"': '{"a":' * 3000 + "1" + "}" * 3000,
}
_VALUES: tuple[Any, ...] = (
    *(raw.strip('"') for raw in _RAW),
    *(None, True, [], {}, "", "\0", "\x1b[31m", "\u202e", "é" * 70, "x" * 70_000),
    *(-1, 0, 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, 1e308, -1e308, 0.1, 1e-320),
    *(float("nan"), float("inf"), float("-inf")),
    *("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2026-02-30T00:00:00Z"),
    *("1969-12-31T23:59:59Z", "8999-12-31T23:59:59Z", "2026-11-30T12:00:00", "24:00", "P1D"),
    *({"local": "9999-12-31T23:59:59"}, {"local": "2026-03-29T02:30"}, {"base64": "/w=="}),
    *({"base64": "!"}, {"base64": 1}, [None], [[]], {"": ""}),
    *("all", "group:", "workstation:" + "x" * 64, "all:x", "group:ß", "workstation:ws-1"),
    *("*/5 * * * *", "0 0 30 2 *", "1.0", "1.99999999999999999999", "2.0", "①.0"),
    *("interactive-ada\n", "succeeded", "job", "report"),
)
_FRAGMENTS = (
    b"\0",
    b"\xff\xfe",
    b"\xed\xa0\x80",  # a lone surrogate
    b"\xf4\x90\x80\x80",
    b"\xef\xbb\xbf",
    b"\x85",
    b"\xe2\x80\xa8",
    b"\r\n",
    b"\n",
    b"\x1b[2J",
    b"[" * 400,
    b'{"a":' * 400,
    b"9" * 400,
    b"1e400",
    b"-",
    b"+",
    b"=",
    b"%",
    b",",
    b"&a [*a, *a]",
    b"<<: *a",
    b"!!python/object:os.system x",
    b"!!binary ====",
    b"2026-13-41T25:61:61Z",
    b"\xd9\xa3",  # a digit of another script
    b"a.b." * 40,
    b'"""',
    b"${PCM_USER}",
    b"F\xff\xff\xff\xff",
    b"A\x00\x00\x00\x02V",
    b"T\xff\xff\xff\xff\xff\xff\xff\xff",
    b"D\xff\xff\xff\xff\xff",
)


def mutated(data: bytes, random: Random) -> bytes:
    """Return other bytes, made of some."""
    for _ in range(random.randint(1, 4)):
        if random.random() < 0.6:
            with suppress(ValueError, RecursionError):
                data = _in_json(data, random)
                continue
        data = _in_bytes(data, random)
    return data


def _in_json(data: bytes, random: Random) -> bytes:
    content = json.loads(data)
    places = list(_places(content))
    if not places:
        raise ValueError
    container, key = random.choice(places)
    match random.randrange(4):
        case 0:
            del container[key]
        case 1 if isinstance(container, dict):
            container[random.choice((str(key) + "x", "kind", "version", "\ud800"))] = container[key]
        case 1:
            container.append(container[key])
        case 2:
            other, name = random.choice(places)
            with suppress(LookupError):
                container[key] = json.loads(json.dumps(other[name]))
        case _:
            container[key] = random.choice(_VALUES)
    text = json.dumps(content, ensure_ascii=random.random() < 0.5)
    for stand_in, raw in _RAW.items():
        text = text.replace(stand_in, raw)
    return text.encode(errors="surrogatepass")


def _places(value: Any) -> Any:
    keys: Any = ()
    if isinstance(value, dict | list):
        keys = list(value) if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield value, key
        yield from _places(value[key])


def _in_bytes(data: bytes, random: Random) -> bytes:
    start = random.randint(0, len(data))
    end = min(len(data), start + random.choice((0, 0, 1, 2, 8, 64)))
    match random.randrange(4):
        case 0:
            new = random.choice(_FRAGMENTS)
        case 1:
            new = random.randbytes(random.choice((1, 1, 2, 9)))
        case 2:
            new = data[start : start + 40] * random.choice((2, 3, 50))
        case _:
            new = b""
    return data[:start] + new + data[end:]
