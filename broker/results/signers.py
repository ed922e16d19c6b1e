"""Verify who signed a job."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from broker.settings import HistorySettings, load
from broker.signing.authority import objection_for
from broker.signing.resign_policy import keyring_of
from schemas import InvalidMessage
from schemas.orders.signature import read_signatures

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker.history.queries.jobs import JobQueries
    from broker.signing.trusted_keys import Verdict
    from schemas import Job
    from schemas.orders.signature import Signatures


class SignerVerdict(NamedTuple):
    """One signature of a job; `verified` is None if no trusted keys are set.

    `may_order`: whether its key may order the job now, for all its targets; else `reason` says why.
    """

    name: str
    key: str
    verified: bool | None
    reason: str = ""
    may_order: bool | None = None

    def __str__(self) -> str:
        if self.verified and not self.may_order:
            return f"{self.name} (verified, but may not order this now: {self.reason})"
        if self.verified:
            return f"{self.name} (verified)"
        text = f"NOT VERIFIED: {self.reason}" if self.reason else "not checked: no PCM_TRUSTED_KEYS"
        return f"{self.name} (key {self.key}, {text})"


def signers(queries: "JobQueries", job_id: str) -> list[SignerVerdict]:
    """Verify the signatures of a job in the history.

    Raises:
        WrongSetting: the folder of trusted keys cannot be used.
    """
    body, header = queries.recorded(job_id)
    try:
        signatures = read_signatures(header)
    except InvalidMessage as error:
        return [SignerVerdict("unknown", "unreadable", verified=False, reason=str(error))]
    if not signatures:
        return []
    job = queries.body(job_id)
    assert job is not None  # noqa: S101 - it is signed
    names = [target.name for target in job.targets if target.scope == "workstation" and target.name]
    return verified(job, body, signatures, queries.groups(names))


def signatures_text(queries: "JobQueries", job_id: str) -> str:
    """Return who signed a job; empty for an unsigned job if no trusted keys are set."""
    if verdicts := signers(queries, job_id):
        return ", ".join(map(str, verdicts))
    return "none" if load(HistorySettings).trusted_keys else ""


def verified(
    job: "Job",
    body: bytes,
    signatures: "Signatures",
    groups: "Mapping[str, list[str]] | None" = None,
) -> list[SignerVerdict]:
    """Verify the signatures of a job, and whether their keys may order it now.

    `groups`: the groups of the job's workstations.

    Raises:
        WrongSetting: the folder of trusted keys cannot be used.
    """
    keyring = keyring_of(load(HistorySettings).trusted_keys)
    if keyring is None:
        return [SignerVerdict(signature.name, signature.key, None) for signature in signatures]
    return [
        _with_authority(verdict, job, groups) for verdict in keyring.verify(job, body, signatures)
    ]


def _with_authority(
    verdict: "Verdict", job: "Job", groups: "Mapping[str, list[str]] | None"
) -> SignerVerdict:
    signature = verdict.signature
    if verdict.key is None:
        return SignerVerdict(signature.name, signature.key, verified=False, reason=verdict.reason)
    reason = objection_for(job.targets, [verdict], job, datetime.now(UTC), groups)
    return SignerVerdict(
        verdict.key.name, signature.key, verified=True, reason=reason, may_order=not reason
    )
