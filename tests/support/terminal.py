"""A program on a pseudo-terminal, and what its user sees."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from tests.support.waiting import LIMIT

_TOKEN = re.compile(r"\x1b\[\??([0-9;]*)([A-Za-z])|(\r)|(\n)|([^\x1b\r\n]+)|\x1b.?")


class Screen:
    """A terminal with its scrollback, for rich's output."""

    def __init__(self) -> None:
        self.lines = [""]
        self._row = self._column = 0

    def feed(self, text: str) -> None:
        """Process a program's output."""
        for number, letter, back, down, plain in _TOKEN.findall(text):
            if back:
                self._column = 0
            elif down:
                self._down()
            elif plain:
                self._write(plain)
            elif letter == "A":
                self._row = max(0, self._row - int(number or 1))
            elif letter == "K":
                self.lines[self._row] = "" if number == "2" else self._line()[: self._column]

    def _down(self) -> None:
        self._row += 1
        self._column = 0
        if self._row == len(self.lines):
            self.lines.append("")

    def _line(self) -> str:
        return self.lines[self._row].ljust(self._column)

    def _write(self, text: str) -> None:
        line = self._line()
        end = self._column + len(text)
        self.lines[self._row] = line[: self._column] + text + line[end:]
        self._column = end

    @property
    def shown(self) -> list[str]:
        """The lines that are not empty."""
        return [line.rstrip() for line in self.lines if line.strip()]


class OnTerminal:
    """A program that runs on a terminal of its own; after its test it is ended, if it runs yet."""

    _open: ClassVar[set["OnTerminal"]] = set()

    def __init__(
        self,
        words: Sequence[str | Path],
        environment: Mapping[str, str],
        columns: int = 100,
        lines: int = 40,
    ) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.screen = Screen()
        self.written = 0
        self.process = subprocess.Popen(
            words,
            env={"TERM": "xterm", "LANG": "C.UTF-8", **environment},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        self._open.add(self)

    @classmethod
    def end_all(cls) -> None:
        """End those whose tests did not come to their ends."""
        for terminal in list(cls._open):
            if terminal.process.poll() is None:
                terminal.process.kill()
            terminal.process.wait(LIMIT)
            terminal.hang_up()

    def until(self, seen: Callable[[str], bool]) -> str:
        """Wait until the screen shows something; return it."""
        deadline = time.monotonic() + LIMIT
        while not seen(text := "\n".join(self.screen.shown)):
            assert time.monotonic() < deadline, text
            assert self._read(), f"it ended:\n{text}"
        return text

    def type(self, text: str) -> None:
        """Type something."""
        os.write(self._master, text.encode())

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def hang_up(self) -> None:
        """Take the terminal away."""
        if self in self._open:
            self._open.remove(self)
            os.close(self._master)

    def end(self) -> int:
        """Wait until it has ended; return its exit status."""
        deadline = time.monotonic() + LIMIT
        while self._read():
            assert time.monotonic() < deadline, self.screen.shown
        status = self.process.wait(LIMIT)
        self.hang_up()
        return status

    def _read(self) -> bool:
        """Read its output; return whether there may be more."""
        ready, _, _ = select.select([self._master], [], [], 0.2)
        if not ready:
            return True
        try:
            data = os.read(self._master, 65536)
        except OSError:  # no process has it open any more
            return False
        self.written += len(data)
        self.screen.feed(data.decode(errors="replace"))
        return bool(data)
