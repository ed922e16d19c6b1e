"""The key pair of an agent, and the decryption of secrets that are sealed for it.

Decrypted secrets are put only into the environment of the command that starts.
"""

import base64
import json
import os
import stat
from pathlib import Path

from nacl.exceptions import CryptoError
from nacl.public import PrivateKey, SealedBox
from nacl.secret import SecretBox

from agents.store.state_folder import StateError, sync_directory
from broker.log import get_logger
from schemas import Command
from schemas.errors import PcmError

_NAME = "sealing.key"
_OPEN_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_log = get_logger()


class CannotOpen(PcmError):
    """A command's secrets cannot be opened; the text says why."""


class Sealing:
    """Decrypts the secrets that are sealed for one agent."""

    def __init__(self, directory: Path, login: str) -> None:
        """Read the key from an agent's folder, or create one.

        Raises:
            StateError: the folder cannot be used.
        """
        self._login = login
        key = _load_or_create(directory)
        self._box = SealedBox(key)
        self.public = base64.b64encode(bytes(key.public_key)).decode()
        """The public key, in base64."""

    def open(self, command: Command) -> dict[str, str]:
        """Return a command's secret variables.

        Raises:
            CannotOpen: they are not sealed for this agent's login and key.
        """
        secrets = command.secrets
        if secrets is None:
            return {}
        sealed = secrets.keys.get(self._login)
        if sealed is None:
            raise CannotOpen(f"its secrets are not sealed for {self._login}; send it again")
        try:
            values = json.loads(SecretBox(self._box.decrypt(sealed)).decrypt(secrets.sealed))
        except (CryptoError, ValueError):
            text = f"its secrets cannot be opened by the key that {self._login} has; send it again"
            raise CannotOpen(text) from None
        if not isinstance(values, dict) or set(values) != set(secrets.names):
            raise CannotOpen("the names of its secrets do not match; send it again")
        return {name: str(value) for name, value in values.items()}

    def objection(self, command: Command) -> str:
        """Return why a command's secrets cannot be opened; "" if they can."""
        try:
            self.open(command)
        except CannotOpen as error:
            return str(error)
        return ""


def _load_or_create(directory: Path) -> PrivateKey:
    path = directory / _NAME
    try:
        if (key := _read(path)) is not None:
            return PrivateKey(key)
        if path.exists():
            # Jobs that are sealed for the damaged key end as failed, with the reason.
            path.rename(path.with_suffix(".damaged"))
            _log.error("sealing_key.damaged", path=str(path))
        return _create(path)
    except OSError as error:
        raise StateError(f"PCM_STATE_DIR: {path}: {error.strerror}") from error


def _read(path: Path) -> bytes | None:
    """Return the key in a file; None if the file is missing or damaged."""
    try:
        file = os.open(path, _OPEN_FLAGS)
    except FileNotFoundError:
        return None
    try:
        status = os.fstat(file)
        is_own = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()
        if not is_own or status.st_mode & 0o077:
            text = f"PCM_STATE_DIR: {path}: must be a regular file of this user, with mode 0600"
            raise StateError(text)
        key = os.read(file, PrivateKey.SIZE + 1)
    finally:
        os.close(file)
    return key if len(key) == PrivateKey.SIZE else None


def _create(path: Path) -> PrivateKey:
    """Create a key, and sync it to disk before it is used."""
    key = PrivateKey.generate()
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with open(os.open(new, flags, 0o600), "wb") as opened:  # noqa: PTH123 - a file descriptor
        opened.write(bytes(key))
        opened.flush()
        os.fsync(opened.fileno())
    new.rename(path)
    sync_directory(path.parent)
    return key
