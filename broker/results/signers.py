"""Verify who signed a job."""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from broker.history.queries import Accounts
    from schemas import Job
    from schemas.orders.signature import Signatures


class SignerVerdict(NamedTuple):
    """One signature of a job; `verified` is None if no trusted keys are set."""

    name: str
    key: str
    verified: bool | None
    reason: str = ""

    def __str__(self) -> str:
        if self.verified:
            return f"{self.name} (verified)"
        text = f"NOT VERIFIED: {self.reason}" if self.reason else "not checked: no PCM_TRUSTED_KEYS"
        return f"{self.name} (key {self.key}, {text})"


def signers(accounts: "Accounts", job_id: str) -> list[SignerVerdict]:
    """Verify the signatures of a job in the history.

    Raises:
        WrongSetting: the folder of trusted keys cannot be used.
    """
    from schemas import InvalidMessage, Job
    from schemas.orders.signature import read_signatures

    body, header = accounts.recorded(job_id)
    try:
        signatures = read_signatures(header)
    except InvalidMessage as error:
        return [SignerVerdict("unknown", "unreadable", verified=False, reason=str(error))]
    return verified(Job.read(body, tolerant=True), body, signatures) if signatures else []


def signatures_text(accounts: "Accounts", job_id: str) -> str:
    """Return who signed a job; empty for an unsigned job if no trusted keys are set."""
    from broker.settings import HistorySettings, load

    if verdicts := signers(accounts, job_id):
        return ", ".join(map(str, verdicts))
    return "none" if load(HistorySettings).trusted_keys else ""


def verified(job: "Job", body: bytes, signatures: "Signatures") -> list[SignerVerdict]:
    """Verify the signatures of a job.

    Raises:
        WrongSetting: the folder of trusted keys cannot be used.
    """
    from broker.settings import HistorySettings, load
    from broker.signing.resign_policy import keyring_of

    keyring = keyring_of(load(HistorySettings).trusted_keys)
    if keyring is None:
        return [SignerVerdict(signature.name, signature.key, None) for signature in signatures]
    return [
        SignerVerdict(
            verdict.key.name if verdict.key else verdict.signature.name,
            verdict.signature.key,
            verdict.key is not None,
            verdict.reason,
        )
        for verdict in keyring.verify(job, body, signatures)
    ]
