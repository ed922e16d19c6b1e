"""Run a command on Salt's minions by its Python client; runs in `.bench-salt`, not in `.venv`.

python -m benchmarks.peers.salt_fleet MASTER_CONFIGURATION COUNT     # reads lines, answers seconds
"""

import sys
import time
from typing import Any

import salt.client
from salt.exceptions import SaltException

_LIMIT = 300.0


def _ready(configuration: str, count: int) -> Any:
    """Return a client, once all minions answer it."""
    deadline = time.monotonic() + _LIMIT
    while time.monotonic() < deadline:
        # A new client each time: it reads the key only once, and the master makes it at its start.
        client = salt.client.LocalClient(c_path=f"{configuration}/master")
        try:
            if len(client.cmd("*", "test.ping", timeout=5)) == count:
                return client
        except SaltException:  # the master is not ready yet
            time.sleep(1)
    raise RuntimeError("the minions do not come")


def main() -> None:
    """Handle the requests."""
    configuration, count = sys.argv[1], int(sys.argv[2])
    client = None
    for line in sys.stdin:
        began = time.perf_counter()
        if line.strip() == "ready":
            client = _ready(configuration, count)
        elif client is not None:
            found = client.cmd("*", "cmd.run", ["uname"], timeout=60)
            if list(found.values()) != ["Linux"] * count:
                raise RuntimeError(f"{len(found)} of {count} answered")
        print(time.perf_counter() - began, flush=True)


if __name__ == "__main__":
    main()
