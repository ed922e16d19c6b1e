"""Small bytes that want much: memory, time, or a stack. Each entrance gets each of them.

As a program it does so within limits that the kernel keeps, and ends with 0 if all was well.
"""

import resource
import struct
import sys
from collections.abc import Iterator

from tests.fuzz.entrances import ENTRANCES

_MEMORY = 1 << 30  # bytes in total
_TIME = 60  # seconds of processor time for one bomb at one entrance


def bombs() -> Iterator[tuple[str, bytes]]:
    """Yield each with its name."""
    for size in (4096, 100_000):
        yield f"lists {size}", b"[" * size
        yield f"closed lists {size}", b"[" * (size // 2) + b"]" * (size // 2)
        yield f"mappings {size}", b'{"a":' * (size // 5)
        yield f"yaml mappings {size}", b"{a: " * (size // 4)
        yield f"yaml levels {size}", b"".join(b" " * n + b"-\n" for n in range(int(size**0.5)))
        yield f"dots {size}", b"a." * (size // 2) + b"a = 1\n"
        yield f"tables {size}", b"[" + b"a." * (size // 2) + b"a]\n"
        yield f"digits {size}", b"9" * size
        yield f"fraction {size}", b"0." + b"9" * size
        yield f"exponent {size}", b"1e" + b"9" * size
        yield f"durations {size}", b"1h" * (size // 2) + b"x"
        yield f"fraction of a duration {size}", b"1" * size + b"." + b"1" * size
        yield f"commas {size}", b"1," * (size // 2)
        yield f"ranges {size}", b"0-59," * (size // 5) + b"1 * * * *"
        yield f"days {size}", b"* * " + b"1," * (size // 2) + b"1 2 *"
        yield f"windows {size}", b"Sun 02:00-06:00," * (size // 16) + b"Sun 02:00-06:00"
        yield f"spaces {size}", b" " * size
        yield f"quotes {size}", b'"' * size
        yield f"backslashes {size}", b'"' + b"\\" * size
        yield f"new lines {size}", b"\n" * size
        yield f"percents {size}", b"amqp://%" * (size // 8)
        yield f"references {size}", b"PCM_USER=" + b"${PCM_USER:-" * (size // 48)
        yield f"in a field {size}", b'{"kind": "job", "id": ' + b"[" * size
        yield f"claim {size}", b'{"agent": "a", "state": ' + b"[" * size
        yield f"arrays {size}", _headers(size)
        yield f"tables past the end of their table {size}", _overlapping(size)
    layers = b"".join(b"- &l%d [%s]\n" % (n, b"*l%d," % (n - 1) * 9) for n in range(1, 30))
    yield "a billion laughs", b"- &l0 lol\n" + layers
    merges = b"".join(b"m%d: {<<: [*m%d, *m%d]}\n" % (n, n - 1, n - 1) for n in range(1, 30))
    yield "merges", b"m0: &m0 {a: 1}\n" + merges


def _headers(size: int) -> bytes:
    inner = b""
    for _ in range(size // 5):
        inner = b"A" + struct.pack(">I", len(inner)) + inner if len(inner) < size else inner
    fields = b"\x01a" + inner
    return struct.pack(">HI", 1 << 13, len(fields)) + fields


def _overlapping(size: int) -> bytes:
    """A short table whose only field is a table of all that follows; again and again."""
    short = b"\0F" + struct.pack(">I", 6)
    long = b"\0F" + struct.pack(">I", size)
    fields = (short + long) * (size // 12)
    return struct.pack(">HI", 1 << 13, len(fields)) + fields


def main() -> None:
    """Throw all of them."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    # One of each family: messages are read alike.
    families = {entrance.name.partition(":")[0]: entrance for entrance in ENTRANCES}
    for entrance in families.values():
        for name, bomb in bombs():
            sys.stderr.write(f"{entrance.name}: {name}\n")  # names the input if the kernel kills us
            used = resource.getrusage(resource.RUSAGE_SELF).ru_utime
            resource.setrlimit(resource.RLIMIT_CPU, (int(used) + _TIME, resource.RLIM_INFINITY))
            entrance.takes(bomb)


if __name__ == "__main__":
    main()
