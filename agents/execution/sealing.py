"""The key pair of an agent for secrets: made once, told in each check-in, used to start commands.

What it opens goes into the environment of the command that is about to start, and nowhere else.
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
_SAFELY = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_log = get_logger()


class CannotOpen(PcmError):
    """Secrets cannot be opened here; the text says why."""


class Sealing:
    """Opens what was sealed for one agent."""

    def __init__(self, directory: Path, login: str) -> None:
        """Read the key from an agent's folder, or make it.

        Raises:
            StateError: the folder cannot be used.
        """
        self._login = login
        key = _key(directory)
        self._box = SealedBox(key)
        self.public = base64.b64encode(bytes(key.public_key)).decode()
        """The public key, in base64."""

    def open(self, command: Command) -> dict[str, str]:
        """Return a command's secret variables.

        Raises:
            CannotOpen: they were not sealed for this agent as it is now.
        """
        secrets = command.secrets
        if secrets is None:
            return {}
        sealed = secrets.keys.get(self._login)
        if sealed is None:
            raise CannotOpen(f"its secrets are not sealed for {self._login}; send it anew")
        try:
            values = json.loads(SecretBox(self._box.decrypt(sealed)).decrypt(secrets.sealed))
        except (CryptoError, ValueError):
            text = f"its secrets cannot be opened by the key that {self._login} has; send it anew"
            raise CannotOpen(text) from None
        if not isinstance(values, dict) or set(values) != set(secrets.names):
            raise CannotOpen("its secrets are not those that it names; send it anew")
        return {name: str(value) for name, value in values.items()}

    def objection(self, command: Command) -> str:
        """Return why a command must not be started here; nothing if its secrets can be opened."""
        try:
            self.open(command)
        except CannotOpen as error:
            return str(error)
        return ""


def _key(directory: Path) -> PrivateKey:
    path = directory / _NAME
    try:
        if (found := _read(path)) is not None:
            return PrivateKey(found)
        if path.exists():
            # What was sealed for it cannot be opened any more, and will be said to be so.
            path.rename(path.with_suffix(".damaged"))
            _log.error("sealing_key.damaged", path=str(path))
        return _made(path)
    except OSError as error:
        raise StateError(f"PCM_STATE_DIR: {path}: {error.strerror}") from error


def _read(path: Path) -> bytes | None:
    """Return the key that a file holds; None where it is not there, or damaged."""
    try:
        file = os.open(path, _SAFELY)
    except FileNotFoundError:
        return None
    try:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise StateError(f"PCM_STATE_DIR: {path}: is no file of this user's alone (mode 0600)")
        key = os.read(file, PrivateKey.SIZE + 1)
    finally:
        os.close(file)
    return key if len(key) == PrivateKey.SIZE else None


def _made(path: Path) -> PrivateKey:
    """Make a key, whole on the disk before anybody is told of it."""
    key = PrivateKey.generate()
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with open(os.open(new, flags, 0o600), "wb") as opened:  # noqa: PTH123 - it is open
        opened.write(bytes(key))
        opened.flush()
        os.fsync(opened.fileno())
    new.rename(path)
    sync_directory(path.parent)
    return key
