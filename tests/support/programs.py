"""Runs `pcm` and `pcm-agent` to their ends, in the test's own process where that is possible.

It takes a tenth of the time that a new process takes. The program has a thread of its own, since
the test's may run an event loop, and streams that are files. It sees its own environment alone.
What handles signals or runs beside the test is a process of its own.
"""

import os
import string
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from subprocess import CompletedProcess
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO

from agents import cli as agent_cli
from broker.cli import main as pcm_cli
from tests.support.waiting import LIMIT

ROOT = Path(__file__).parents[2]
Done = CompletedProcess[str]
BIN = Path(sys.executable).parent
NOWHERE = "amqp://nobody:secret@127.0.0.1:1/"
_HOME = TemporaryDirectory(prefix="pcm-home-")
_HANDLE_SIGNALS = [("collect",), ("schedule", "run")]
_ANSWERED_BY_FILES = ("pending", "history", "run", "postpone", "decline", "stop")
"""The commands of `pcm-agent` that start no agent and no window."""


def _can_run_here(program: str, words: Sequence[str]) -> bool:
    if threading.current_thread() is not threading.main_thread():
        return False  # the test goes on meanwhile, and may run another one
    if "--help" in words:
        return True
    if program == "pcm-agent":
        return bool(words) and words[0] in _ANSWERED_BY_FILES
    return not any(tuple(words[: len(found)]) == found for found in _HANDLE_SIGNALS)


def run_bytes(
    program: str,
    words: Sequence[str],
    environment: Mapping[str, str],
    given: bytes = b"",
    cwd: Path | None = None,
) -> "CompletedProcess[bytes]":
    """Run `pcm` or `pcm-agent` to its end."""
    if not _can_run_here(program, words):
        return subprocess.run(
            [BIN / program, *words],
            env=environment,
            cwd=cwd,
            input=given,
            capture_output=True,
            timeout=LIMIT,
            check=False,
        )
    command = pcm_cli.run_pcm if program == "pcm" else agent_cli.run_pcm_agent
    status: list[int] = []
    with TemporaryFile() as stdin, TemporaryFile() as stdout, TemporaryFile() as stderr:
        stdin.write(given)
        stdin.seek(0)
        with _replaced(environment, cwd, stdin, stdout, stderr):
            thread = threading.Thread(
                target=lambda: status.append(_status(command, list(words))), daemon=True
            )
            thread.start()
            thread.join(LIMIT)
            assert not thread.is_alive(), f"{program} {' '.join(words)}: still runs"
        return CompletedProcess([program, *words], status[0], _content(stdout), _content(stderr))


def run(
    program: str,
    words: Sequence[str],
    environment: Mapping[str, str],
    given: str = "",
    cwd: Path | None = None,
) -> Done:
    """Run `pcm` or `pcm-agent` to its end; its streams are text."""
    done = run_bytes(program, words, environment, given.encode(), cwd)
    return Done(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def pcm(*words: str, url: str = NOWHERE, given: str = "") -> Done:
    """Run `pcm` with a history that is this process's own."""
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": _HOME.name,  # there is its history
        "PCM_AMQP_URL": url,
        "PCM_PATIENCE": "1s",
    }
    return run("pcm", words, environment, given)


def _status(command: Callable[[list[str]], int], words: list[str]) -> int:
    try:
        return command(words)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - as at the end of a process
        traceback.print_exc()
        return 1


@contextmanager
def _replaced(
    environment: Mapping[str, str], cwd: Path | None, *streams: IO[bytes]
) -> Iterator[None]:
    """Have this process's environment, folder and standard streams be others."""
    folder = Path.cwd()
    before = dict(os.environ), sys.stdin, sys.stdout, sys.stderr
    texts = [
        TextIOWrapper(os.fdopen(os.dup(stream.fileno()), mode), write_through=True)
        for stream, mode in zip(streams, ("rb", "wb", "wb"), strict=True)
    ]
    os.environ.clear()
    os.environ.update({"COLUMNS": "80", **environment})
    time.tzset()
    sys.stdin, sys.stdout, sys.stderr = texts
    os.chdir(cwd or folder)
    try:
        yield
    finally:
        os.chdir(folder)
        sys.stdin, sys.stdout, sys.stderr = before[1:]
        for text in texts:
            text.close()
        os.environ.clear()
        os.environ.update(before[0])
        time.tzset()


def _content(stream: IO[bytes]) -> bytes:
    stream.seek(0)
    return stream.read()


def scrambled(text: str) -> str:
    """Return what `tr a-z b-za` makes of a text: a secret that came, and is not shown itself."""
    letters = string.ascii_lowercase
    return text.translate(str.maketrans(letters, letters[1:] + letters[0]))
