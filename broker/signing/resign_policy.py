"""Decide whether a recorded message may be signed again with our key.

A schedule, a rollout's plan or an earlier job is read from the stream, to which any login of the
broker could write. Our key signs it again only if a trusted key signed the original.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Self

from broker.settings import DispatcherSettings, WrongSetting
from broker.signing.key_files import UnsafeFile
from broker.signing.signer import Signer
from broker.signing.trusted_keys import Keyring
from schemas import InvalidMessage, TrustedKey
from schemas.errors import PcmError
from schemas.orders.signature import read_signatures

if TYPE_CHECKING:
    from broker.signing.signer import Signable
    from schemas import Job, Rollout


class ResignPolicy:
    """Allow only messages that our own key or a trusted key has signed."""

    def __init__(self, signer: Signer | None, keyring: Keyring) -> None:
        self._has_key = signer is not None
        self._keyring = keyring
        if signer is not None:
            own = TrustedKey(name=signer.name, key=signer.public_text)
            self._keyring = Keyring([own, *keyring.keys.values()])

    @classmethod
    def from_settings(cls, settings: DispatcherSettings) -> Self:
        """Return the policy for the settings.

        Raises:
            WrongSetting: the key, or the folder of keys, cannot be used.
        """
        signer = Signer.load(settings.signing_key)
        folder = settings.trusted_keys if signer else None
        return cls(signer, keyring_of(folder) or Keyring())

    def refusal_reason(self, message: "Signable", body: bytes, signatures: str) -> str:
        """Return why a message is not signed again; empty if it may be, or without a key.

        Args:
            message: the recorded message.
            body: its original bytes.
            signatures: its header of signatures.
        """
        if not self._has_key:
            return ""
        try:
            verdicts = list(self._keyring.verify(message, body, read_signatures(signatures)))
        except InvalidMessage as error:
            return str(error)
        if any(verdict.key for verdict in verdicts):
            return ""
        return "; ".join(verdict.reason for verdict in verdicts) or "it is not signed"


class SigningRefused(PcmError):
    """A recorded message is not signed again; nothing was sent."""


def check_resignable(
    message: "Job | Rollout", body: bytes, signatures: str, settings: DispatcherSettings
) -> None:
    """Check that our own key or a trusted key has signed a recorded message.

    Raises:
        SigningRefused: neither has.
        WrongSetting: the key, or the folder of keys, cannot be used.
    """
    if reason := ResignPolicy.from_settings(settings).refusal_reason(message, body, signatures):
        raise SigningRefused(
            f"{message.id}: refusing to sign again: the original is not signed by a trusted key"
            f" ({reason}); nothing was sent"
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
