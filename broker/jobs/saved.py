"""`pcm send --save` and `--file`: write and read a signed job, for others to approve."""

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from broker.cli.command_line import DONE, Parser, UsageError

if TYPE_CHECKING:
    from schemas import Job, SignedJob


def add_save_option(send: Parser) -> None:
    """Add the option to `pcm send`."""
    send.add_argument(
        "--save", metavar="FILE", type=Path, help="send nothing; write the signed job for approval"
    )


@contextmanager
def file_errors(option: str, path: Path) -> Iterator[None]:
    """Map errors of a file to one-line messages.

    Raises:
        UsageError: the file cannot be read or written, or holds no valid job.
    """
    from broker.jobs.files.job_file import WrongJobFile

    try:
        yield
    except OSError as error:
        raise UsageError(f"{option}{path}: {error.strerror}") from error
    except WrongJobFile as error:
        raise UsageError(str(error)) from error


def read_from_option(arguments: argparse.Namespace) -> "SignedJob | None":
    """Return the signed job of `--file`; None if the file holds none."""
    # A pipe can be read only once.
    if arguments.file is None or not (path := Path(arguments.file)).is_file():
        return None
    from broker.jobs.files.signed_file import read_signed

    with file_errors("--file: ", path):
        signed = read_signed(path)
    for option in ("save", "secret", "waves"):
        if signed is not None and getattr(arguments, option):
            raise UsageError(f"--{option}: the file's job is signed already; leave out one of them")
    return signed


def load_signed_job(arguments: argparse.Namespace, signed: "SignedJob") -> "Job":
    """Return the job of `--file` that was signed."""
    from broker.jobs.files import signed_file

    path = Path(arguments.file)
    with file_errors("--file: ", path):
        return signed_file.read_signed_job(path, signed)


def save(jobs: "list[Job]", arguments: argparse.Namespace) -> int:
    """Write a job to a file with our signature; other signers add theirs."""
    from broker.jobs.files.signed_file import sign_job, write_signed

    path = arguments.save
    for option in ("wait", "dry_run", "waves"):
        if getattr(arguments, option):
            raise UsageError(f"--save: nothing is sent; leave out --{option.replace('_', '-')}")
    if len(jobs) > 1:
        raise UsageError(f"--save: saves one job; the file has {len(jobs)}")
    (job,) = jobs
    signed = sign_job(job)
    (signature,) = signed.signatures
    with file_errors("--save: ", path):
        write_signed(path, signed, new=True)
    if arguments.json:
        print(json.dumps({"job": job.id, "file": str(path), "signed_by": signature.name}))
    else:
        print(f"{path}: {job.id}, signed as {signature.name}; pcm approve adds signatures")
    return DONE
