"""Checks that the messages of an agent are signed by trusted keys that may order them."""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from agents.jobs.host import targets
from agents.settings import AgentSettings
from broker.log import get_logger
from broker.settings import WrongSetting
from broker.signing.authority import objection
from broker.signing.key_files import UnsafeFile
from broker.signing.trusted_keys import Keyring, key_files
from schemas import InvalidMessage, Job
from schemas.errors import PcmError
from schemas.orders.signature import read_signatures
from schemas.times import duration_text

if TYPE_CHECKING:
    from agents.content.cache import VerifiedManifest
    from broker.signing.signer import Order

_log = get_logger()


class Untrusted(PcmError):
    """A message is not trusted; the text gives the reason."""


class Trust:
    """The trusted keys of a folder, and the signatures that the settings require."""

    def __init__(self, folder: Path, settings: AgentSettings) -> None:
        """Read the folder.

        Raises:
            WrongSetting: the folder cannot be used.
        """
        self._folder = folder
        self._targets = targets(settings)
        self._max_age = settings.signed_within
        self._signatures_required = 1 + settings.approvals
        self._keyring = Keyring()
        self._folder_state: object = None
        self._problem = ""
        self.refresh()
        if self._problem:
            raise WrongSetting(f"PCM_TRUSTED_KEYS: {self._problem}")

    @classmethod
    def from_settings(cls, settings: AgentSettings) -> "Trust | None":
        """Return the trust that the settings require; None if messages need no signature.

        Raises:
            WrongSetting: the folder cannot be used.
        """
        return cls(settings.trusted_keys, settings) if settings.trusted_keys else None

    def refresh(self) -> None:
        """Read the folder again if it has changed."""
        state = self._read_folder_state()
        if state == self._folder_state:
            return
        is_first, self._folder_state = self._folder_state is None, state
        try:
            self._keyring, self._problem = Keyring.read(self._folder), ""
        except UnsafeFile as error:
            self._keyring, self._problem = Keyring(), str(error)
            if not is_first:  # the first time, __init__ raises the problem
                _log.error("keys.unusable", reason=self._problem)
            return
        for problem in self._keyring.problems:
            _log.error("key.unusable", reason=problem)
        names = sorted(key.name for key in self._keyring.keys.values())
        _log.info("keys.trusted", names=names)

    def _read_folder_state(self) -> object:
        """Return a value that changes with the folder and the keys in it."""
        try:
            paths = [self._folder, *key_files(self._folder)]
            return [(path, _fingerprint(os.lstat(path))) for path in paths]
        except (OSError, UnsafeFile) as error:
            return str(error)

    def check(self, order: "Order", body: bytes, header: object, now: datetime) -> None:
        """Check that enough trusted keys that may give an order have signed it.

        Args:
            order: the message.
            body: its body as received.
            header: its header of signatures, if it has one.
            now: the current time.

        Raises:
            Untrusted: signatures are missing, or the order is not for this workstation.
        """
        if self._problem:
            raise Untrusted(f"no key is trusted: {self._problem}")
        try:
            signatures = read_signatures(header)
        except InvalidMessage as error:
            raise Untrusted(str(error)) from error
        if not signatures:
            raise Untrusted("it is not signed")
        if isinstance(order, Job) and self._targets.isdisjoint(order.targets):
            # Another user may bind a queue to other keys; the signed targets cannot be changed.
            raise Untrusted("it is not for this workstation and its groups")
        verdicts = self._keyring.verify(order, body, signatures)
        required = self._signatures_required if isinstance(order, Job) else 1
        if reason := objection(verdicts, order, self._targets, required, now):
            raise Untrusted(reason)

    def stale(self, order: "Order", now: datetime) -> str:
        """Return the reason if an order is too old to be obeyed, else an empty text."""
        if order.created_at >= now - self._max_age:
            return ""
        return f"it was created over {duration_text(self._max_age)} ago; send it again"

    def manifest_objection(self, package: "VerifiedManifest") -> str:
        """Return why no signature of a package's manifest counts; "" if one does."""
        self.refresh()
        if self._problem:
            return f"no key is trusted: {self._problem}"
        manifest, signed, now = package.manifest, package.signed, datetime.now(UTC)
        reasons = []
        for verdict in self._keyring.verify(manifest, signed.content, signed.signatures):
            if verdict.key is None:
                reasons.append(verdict.reason)
            elif reason := verdict.key.objection_to_publisher([manifest.name], now):
                reasons.append(f"the key of {verdict.key.name} {reason}")
            else:
                return ""
        return "; ".join(reasons) or "it is not signed"

    def objection(self, order: "Order", body: bytes, header: object) -> str:
        """Return the reason if an order of the stream is not trusted, else an empty text."""
        try:
            self.check(order, body, header, datetime.now(UTC))
        except Untrusted as error:
            return str(error)
        return ""


def _fingerprint(status: os.stat_result) -> tuple[int, ...]:
    return (
        status.st_ino,
        status.st_mode,
        status.st_uid,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )
