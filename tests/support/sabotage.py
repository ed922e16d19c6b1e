"""Runs `pcm-agent`, or `pcm`, and ends it at a named point, as a power cut would: by kill -9.

    python sabotage.py POINT [TEXT] -- service
    python sabotage.py POINT [TEXT] -- pcm send ...

The kill comes when the point is reached for the first time; with TEXT, a regular expression, for
what has it. A message that goes out is told by its exchange, key and id.
"""

import functools
import inspect
import os
import re
import signal
import sys
from typing import TYPE_CHECKING, Any

from agents import cli
from agents.claims.claims import Claims
from agents.content import fetcher
from agents.content.cache import Cache
from agents.content.package_copy import PackageCopies
from agents.execution.command_run import CommandRun
from agents.execution.process import Process
from agents.inbox import consumer as intake
from agents.inbox.consumer import Inbox
from broker.amqp.batch_publish import Outgoing
from broker.amqp.publisher import Publisher
from broker.cli import main as administration
from broker.client import dispatcher

if TYPE_CHECKING:
    from collections.abc import Callable

POINTS: dict[str, tuple[Any, str, str]] = {
    "received": (Inbox, "_process_batch", "before"),
    "accepted": (Inbox, "_accept_stored", "before"),
    "acknowledged": (Inbox, "_process_batch", "after"),
    "claiming": (Claims, "decide", "before"),
    "claimed": (Claims, "decide", "after"),
    "start recorded": (CommandRun, "complete", "before"),
    "started": (Process, "__init__", "after"),
    "ended": (CommandRun, "complete", "after"),
    "end recorded": (Claims, "conclude", "before"),
    "concluded": (Claims, "conclude", "after"),
    "manifest stored": (Cache, "store_manifest", "after"),
    "archive received": (fetcher, "fetch", "after"),
    "archive stored": (Cache, "store_archive", "after"),
    "unpacked": (PackageCopies, "open", "after"),
    "sending": (Publisher, "_publish", "before"),
    "sent": (Publisher, "_publish", "after"),
    "reading": (intake, "read_order", "before"),
    "recording": (dispatcher, "record", "before"),
    "recorded": (dispatcher, "record", "after"),
}
"""Between which steps of the pipeline a point lies: what is called, and whether before or after."""


def _told(word: object) -> str:
    if isinstance(word, list) and word and isinstance(word[0], Outgoing):
        return " ".join(f"{one.exchange} {one.key} {one.properties.message_id}" for one in word)
    return str(word)


def sabotage(point: str, text: str) -> None:
    """Have this process killed at a point."""
    owner, name, when = POINTS[point]
    original: Callable[..., Any] = getattr(owner, name)

    def strike(*words: object) -> None:
        if re.search(text, " ".join(map(_told, words))):
            os.kill(os.getpid(), signal.SIGKILL)

    @functools.wraps(original)
    def sabotaged(*words: Any, **named: Any) -> Any:
        if when == "before":
            strike(*words, *named.values())
        result = original(*words, **named)
        if when == "after":
            strike(*words, *named.values())
        return result

    @functools.wraps(original)
    async def sabotaged_async(*words: Any, **named: Any) -> Any:
        if when == "before":
            strike(*words, *named.values())
        result = await original(*words, **named)
        if when == "after":
            strike(*words, *named.values())
        return result

    wrapper = sabotaged_async if inspect.iscoroutinefunction(original) else sabotaged
    setattr(owner, name, wrapper)


if __name__ == "__main__":
    cut = sys.argv.index("--")
    sabotage(sys.argv[1], " ".join(sys.argv[2:cut]))
    program, *_ = sys.argv[cut + 1 :]
    if program == "pcm":
        sys.argv = sys.argv[cut + 1 :]
        administration.main()
    else:
        sys.argv = ["pcm-agent", *sys.argv[cut + 1 :]]
        cli.main()
