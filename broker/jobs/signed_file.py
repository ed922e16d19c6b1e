"""Read and write a signed job in a file, with the exact bytes that were signed."""

import os
from pathlib import Path

from broker.client.publishing import check_sendable
from broker.jobs.job_file import WrongJobFile
from broker.jobs.marked import Problem
from schemas import InvalidMessage, Job, SignedJob

_LIMIT = 4_000_000


def read_signed(path: Path) -> SignedJob | None:
    """Return the signed job of a file; None if the file holds none.

    Raises:
        WrongJobFile: the signed job is invalid.
        OSError: the file cannot be read.
    """
    with path.open("rb") as opened:
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


def write_signed(path: Path, signed: SignedJob, *, new: bool) -> None:
    """Write a signed job; replace an existing file atomically.

    Raises:
        OSError: the file cannot be written, or it exists and should be `new`.
    """
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
