"""Execute a command as another user: `python -I -S setuid_exec.py COMMAND REPORT`; both are fds.

The service agent starts this as root, without the command's environment. It drops all privileges
first, and only then looks for the folder and the program. A failure is written to REPORT, as an
error number and a text; a successful exec closes REPORT.
"""

import errno
import json
import os
import resource
import signal
import sys
from contextlib import suppress
from typing import Any


def drop_and_exec(command: dict[str, Any]) -> None:
    """Drop the privileges and execute the program; never return.

    Raises:
        OSError: a step failed; `filename` names its file, if it has one.
    """
    os.setgroups(command["groups"])
    os.setresgid(command["gid"], command["gid"], command["gid"])
    os.setresuid(command["uid"], command["uid"], command["uid"])
    if command["uid"] != 0:
        _check_dropped()
    os.umask(command["umask"])
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (command["files"], hard))
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # ignored by Python
        signal.signal(number, signal.SIG_DFL)
    if command["cwd"] is not None:
        os.chdir(command["cwd"].encode())
    else:
        os.chdir("/")
        with suppress(OSError):
            os.chdir(command["home"].encode())
    argv = [word.encode() for word in command["argv"]]
    variables = {name.encode(): value.encode() for name, value in command["environment"].items()}
    os.execve(command["program"].encode(), argv, variables)  # noqa: S606 - the purpose


def _check_dropped() -> None:
    """Raise OSError if root can be restored, which some kernel settings allow."""
    try:
        os.setuid(0)
    except PermissionError:
        return
    raise OSError(errno.EPERM, "root privileges would remain")


def main() -> None:
    """Run the program."""
    command_fd, report_fd = (int(argument) for argument in sys.argv[1:])
    os.set_inheritable(report_fd, False)  # noqa: FBT003 - positional only
    with open(command_fd, "rb") as file:  # noqa: PTH123 - a file descriptor
        command = json.load(file)
    try:
        drop_and_exec(command)
    except OSError as error:
        subject = os.fsdecode(error.filename) if error.filename else "run_as"
        os.write(report_fd, f"{error.errno} {subject}: {error.strerror}".encode())
        sys.exit(127)


if __name__ == "__main__":
    main()
