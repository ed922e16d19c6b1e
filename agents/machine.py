"""The identity of this machine, which distinguishes two machines with one workstation's name.

`/etc/machine-id` must not be published: machine-id(5) asks for a keyed hash of it, as
sd_id128_get_machine_app_specific() makes one. An id in the agent's folder is part of the hash,
since containers can have no machine id, or that of their host. A clone of a disk has both ids; its
boot id and its address are others.
"""

import hashlib
import hmac
import os
import re
import secrets
import socket
from pathlib import Path

from agents.store.state_folder import StateError, sync_directory
from schemas.reports.check_in import Machine

_MACHINE_ID = Path("/etc/machine-id")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_APPLICATION = b"package-command-manager"
_ID_IN_FOLDER = re.compile(r"[0-9a-f]{32}")
_NOT_IN_HOST = re.compile(r"[^A-Za-z0-9._-]")


def identify(folder: Path) -> Machine:
    """Return the identity of this machine, for the agent with this folder.

    Raises:
        StateError: the folder cannot be written to.
    """
    machine = _hash(_read(_MACHINE_ID), _id_in_folder(folder / "machine-id"))
    boot = _read(_BOOT_ID)
    host = _NOT_IN_HOST.sub("?", socket.gethostname())
    return Machine(id=machine, boot=_hash(boot) if boot else "", host=host)


def _hash(key: str, text: str = "") -> str:
    return hmac.digest(key.encode(), _APPLICATION + text.encode(), hashlib.sha256)[:16].hex()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


def _id_in_folder(path: Path) -> str:
    """Return the id in an agent's folder; make one if there is none."""
    known = _read(path)
    if _ID_IN_FOLDER.fullmatch(known):
        return known
    made = secrets.token_hex(16)
    new = path.with_name(f"{path.name}.new")
    try:
        new.unlink(missing_ok=True)
        file = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(file, "w") as content:
            content.write(f"{made}\n")
            content.flush()
            os.fsync(file)
        new.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        raise StateError(f"PCM_STATE_DIR: {path}: {error.strerror}") from error
    return made
