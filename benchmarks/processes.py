"""Start and end measured processes; measure their memory, disk space and wake-ups."""

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
    """Run a program in a folder, with its output in `log`; end its process group afterwards."""
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
    """Kill the process group of a process that leads it."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def tree(pid: int) -> Iterator[int]:
    """Yield a process and its descendants."""
    yield pid
    with suppress(OSError):  # it has ended
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from tree(int(child))


def memory(pids: Iterable[int], kind: str = "Rss") -> float:
    """Return the memory of processes in MiB.

    `kind`: Rss counts shared memory for each process; Pss counts a part of it for each.
    """
    found = 0
    for one in pids:
        with suppress(OSError):
            text = Path(f"/proc/{one}/smaps_rollup").read_text()
            found += int(text.split(f"{kind}:")[1].split()[0])
    return found / _KIB


def woken(pid: int) -> int:
    """Return the number of voluntary context switches of a process and its descendants."""
    found = 0
    for one in tree(pid):
        with suppress(OSError):
            for task in Path(f"/proc/{one}/task").iterdir():
                found += int(_SWITCHES.findall((task / "status").read_text())[0])
    return found


def on_disk(folder: Path) -> int:
    """Return the disk space of a folder in bytes."""
    found = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # it was removed
                found += (Path(place) / name).lstat().st_blocks * 512
    return found
