"""A small disk that a test can fill: a tmpfs in a mount namespace of its own, without root."""

import errno
import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Self

from tests.support.workstation import PCM_AGENT, Program

_SCRIPT = 'mount -t tmpfs -o size=2m none "$0" && echo mounted && exec sleep 600'
_BALLAST = "ballast"
_BLOCK = 64 * 1024


class NoDisk(Exception):
    """This machine does not allow user namespaces."""


class Disk:
    """A disk at a folder, for those who enter its namespace; `inside` is it from outside."""

    def __init__(self, folder: Path) -> None:
        if not (shutil.which("unshare") and shutil.which("nsenter")):
            raise NoDisk("there is no unshare or nsenter here")
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self._holder = subprocess.Popen(
            ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", _SCRIPT, folder],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != b"mounted\n":
            self.close()
            raise NoDisk("user namespaces are not allowed here")
        self.inside = Path(f"/proc/{self._holder.pid}/root{folder}")
        self._enter = ("nsenter", f"--target={self._holder.pid}", "--user", "--mount")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def program(self) -> Program:
        """`pcm-agent`, seeing the disk."""
        return self.seen_by(PCM_AGENT)

    def seen_by(self, program: Program) -> Program:
        """Return a program that sees the disk."""
        return (*self._enter, *program)

    def fill(self) -> None:
        """Fill it to the last byte."""
        file = os.open(self.inside / _BALLAST, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            while True:
                os.write(file, bytes(_BLOCK))
        except OSError as error:
            assert error.errno == errno.ENOSPC  # noqa: PT017 - that is what is wanted
        finally:
            os.close(file)

    def clear(self) -> None:
        """Make room again."""
        (self.inside / _BALLAST).unlink()

    def mount(self, *words: str | Path) -> None:
        """Mount something in its namespace; the words are those of the program mount."""
        subprocess.run([*self._enter, "mount", *words], check=True)

    def close(self) -> None:
        """Let go of it: it is gone with the last who sees it."""
        self._holder.kill()
        self._holder.wait()
        if self._holder.stdout is not None:
            self._holder.stdout.close()
        with suppress(OSError):
            self.folder.rmdir()
