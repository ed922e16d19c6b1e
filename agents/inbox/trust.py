"""Whose orders an agent takes: those that trusted keys have signed, and may give."""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from agents.jobs.host import targets
from agents.settings import AgentSettings
from broker.log import get_logger
from broker.settings import WrongSetting
from broker.signing.key_files import UnsafeFile
from broker.signing.trusted_keys import Keyring, key_files
from schemas import InvalidMessage, Job
from schemas.errors import PcmError
from schemas.signature import read_signatures
from schemas.times import duration_text

if TYPE_CHECKING:
    from broker.signing.signer import Order

_log = get_logger()


class Untrusted(PcmError):
    """An order is not to be obeyed; the text says why."""


class Trust:
    """The trusted keys, as they are in their folder now, and what the settings ask of orders."""

    def __init__(self, folder: Path, settings: AgentSettings) -> None:
        """Read the folder.

        Raises:
            WrongSetting: it cannot be used.
        """
        self._folder = folder
        self._here = targets(settings)
        self._within = settings.signed_within
        self._wanted = 1 + settings.approvals
        self._keyring = Keyring()
        self._seen: object = None
        self._problem = ""
        self.refresh()
        if self._problem:
            raise WrongSetting(f"PCM_TRUSTED_KEYS: {self._problem}")

    @classmethod
    def by(cls, settings: AgentSettings) -> "Trust | None":
        """Return what the settings ask; None where orders need no signature.

        Raises:
            WrongSetting: the folder cannot be used.
        """
        return cls(settings.trusted_keys, settings) if settings.trusted_keys else None

    def refresh(self) -> None:
        """Read the folder again if anything in it has changed."""
        seen = self._look()
        if seen == self._seen:
            return
        first, self._seen = self._seen is None, seen
        try:
            self._keyring, self._problem = Keyring.read(self._folder), ""
        except UnsafeFile as error:
            self._keyring, self._problem = Keyring(), str(error)
            if not first:  # at the start it is told by whoever starts us
                _log.error("keys.unusable", reason=self._problem)
            return
        for problem in self._keyring.problems:
            _log.error("key.unusable", reason=problem)
        names = sorted(key.name for key in self._keyring.keys.values())
        _log.info("keys.trusted", names=names)

    def _look(self) -> object:
        """Return what is another whenever the folder or a key in it is."""
        try:
            paths = [self._folder, *key_files(self._folder)]
            return [(path, _print(os.lstat(path))) for path in paths]
        except (OSError, UnsafeFile) as error:
            return str(error)

    def check(self, order: "Order", body: bytes, header: object, now: datetime) -> None:
        """Check that an order is signed by as many as have to, and that they may give it.

        Args:
            order: what is ordered.
            body: the very bytes that came.
            header: the message's header of signatures, if it has one.
            now: the time.

        Raises:
            Untrusted: it is not, or not for this workstation.
        """
        if self._problem:
            raise Untrusted(f"no key is trusted: {self._problem}")
        try:
            signatures = read_signatures(header)
        except InvalidMessage as error:
            raise Untrusted(str(error)) from error
        if not signatures:
            raise Untrusted("it is not signed")
        if isinstance(order, Job) and self._here.isdisjoint(order.targets):
            # A queue may be bound by whoever has the rights; what is signed says whom it is for.
            raise Untrusted("it is not for this workstation, as far as its groups are set here")
        names, reasons = set(), []
        for verdict in self._keyring.verify(order, body, signatures):
            if verdict.key is None:
                reasons.append(verdict.reason)
            elif objection := verdict.key.objection(order, self._here, now):
                reasons.append(f"the key of {verdict.key.name} {objection}")
            else:
                names.add(verdict.key.name)
        wanted = self._wanted if isinstance(order, Job) else 1
        if len(names) < wanted:
            if names:
                reasons.insert(0, f"{wanted} have to sign it, and {len(names)} did")
            raise Untrusted("; ".join(reasons))

    def stale(self, order: "Order", now: datetime) -> str:
        """Return why an order is too old to be obeyed; nothing if it is not."""
        if order.created_at >= now - self._within:
            return ""
        return f"it was made over {duration_text(self._within)} ago; send it anew"

    def objection(self, order: "Order", body: bytes, header: object) -> str:
        """Return why an order that the broker's record tells of is not to be obeyed; or nothing."""
        try:
            self.check(order, body, header, datetime.now(UTC))
        except Untrusted as error:
            return str(error)
        return ""


def _print(found: os.stat_result) -> tuple[int, ...]:
    return (
        found.st_ino,
        found.st_mode,
        found.st_uid,
        found.st_size,
        found.st_mtime_ns,
        found.st_ctime_ns,
    )
