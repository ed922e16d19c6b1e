"""Start a command as a process in its own session; as another user if its job says so.

Without another user, Python uses vfork: the kernel does not copy the agent's memory map.
"""

import errno
import json
import os
import select
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents.execution.environment import (
    INITIAL_FILE_LIMIT,
    PATH,
    UMASK,
    UserAccount,
    account,
    default_cwd,
    restore_file_limit,
)
from agents.execution.processes.process_tree import OwnProcessTree
from agents.platforms import NO_RESOURCES
from schemas import Command
from schemas.errors import PcmError

if TYPE_CHECKING:
    import subprocess

_SETUID_EXEC = Path(__file__).with_name("setuid_exec.py")
_SETUID_EXEC_LIMIT = 60.0  # seconds
_REPORT_BYTES = 64 * 1024
_FOLDER_VARIABLES = frozenset({"PATH", "HOME"})  # a start accesses their folders
JOB_VARIABLE = "PCM_JOB_ID"
"""The environment variable with the job's id."""
WORKSTATION_VARIABLE = "PCM_WORKSTATION"
"""The environment variable with the workstation's name."""
_STDIN = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)


class CannotStart(PcmError):
    """The command cannot be started; the text says why."""


def user_of(command: Command) -> UserAccount | None:
    """Return the account under which a command runs; None for the agent's own.

    Raises:
        CannotStart: there is no such user on this machine, or the agent does not run as root.
    """
    if command.run_as is None:
        return None
    if os.geteuid() != 0:
        raise CannotStart(f"run_as: {command.run_as}: this agent does not run as root")
    try:
        return account(command.run_as)
    except KeyError:
        raise CannotStart(f"run_as: {command.run_as}: there is no such user here") from None


def owners_of(command: Command) -> frozenset[int]:
    """Return the ids of the users that a command's process can have: the agent's, its own."""
    owners = {os.geteuid()}
    if command.run_as is not None:
        with suppress(KeyError):  # the account was removed
            owners.add(account(command.run_as).uid)
    return frozenset(owners)


def may_block(command: Command, own: Mapping[str, str]) -> bool:
    """Return whether a start can block, for example on a dead network mount.

    `own` are the variables of the command itself.
    """
    named = command.run_as is not None or command.cwd is not None
    # Root's home is on the machine itself; another user's may be on the network.
    return named or os.geteuid() != 0 or not _FOLDER_VARIABLES.isdisjoint(own)


def start(
    command: Command,
    user: UserAccount | None,
    variables: Mapping[str, str],
    output_fds: Sequence[int],
    tree: OwnProcessTree,
) -> "subprocess.Popen[bytes]":
    """Start a command in its process tree; `output_fds` are its stdout and stderr.

    Raises:
        CannotStart: there is no such program or folder, or it may not be run.
        OSError: the limit of open files or processes is reached.
    """
    argv = ("/bin/sh", "-c", *command.argv) if command.shell else command.argv
    program = _program(argv[0], variables)
    if user is not None:
        return _start_as(user, argv, program, command.cwd, variables, output_fds, tree)
    if command.cwd is not None and not os.path.isdir(command.cwd):  # noqa: PTH112 - Path's raises where access is denied
        raise CannotStart(f"cwd: {command.cwd} is not a folder here")
    try:
        popen = _popen(
            tree,
            argv,
            output_fds,
            executable=program,
            cwd=command.cwd or default_cwd(variables),
            env=variables,
            umask=UMASK,
        )
    except OSError as error:
        if error.errno in NO_RESOURCES:
            raise
        raise CannotStart(f"{argv[0]}: {error.strerror}") from error
    restore_file_limit(popen.pid)
    return popen


def _popen(
    tree: OwnProcessTree, argv: Sequence[str], output_fds: Sequence[int], **options: Any
) -> "subprocess.Popen[bytes]":
    # Its own session: it has no terminal from which a hidden prompt could read.
    return tree.spawn(
        argv,
        stdin=_STDIN,
        stdout=output_fds[0],
        stderr=output_fds[1],
        start_new_session=True,
        **options,
    )


def _start_as(
    user: UserAccount,
    argv: Sequence[str],
    program: str,
    cwd: str | None,
    variables: Mapping[str, str],
    output_fds: Sequence[int],
    tree: OwnProcessTree,
) -> "subprocess.Popen[bytes]":
    """Start a program that drops root's privileges before it accesses the command's files.

    It gets the command's environment in a file, so that no variable has an effect before that.
    """
    request = {
        "uid": user.uid,
        "gid": user.gid,
        "groups": user.groups,
        "home": user.home,
        "umask": UMASK,
        "files": INITIAL_FILE_LIMIT,
        "argv": list(argv),
        "program": program,
        "cwd": cwd,
        "environment": dict(variables),
    }
    request_fd = os.memfd_create("command")
    try:
        report, report_write_end = os.pipe()
        try:
            with open(request_fd, "wb", closefd=False) as file:
                file.write(json.dumps(request).encode())
            os.lseek(request_fd, 0, os.SEEK_SET)
            passed_fds = (request_fd, report_write_end)
            popen = _popen(
                tree,
                [sys.executable, "-I", "-S", str(_SETUID_EXEC), *map(str, passed_fds)],
                output_fds,
                pass_fds=passed_fds,
                cwd="/",
                env={},
            )
        finally:
            os.close(report_write_end)
        try:
            _await_start(popen, report, argv[0], tree)
        finally:
            os.close(report)
    finally:
        os.close(request_fd)
    return popen


def _await_start(
    popen: "subprocess.Popen[bytes]", report: int, name: str, tree: OwnProcessTree
) -> None:
    poll = select.poll()
    poll.register(report, select.POLLIN)
    if not poll.poll(_SETUID_EXEC_LIMIT * 1000):  # that user can have stopped it
        tree.kill()
        popen.wait()
        raise CannotStart(f"{name}: did not start within {_SETUID_EXEC_LIMIT:g} s")
    if not (failure := os.read(report, _REPORT_BYTES)):
        return
    popen.wait()
    number, _, text = failure.decode(errors="replace").partition(" ")
    if int(number) in NO_RESOURCES and int(number) != errno.ENOSPC:
        raise OSError(int(number), text)
    raise CannotStart(text)


def _program(name: str, variables: Mapping[str, str]) -> str:
    """Return the program's file: as named, or from the absolute folders of PATH.

    An empty or relative folder in PATH would mean one in the working directory.
    """
    if "/" in name:
        return name
    folders = variables.get("PATH", PATH).split(os.pathsep)
    absolute = os.pathsep.join(folder for folder in folders if folder.startswith("/"))
    found = shutil.which(name, path=absolute)
    if found is None:
        raise CannotStart(f"{name}: no such program in {absolute}")
    return found
