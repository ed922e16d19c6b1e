"""Decide whether a recorded message may be signed again with our key.

A schedule, a rollout's plan or an earlier job is read from the stream, to which any login of the
broker could write. Our key signs it again only if the keys that signed the original may give the
new order, now: the question of agents (`broker.signing.authority`).
"""

from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

from broker.settings import DispatcherSettings, WrongSetting
from broker.signing.authority import objection_for
from broker.signing.key_files import UnsafeFile
from broker.signing.signer import Signer
from broker.signing.trusted_keys import Keyring
from schemas import InvalidMessage, Job, Target, TrustedKey
from schemas.errors import PcmError
from schemas.orders.signature import read_signatures

if TYPE_CHECKING:
    from broker.signing.signer import Signable
    from schemas import ScheduleRemoval


class Recorded(NamedTuple):
    """A message as it was read from the stream: its original bytes, and its signatures."""

    message: "Signable"
    body: bytes
    signatures: str


class ResignPolicy:
    """Allow only orders that the signers of the original may give."""

    def __init__(self, signer: Signer | None, keyring: Keyring, approvals: int = 0) -> None:
        self._has_key = signer is not None
        self._keyring = keyring
        self._approvals = approvals
        if signer is not None:
            own = TrustedKey(name=signer.name, key=signer.public_text)
            # Signed again by the same key, an order reaches no further: agents ask its scope.
            own = keyring.keys.get(own.id, own).model_copy(update={"targets": ()})
            self._keyring = Keyring([*keyring.keys.values(), own])

    @classmethod
    def from_settings(cls, settings: DispatcherSettings) -> Self:
        """Return the policy for the settings.

        Raises:
            WrongSetting: the key, or the folder of keys, cannot be used.
        """
        signer = Signer.load(settings.signing_key)
        folder = settings.trusted_keys if signer else None
        return cls(signer, keyring_of(folder) or Keyring(), settings.approvals)

    def refusal_reason(
        self,
        recorded: Recorded,
        order: "Job | ScheduleRemoval",
        targets: Iterable[Target],
        now: datetime,
        groups: Mapping[str, Iterable[str]] | None = None,
    ) -> str:
        """Return why an order is not signed for a recorded message; "" if it is, or without a key.

        Args:
            recorded: the recorded message.
            order: the order that follows from it.
            targets: to whom the order is given. If there are none, only the signature is asked.
            now: the time.
            groups: the groups of workstations among the targets, as far as they are believed.
        """
        if not self._has_key:
            return ""
        if self._approvals and isinstance(order, Job):
            return f"a job needs {1 + self._approvals} signatures (PCM_APPROVALS); send it again"
        try:
            signatures = read_signatures(recorded.signatures)
        except InvalidMessage as error:
            return str(error)
        verdicts = list(self._keyring.verify(recorded.message, recorded.body, signatures))
        if not any(verdict.key for verdict in verdicts):
            return "; ".join(verdict.reason for verdict in verdicts) or "it is not signed"
        return objection_for(targets, verdicts, order, now, groups)


class SigningRefused(PcmError):
    """A recorded message is not signed again; nothing was sent."""


def check_resignable(
    recorded: Recorded,
    job: Job,
    settings: DispatcherSettings,
    now: datetime,
    groups: Mapping[str, Iterable[str]] | None = None,
) -> None:
    """Check that the signers of a recorded message may order a new job, now.

    `groups`: the groups of the job's workstations.

    Raises:
        SigningRefused: they may not, or no trusted key has signed it.
        WrongSetting: the key, or the folder of keys, cannot be used.
    """
    policy = ResignPolicy.from_settings(settings)
    if reason := policy.refusal_reason(recorded, job, job.targets, now, groups):
        original = job.rerun_of or job.rollout or job.id
        raise SigningRefused(
            f"{original}: refusing to sign again: no trusted key that may order it now has signed"
            f" the original ({reason}); nothing was sent"
        )


def keyring_of(folder: Path | None) -> Keyring | None:
    """Return the keys of the folder of `PCM_TRUSTED_KEYS`; None without a folder.

    Raises:
        WrongSetting: the folder, or a file in it, cannot be used.
    """
    if folder is None:
        return None
    try:
        keyring = Keyring.read(folder)
    except UnsafeFile as error:
        raise WrongSetting(f"PCM_TRUSTED_KEYS: {error}") from error
    if keyring.problems:
        raise WrongSetting(f"PCM_TRUSTED_KEYS: {keyring.problems[0]}")
    return keyring
