"""Put a script that came with a job into a private folder, from which it runs."""

import os
import shutil
from pathlib import Path

from agents.execution.command_run import Placed
from agents.execution.environment import UserAccount
from agents.execution.processes.subreaper import SPAWN_LOCK
from schemas import Command

_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def place_script(folder: Path, command: Command, user: UserAccount | None) -> Placed:
    """Write a command's script into a folder that only its user can read.

    Args:
        folder: the job's own folder, which need not exist.
        command: a command with a script.
        user: the account under which it runs, if not the agent's own.

    Raises:
        OSError: the disk does not take it.
    """
    folder.mkdir(mode=0o711, parents=True, exist_ok=True)
    folder.chmod(0o711)
    private = folder / f"script-{os.geteuid() if user is None else user.uid}"
    shutil.rmtree(private, ignore_errors=True)  # of an earlier start; it can be that user's
    private.mkdir(mode=0o700)
    path = private / command.argv[0]
    # No process starts meanwhile: it could inherit the file, and Linux runs none that is written.
    with SPAWN_LOCK, os.fdopen(os.open(path, _FLAGS, 0o700), "wb") as file:
        file.write(command.script or b"")
    if user is not None:
        os.chown(path, user.uid, user.gid)
        os.chown(private, user.uid, user.gid)
    return Placed(command.model_copy(update={"argv": (str(path), *command.argv[1:])}))
