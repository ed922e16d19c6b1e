"""Start peers as their users do: a worker by its own program, and a script that sends.

They are installed in a separate virtual environment, which `make bench` creates.
"""

import os
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from benchmarks.processes import end, running

_ROOT = Path(__file__).parents[2]
_BENCH = _ROOT / ".bench"
_STOCK_LOOP = Path(__file__).with_name("stock_loop")
_LIMIT = 60.0
"""The time limit of a peer in seconds, plus one for each 20 commands or messages."""


@dataclass(frozen=True)
class Peer:
    """A measured peer.

    Attributes:
        name: the name of its series.
        module: its module in this package.
        about: its settings.
        packages: the packages whose versions are shown.
        worker: its worker's command line; empty if it only publishes.
        environment: the variables of its module.
        uvloop: whether it can import uvloop.
    """

    name: str
    module: str
    about: str
    packages: tuple[str, ...]
    worker: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    uvloop: bool = False

    @property
    def described(self) -> str:
        """Its versions and settings."""
        return f"{', '.join(f'{name} {_version(name)}' for name in self.packages)}; {self.about}"


def _version(package: str) -> str:
    paths = [str(path) for path in _BENCH.glob("lib/python*/site-packages")]
    return next(iter(metadata.distributions(name=package, path=paths))).version


def there(peers: Iterable[Peer]) -> list[Peer]:
    """Return the peers if they are installed; otherwise print that they are not."""
    found = list(peers)
    if (_BENCH / ".ready").exists():
        return found
    print("without peers, whom `make bench` installs:", ", ".join(peer.name for peer in found))
    return []


def commands(peer: Peer, url: str, at_once: int, count: int) -> float:
    """Return the commands a second of a new worker and a sender."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = _environment(peer, url, folder, at_once)
        with _worker(peer, environment, folder) as worker:
            return _sent(peer, environment, worker, folder, "commands", str(count), count)


def publish(peer: Peer, url: str, variables: Mapping[str, str], bodies: list[bytes]) -> float:
    """Return the messages a second of a publishing script; `variables` are its environment."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "bodies").write_bytes(b"\n".join(bodies))
        environment = {**_environment(peer, url, folder, 1), **variables}
        return _sent(
            peer, environment, None, folder, "publish", str(folder / "bodies"), len(bodies)
        )


def _environment(peer: Peer, url: str, folder: Path, at_once: int) -> dict[str, str]:
    (folder / "done").touch()
    path = [str(_ROOT), *([] if peer.uvloop else [str(_STOCK_LOOP)])]
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "LANG": "C.UTF-8",
        "PYTHONPATH": os.pathsep.join(path),
        "PEER_URL": url,
        "PEER_AT_ONCE": str(at_once),
        "PEER_DONE": str(folder / "done"),
        **peer.environment,
    }


@contextmanager
def _worker(
    peer: Peer, environment: dict[str, str], folder: Path
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a worker; its log is in the folder."""
    words: list[str | Path] = [_BENCH / "bin" / peer.worker[0], *peer.worker[1:]]
    with running(words, _ROOT, environment, folder / "log") as worker:
        yield worker


def _sent(
    peer: Peer,
    environment: dict[str, str],
    worker: "subprocess.Popen[bytes] | None",
    folder: Path,
    what: str,
    of: str,
    count: int,
) -> float:
    """Run a sender while the worker runs; return the figure that it prints."""
    with (folder / "output").open("wb") as output, (folder / "log").open("ab") as log:
        sender = subprocess.Popen(
            [_BENCH / "bin" / "python", "-m", f"benchmarks.peers.{peer.module}", what, of],
            cwd=_ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=log,
            start_new_session=True,
        )
    deadline = time.monotonic() + _LIMIT + count / 20
    try:
        while sender.poll() is None:
            if time.monotonic() > deadline or (worker and worker.poll() is not None):
                break
            time.sleep(0.05)
    finally:
        end(sender)
    if sender.returncode:
        raise RuntimeError(f"{peer.name}:\n{(folder / 'log').read_text(errors='replace')[-3000:]}")
    return float((folder / "output").read_text().splitlines()[-1])  # some peers log before it
