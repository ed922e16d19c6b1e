"""The Celery workers of a fleet, and their sender; runs in `.bench`, not in `.venv`.

    celery --app benchmarks.peers.celery_fleet worker ...
    python -m benchmarks.peers.celery_fleet COUNT     # reads requests, one a line

It answers each request with its duration in seconds. The broker is at CELERY_BROKER_URL. Celery has
its default settings: durable queues and persistent tasks, no confirms, acknowledgement before the
run; results by its rpc backend, which loses them when the broker restarts.
"""

import os
import subprocess
import sys
import time
from typing import Any

from celery import Celery
from celery.worker.control import control_command

_LIMIT = 60.0
_COMMAND = ["uname"]

app = Celery("fleet", broker=os.environ.get("CELERY_BROKER_URL"), backend="rpc://")


def _run() -> str:
    return subprocess.run(_COMMAND, capture_output=True, text=True, check=True).stdout


def _controlled(_state: Any) -> str:
    return _run()


run = app.task(name="run")(_run)
control_command(name="run_command")(_controlled)


def names(count: int) -> list[str]:
    """Return the names of the workstations, which are also those of their queues."""
    return [f"ws-{number:03}" for number in range(count)]


def publishes(count: int) -> None:
    """Run the command by a message to each queue, and get all results."""
    results = [run.apply_async(queue=name) for name in names(count)]
    for result in results:
        result.get(timeout=_LIMIT)


def broadcast(count: int) -> None:
    """Run the command by one message to all, and get all replies."""
    replies = app.control.broadcast("run_command", reply=True, limit=count, timeout=_LIMIT)
    if len(replies) != count:
        raise RuntimeError(f"{len(replies)} of {count} replied")


def ready(count: int) -> None:
    """Wait until all workers answer."""
    deadline = time.monotonic() + _LIMIT
    while len(app.control.ping(limit=count, timeout=2.0)) < count:
        if time.monotonic() > deadline:
            raise RuntimeError("the workers do not come")


def main() -> None:
    """Handle the requests."""
    count = int(sys.argv[1])
    ways = {"ready": ready, "publishes": publishes, "broadcast": broadcast}
    for line in sys.stdin:
        began = time.perf_counter()
        ways[line.strip()](count)
        print(time.perf_counter() - began, flush=True)


if __name__ == "__main__":
    main()
