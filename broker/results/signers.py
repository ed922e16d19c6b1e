"""Who signed a job, as far as that can be told here."""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from broker.history.queries import Accounts
    from schemas import Job
    from schemas.signature import Signatures


class Signed(NamedTuple):
    """One signature of a job; `verified` is none where no trusted keys are set here."""

    name: str
    key: str
    verified: bool | None
    reason: str = ""

    def __str__(self) -> str:
        if self.verified:
            return f"{self.name} (verified)"
        why = f"NOT VERIFIED: {self.reason}" if self.reason else "not checked: no PCM_TRUSTED_KEYS"
        return f"{self.name} (key {self.key}, {why})"


def signers(accounts: "Accounts", job_id: str) -> list[Signed]:
    """Return who signed a job that the history knows.

    Raises:
        WrongSetting: the folder of trusted keys cannot be used.
    """
    from schemas import InvalidMessage, Job
    from schemas.signature import read_signatures

    body, header = accounts.recorded(job_id)
    try:
        signatures = read_signatures(header)
    except InvalidMessage as error:
        return [Signed("somebody", "unreadable", verified=False, reason=str(error))]
    return judged(Job.read(body, tolerant=True), body, signatures) if signatures else []


def signed_by(accounts: "Accounts", job_id: str) -> str:
    """Return who signed a job, in words; nothing where nobody did, and nobody had to."""
    from broker.settings import HistorySettings, load

    if found := signers(accounts, job_id):
        return ", ".join(map(str, found))
    return "nobody" if load(HistorySettings).trusted_keys else ""


def judged(job: "Job", body: bytes, signatures: "Signatures") -> list[Signed]:
    """Return whose signatures a job bears.

    Raises:
        WrongSetting: the folder of trusted keys cannot be used.
    """
    from broker.settings import HistorySettings, load
    from broker.signing.resign_policy import keyring_of

    keyring = keyring_of(load(HistorySettings).trusted_keys)
    if keyring is None:
        return [Signed(one.name, one.key, None) for one in signatures]
    return [
        Signed(
            verdict.key.name if verdict.key else verdict.signature.name,
            verdict.signature.key,
            verdict.key is not None,
            verdict.reason,
        )
        for verdict in keyring.verify(job, body, signatures)
    ]
