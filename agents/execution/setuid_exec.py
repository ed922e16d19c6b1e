"""Becomes a command, as another user: `python -I -S setuid_exec.py COMMAND REPORT`; both are fds.

Started by the service agent, as root, with nothing of the command's environment. Gives up all
rights first; folder and program are then looked for as that user. A failure is written to REPORT,
as an error number and a text, and a start closes it.
"""

import errno
import json
import os
import resource
import signal
import sys
from contextlib import suppress
from typing import Any


def become(command: dict[str, Any]) -> None:
    """Drop the rights, and execute the program; return only by an error.

    Raises:
        OSError: it cannot be done; `filename` is what it was about.
    """
    os.setgroups(command["groups"])
    os.setresgid(command["gid"], command["gid"], command["gid"])
    os.setresuid(command["uid"], command["uid"], command["uid"])
    if command["uid"] != 0:
        _check_gone()
    os.umask(command["umask"])
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (command["files"], hard))
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python ignores
        signal.signal(number, signal.SIG_DFL)
    if command["cwd"] is not None:
        os.chdir(command["cwd"].encode())
    else:
        os.chdir("/")
        with suppress(OSError):
            os.chdir(command["home"].encode())
    argv = [word.encode() for word in command["argv"]]
    variables = {name.encode(): value.encode() for name, value in command["environment"].items()}
    os.execve(command["program"].encode(), argv, variables)  # noqa: S606 - to run it is the point


def _check_gone() -> None:
    """Raise OSError if the rights can be had back, as some settings of the kernel allow."""
    try:
        os.setuid(0)
    except PermissionError:
        return
    raise OSError(errno.EPERM, "root's rights would remain")


def main() -> None:
    """Run the program."""
    given, report = (int(word) for word in sys.argv[1:])
    os.set_inheritable(report, False)  # noqa: FBT003 - its only word
    with open(given, "rb") as file:  # noqa: PTH123 - a number
        command = json.load(file)
    try:
        become(command)
    except OSError as error:
        what = os.fsdecode(error.filename) if error.filename else "run_as"
        os.write(report, f"{error.errno} {what}: {error.strerror}".encode())
        sys.exit(127)


if __name__ == "__main__":
    main()
