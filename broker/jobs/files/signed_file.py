"""Read and write a signed job in a file, with the exact bytes that were signed."""

import os
from pathlib import Path

from broker.client.publishing import check_sendable
from broker.files.problems import Problem
from broker.jobs.files.job_file import WrongJobFile
from broker.settings import DispatcherSettings, WrongSetting, load
from broker.signing.signer import Signer
from schemas import InvalidMessage, Job, SignedJob
from schemas.errors import PcmError

_LIMIT = 4_000_000


class SignedAlready(PcmError):
    """This key's owner has signed the job already."""


def load_signer(settings: DispatcherSettings | None = None) -> Signer:
    """Load the signer of `PCM_SIGNING_KEY`.

    Raises:
        WrongSetting: it is not set, or the key cannot be used.
    """
    signer = Signer.load((settings or load(DispatcherSettings)).signing_key)
    if signer is None:
        raise WrongSetting(
            "PCM_SIGNING_KEY: is not set: name the file of a private key to sign with"
        )
    return signer


def sign_job(job: Job, settings: DispatcherSettings | None = None) -> SignedJob:
    """Sign a job; send nothing.

    `write_signed` saves it, `approve_job` adds a signature, `Dispatcher.dispatch_signed` sends it.

    Args:
        job: the job.
        settings: the signing key; default: from the environment.

    Raises:
        WrongSetting: no signing key is set, or it cannot be used.
    """
    signature = load_signer(settings).sign(job)
    return SignedJob(text=job.body().decode(), signatures=(signature,))


def approve_job(signed: SignedJob, settings: DispatcherSettings | None = None) -> SignedJob:
    """Return a signed job with one more signature.

    Check the job first: `Job.read(signed.text)`.

    Args:
        signed: the signed job.
        settings: the signing key; default: from the environment.

    Raises:
        SignedAlready: the owner of the signing key has signed it already.
        InvalidMessage: it holds no job.
        WrongSetting: no signing key is set, or it cannot be used.
    """
    return add_signature(signed, load_signer(settings))


def add_signature(signed: SignedJob, signer: Signer) -> SignedJob:
    """Return a signed job with a signer's signature; see `approve_job`."""
    if any(signature.name == signer.name for signature in signed.signatures):
        raise SignedAlready(f"{signer.name} has signed it already; use another key")
    return signed.with_signature(signer.sign(Job.read(signed.text), signed.job_body))


def read_signed(path: str | Path) -> SignedJob | None:
    """Return the signed job of a file; None if the file holds none.

    Raises:
        WrongJobFile: the signed job is invalid.
        OSError: the file cannot be read.
    """
    with Path(path).open("rb") as opened:
        body = opened.read(_LIMIT)
    if not body.lstrip().startswith(b"{") or b'"signed_job"' not in body[:200]:
        return None
    try:
        return SignedJob.read(body)
    except InvalidMessage as error:
        raise WrongJobFile(str(path), [Problem(None, "", str(error))]) from error


def job_of(path: Path, signed: SignedJob) -> Job:
    """Return the job of a signed job's file.

    Raises:
        WrongJobFile: the job is invalid, or cannot be sent any more.
    """
    try:
        job = Job.read(signed.text)
        check_sendable(job)
    except ValueError as error:
        raise WrongJobFile(str(path), [Problem(None, "", str(error))]) from error
    return job


def write_signed(path: str | Path, signed: SignedJob, *, new: bool) -> None:
    """Write a signed job; replace an existing file atomically.

    Raises:
        OSError: the file cannot be written, or it exists and should be `new`.
    """
    path = Path(path)
    text = signed.model_dump_json(indent=2) + "\n"
    if new:
        with path.open("x", encoding="utf-8") as opened:
            opened.write(text)
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("x", encoding="utf-8") as opened:
            opened.write(text)
            opened.flush()
            os.fsync(opened.fileno())
        temporary.chmod(path.stat().st_mode & 0o777)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
