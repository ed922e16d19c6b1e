"""Whether what was recorded may be signed here: whoever signs for others makes it their own.

A schedule, a rollout's plan or an earlier job is read from the broker's stream, into which anyone
can write who has a password of the broker's. Were it signed as it is found, that would be enough
to have anything signed.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Self

from broker.settings import DispatcherSettings, WrongSetting
from broker.signing.key_files import UnsafeFile
from broker.signing.signer import Signer
from broker.signing.trusted_keys import Keyring
from schemas import InvalidMessage, TrustedKey
from schemas.errors import PcmError
from schemas.signature import read_signatures

if TYPE_CHECKING:
    from broker.signing.signer import Signable
    from schemas import Job, Rollout


class Vouching:
    """Knows what was recorded by our own key, or by one that is trusted here."""

    def __init__(self, signer: Signer | None, keyring: Keyring) -> None:
        self._signs = signer is not None
        self._keyring = keyring
        if signer is not None:
            own = TrustedKey(name=signer.name, key=signer.public_text)
            self._keyring = Keyring([own, *keyring.keys.values()])

    @classmethod
    def by(cls, settings: DispatcherSettings) -> Self:
        """Return what the settings say.

        Raises:
            WrongSetting: there is no such key, or folder of keys.
        """
        signer = Signer.load(settings.signing_key)
        folder = settings.trusted_keys if signer else None
        return cls(signer, keyring_of(folder) or Keyring())

    def objection(self, asked: "Signable", body: bytes, signatures: str) -> str:
        """Return why it is not to be signed again; nothing if it may, or nothing is signed here.

        Args:
            asked: what was recorded.
            body: its very bytes.
            signatures: the header that came with it.
        """
        if not self._signs:
            return ""
        try:
            verdicts = list(self._keyring.judge(asked, body, read_signatures(signatures)))
        except InvalidMessage as error:
            return str(error)
        if any(verdict.key for verdict in verdicts):
            return ""
        return "; ".join(verdict.reason for verdict in verdicts) or "it is not signed"


class SigningRefused(PcmError):
    """What was recorded is not signed again here, and why; nothing was sent."""


def check_vouched(
    asked: "Job | Rollout", body: bytes, signatures: str, settings: DispatcherSettings
) -> None:
    """Refuse to sign what was recorded, unless by us or by a key that is trusted here.

    Raises:
        SigningRefused: it is so.
        WrongSetting: there is no such key, or folder of keys.
    """
    if reason := Vouching.by(settings).objection(asked, body, signatures):
        raise SigningRefused(
            f"{asked.id}: would be signed as PCM_SIGNING_KEY says, but whose it is, is not known:"
            f" {reason}; nothing was sent"
        )


def keyring_of(folder: Path | None) -> Keyring | None:
    """Return the keys of the folder that `PCM_TRUSTED_KEYS` names; None if it names none.

    Raises:
        WrongSetting: it cannot be used, or a file in it.
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
