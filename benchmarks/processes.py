"""Processes that are measured: begun and ended; and what they take: memory, disk, wake-ups."""

import os
import re
import signal
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

_SWITCHES = re.compile(r"^voluntary_ctxt_switches:\s+(\d+)$", re.MULTILINE)
_KIB = 1024


@contextmanager
def running(
    words: Sequence[str | Path], folder: Path, environment: Mapping[str, str], log: Path
) -> Iterator["subprocess.Popen[bytes]"]:
    """Have a program in a folder, ended with all that it started; what it says goes to `log`."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            words,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        end(process)


def end(process: "subprocess.Popen[bytes]") -> None:
    """End a process with all that it started: it is the first of its own group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def tree(pid: int) -> Iterator[int]:
    """Yield a process and all that descend from it."""
    yield pid
    with suppress(OSError):  # it has ended
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from tree(int(child))


def memory(pids: Iterable[int], kind: str = "Rss") -> float:
    """Return the MiB of processes.

    `kind`: Rss counts what they share once for each; Pss counts each's share of it.
    """
    found = 0
    for one in pids:
        with suppress(OSError):
            text = Path(f"/proc/{one}/smaps_rollup").read_text()
            found += int(text.split(f"{kind}:")[1].split()[0])
    return found / _KIB


def woken(pid: int) -> int:
    """Return how often a process and its descendants have waited for something, in all threads."""
    found = 0
    for one in tree(pid):
        with suppress(OSError):
            for task in Path(f"/proc/{one}/task").iterdir():
                found += int(_SWITCHES.findall((task / "status").read_text())[0])
    return found


def on_disk(folder: Path) -> int:
    """Return the bytes that a folder takes on the disk."""
    found = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # it is gone
                found += (Path(place) / name).lstat().st_blocks * 512
    return found
