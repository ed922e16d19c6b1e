"""A control group of its own for a command: no process can leave it unnoticed.

Needs cgroup version 2, and the right to make a folder below the agent's own: as root, or in a
folder that systemd delegated. Without it, `process_tree` finds the processes by other means.
"""

import os
import re
import signal
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

_PREFIX = "pcm"


def cgroup_name(workstation: str, job_id: str) -> str:
    """Return the name of the cgroup of a job's command on a workstation."""
    return f"{_PREFIX}.{workstation}.{job_id}"


def name_in(pid: int) -> str:
    """Return the name of the command's cgroup in which a process is; "" if it is in none."""
    with suppress(OSError):
        for part in reversed(_path_in(f"/proc/{pid}/cgroup").split("/")):
            if part.startswith(f"{_PREFIX}."):
                return part
    return ""


def _path_in(file: str) -> str:
    """Return the path below the root of the hierarchy; "" if the process is in none."""
    for line in Path(file).read_text(errors="replace").splitlines():
        if line.startswith("0::"):
            return line.removeprefix("0::").removesuffix(" (deleted)")
    return ""


@cache
def _own_folder() -> Path | None:
    """Return the folder of this process's cgroup; None if there is none.

    Raises:
        OSError: it cannot be found out now.
    """
    own = _path_in("/proc/self/cgroup")
    if not own or own.startswith("/.."):
        return None
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, kind = line.partition(" - ")
        root, mounted = (_unescaped(text) for text in fields.split()[3:5])
        if kind.split()[0] == "cgroup2" and Path(own).is_relative_to(root):
            return Path(mounted) / Path(own).relative_to(root)
    return None


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def remove_empty(workstation: str) -> None:
    """Remove the cgroups that a workstation's commands left empty."""
    with suppress(OSError):
        if (folder := _own_folder()) is not None:
            for path in folder.glob(cgroup_name(workstation, "*")):
                Cgroup(path).remove()


class Cgroup:
    """The cgroup of one command."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @classmethod
    def create(cls, name: str) -> "Cgroup | None":
        """Make a cgroup below the agent's own; None where that is not possible."""
        with suppress(OSError):
            if (folder := _own_folder()) is not None:
                (folder / name).mkdir(exist_ok=True)
                return cls(folder / name)
        return None

    def add(self, pid: int) -> bool:
        """Move a process into the cgroup; return whether that was possible."""
        try:
            file = os.open(self._path / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(file, str(pid).encode())
            finally:
                os.close(file)
        except ProcessLookupError:  # it has ended
            return True
        except OSError:
            return False
        return True

    def is_populated(self) -> bool:
        """Return whether a process is in the cgroup or below it; a zombie does not count."""
        try:
            return "populated 1" in (self._path / "cgroup.events").read_text()
        except FileNotFoundError:
            return False
        except OSError:
            return True

    def pids(self) -> set[int]:
        """Return the processes in the cgroup and below it."""
        found: set[int] = set()
        if self.is_populated():
            for folder in self._folders():
                with suppress(OSError):
                    found |= set(map(int, (folder / "cgroup.procs").read_text().split()))
        return found - {0}  # a process of another namespace

    def kill(self) -> None:
        """Kill all processes in the cgroup and below it."""
        try:
            (self._path / "cgroup.kill").write_text("1")  # all at once, also those that fork
        except OSError:  # before Linux 5.14
            for pid in self.pids():
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)

    def remove(self) -> None:
        """Remove the cgroup if it is empty."""
        with suppress(OSError):
            for folder in reversed(list(self._folders())):
                folder.rmdir()

    def _folders(self) -> Iterator[Path]:
        """Yield the cgroup's folder and those below it, parents first."""
        for path, _, _ in os.walk(self._path):
            yield Path(path)
