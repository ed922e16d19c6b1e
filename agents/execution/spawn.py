"""Starts a command as a process of a session of its own; as another user, where its job says so.

Without another user the kernel need not copy the agent (vfork), which is what makes it fast.
"""

import errno
import json
import os
import select
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from agents.execution import environment as surroundings
from agents.execution.environment import UserAccount
from agents.execution.orphans import JOB_VARIABLE, signal_group
from agents.platforms import NO_RESOURCES
from schemas import Command
from schemas.errors import PcmError

_SETUID_EXEC = Path(__file__).with_name("setuid_exec.py")
_SETUID_EXEC_LIMIT = 60.0  # seconds
_REPORT = 64 * 1024
_FOLDERS = frozenset({"PATH", "HOME"})  # variables: in what they name, a start looks
_NOTHING = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)  # what commands read of


class CannotStart(PcmError):
    """The command cannot be started; the text says why."""


def user_of(command: Command) -> UserAccount | None:
    """Return as whom a command runs; None for the agent's own user.

    Raises:
        CannotStart: there is no such user here, or the agent may not run anything as another.
    """
    if command.run_as is None:
        return None
    if os.geteuid() != 0:
        raise CannotStart(f"run_as: {command.run_as}: this agent does not run as root")
    try:
        return surroundings.account(command.run_as)
    except KeyError:
        raise CannotStart(f"run_as: {command.run_as}: there is no such user here") from None


def owners_of(command: Command) -> frozenset[int]:
    """Return the users whose a command's process can be: the agent's, and whom it runs as."""
    owners = {os.geteuid()}
    if command.run_as is not None:
        with suppress(KeyError):  # gone since
            owners.add(surroundings.account(command.run_as).uid)
    return frozenset(owners)


def may_block(command: Command, own: Mapping[str, str]) -> bool:
    """Whether a start may take long: by the user it names, or by a folder on a dead mount, say.

    `own` are the variables that the job gives its command.
    """
    named = command.run_as is not None or command.cwd is not None
    # Root's home is on the machine itself; another user's may be on the network.
    return named or os.geteuid() != 0 or not _FOLDERS.isdisjoint(own)


def start(
    command: Command,
    user: UserAccount | None,
    variables: Mapping[str, str],
    outlets: Sequence[int],
) -> "subprocess.Popen[bytes]":
    """Start a command; `outlets` are its stdout and stderr.

    Raises:
        CannotStart: there is no such program or folder, or it may not be run.
        OSError: there are no files or processes left.
    """
    argv = ("/bin/sh", "-c", *command.argv) if command.shell else command.argv
    program = _program(argv[0], variables)
    if user is not None:
        return _start_as(user, argv, program, command.cwd, variables, outlets)
    if command.cwd is not None and not os.path.isdir(command.cwd):  # noqa: PTH112 - Path's fails where it may not look
        raise CannotStart(f"cwd: {command.cwd} is not a folder here")
    try:
        popen = _popen(
            argv,
            outlets,
            executable=program,
            cwd=command.cwd or surroundings.folder(variables),
            env=variables,
            umask=surroundings.UMASK,
        )
    except OSError as error:
        if error.errno in NO_RESOURCES:
            raise
        raise CannotStart(f"{argv[0]}: {error.strerror}") from error
    surroundings.give_back_files(popen.pid)
    return popen


def _popen(argv: Sequence[str], outlets: Sequence[int], **how: Any) -> "subprocess.Popen[bytes]":
    # A session of its own: no terminal from which a hidden prompt could read.
    return subprocess.Popen(  # noqa: S603 - to run it is what we are here for
        argv,
        stdin=_NOTHING,
        stdout=outlets[0],
        stderr=outlets[1],
        start_new_session=True,
        **how,
    )


def _start_as(
    user: UserAccount,
    argv: Sequence[str],
    program: str,
    cwd: str | None,
    variables: Mapping[str, str],
    outlets: Sequence[int],
) -> "subprocess.Popen[bytes]":
    """Start a program that gives up our rights, and only then looks at what the job names.

    Its own environment is ours to say: the command's comes by a file, so that nothing in it is
    heeded while there are still rights to lose.
    """
    whole = {
        "uid": user.uid,
        "gid": user.gid,
        "groups": user.groups,
        "home": user.home,
        "umask": surroundings.UMASK,
        "files": surroundings.USUAL_FILES,
        "argv": list(argv),
        "program": program,
        "cwd": cwd,
        "environment": dict(variables),
    }
    given = os.memfd_create("command")
    try:
        report, reported = os.pipe()
        try:
            with open(given, "wb", closefd=False) as file:
                file.write(json.dumps(whole).encode())
            os.lseek(given, 0, os.SEEK_SET)
            popen = _popen(
                [sys.executable, "-I", "-S", str(_SETUID_EXEC), str(given), str(reported)],
                outlets,
                pass_fds=(given, reported),
                cwd="/",
                env={JOB_VARIABLE: variables[JOB_VARIABLE]},  # by which it is found after a crash
            )
        finally:
            os.close(reported)
        try:
            _await_start(popen, report, argv[0])
        finally:
            os.close(report)
    finally:
        os.close(given)
    return popen


def _await_start(popen: "subprocess.Popen[bytes]", report: int, name: str) -> None:
    poll = select.poll()
    poll.register(report, select.POLLIN)
    if not poll.poll(_SETUID_EXEC_LIMIT * 1000):  # that user stopped it, say
        signal_group(popen.pid, 9)
        popen.wait()
        raise CannotStart(f"{name}: did not start within {_SETUID_EXEC_LIMIT:g} s")
    if not (told := os.read(report, _REPORT)):
        return
    popen.wait()
    number, _, text = told.decode(errors="replace").partition(" ")
    if int(number) in NO_RESOURCES and int(number) != errno.ENOSPC:
        raise OSError(int(number), text)
    raise CannotStart(text)


def _program(name: str, variables: Mapping[str, str]) -> str:
    """Return the program's file: as named, or from the absolute folders of PATH.

    An empty or relative folder in PATH would mean whatever lies in the working directory.
    """
    if "/" in name:
        return name
    folders = variables.get("PATH", surroundings.PATH).split(os.pathsep)
    absolute = os.pathsep.join(folder for folder in folders if folder.startswith("/"))
    found = shutil.which(name, path=absolute)
    if found is None:
        raise CannotStart(f"{name}: no such program in {absolute}")
    return found
