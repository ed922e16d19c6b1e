"""The common parts of all peers: the command, and the measurement of their senders.

A peer's module is imported by its worker, and is the program of its sender: `commands COUNT` runs a
number of commands, `publish FILE` publishes the lines of a file. Both print the rate a second.
"""

import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any, TypeVar

URL = os.environ["PEER_URL"]
AT_ONCE = int(os.environ["PEER_AT_ONCE"])
EXCHANGE = os.environ.get("PEER_EXCHANGE", "")
QUEUE = os.environ.get("PEER_QUEUE", "")
KEY = os.environ.get("PEER_KEY", "")
PUBLISHES = sys.argv[1:2] == ["publish"]
IN_FLIGHT = 1000
"""The number of unconfirmed messages, where a library supports more than one."""

_TRUE = shutil.which("true") or "/bin/true"
_DONE = Path(os.environ["PEER_DONE"])
_WARM_UP = 8
_T = TypeVar("_T")
Result = tuple[int, str, str]
"""Exit status, output, errors."""


def run() -> Result:
    """Run the command, and return its result for the sender."""
    done = subprocess.run(
        [_TRUE], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


async def run_in_loop() -> Result:
    """Do the same as `run`, with asyncio."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        _TRUE, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe
    )
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


def run_without_results() -> None:
    """Run the command without a result, and count it."""
    null = subprocess.DEVNULL
    subprocess.run([_TRUE], stdin=null, stdout=null, stderr=null, check=True)
    _count()


async def run_without_results_in_loop() -> None:
    """Do the same as `run_without_results`, with asyncio."""
    null = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(_TRUE, stdin=null, stdout=null, stderr=null)
    await process.wait()
    _count()


def _count() -> None:
    with _DONE.open("ab", buffering=0) as done:
        done.write(b".")


def counted() -> int:
    """Return how many commands without a result have ended, in all processes of a worker."""
    return _DONE.stat().st_size


async def until_counted(number: int) -> None:
    """Wait until a number of commands without a result have ended."""
    while counted() < number:  # noqa: ASYNC110 - other processes count
        await asyncio.sleep(0.002)


async def pipelined(publish: Callable[[_T], Awaitable[object]], messages: Iterable[_T]) -> None:
    """Publish messages, `IN_FLIGHT` at a time."""
    left = iter(messages)

    async def sender() -> None:
        for message in left:
            await publish(message)

    async with asyncio.TaskGroup() as senders:
        for _ in range(IN_FLIGHT):
            senders.create_task(sender())


def _bodies() -> list[bytes]:
    return Path(sys.argv[2]).read_bytes().splitlines()


async def measure(
    publish: Callable[[list[bytes]], Awaitable[None]],
    commands: Callable[[int], Awaitable[None]] | None = None,
) -> None:
    """Run the sender: a warm-up, which also waits for the worker, then the measurement."""
    if PUBLISHES:
        bodies = _bodies()
        count = len(bodies)
        await publish(bodies[:_WARM_UP])
        began = time.perf_counter()
        await publish(bodies)
    elif commands:
        count = int(sys.argv[2])
        await commands(_WARM_UP)
        began = time.perf_counter()
        await commands(count)
    else:
        raise SystemExit("it runs no commands")
    print(count / (time.perf_counter() - began))


def start(main: Coroutine[Any, Any, None]) -> None:
    """Run a sender on the event loop of its peer."""
    try:
        from uvloop import new_event_loop
    except ImportError:
        new_event_loop = asyncio.new_event_loop
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(main)
