"""`pcm send --save`, and what becomes of it: a signed job in a file, for others to approve."""

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from broker.cli.command_line import DONE, Parser, WrongUse

if TYPE_CHECKING:
    from schemas import Job, SignedJob


def add_option(send: Parser) -> None:
    """Add the option to `pcm send`."""
    send.add_argument(
        "--save", metavar="FILE", type=Path, help="send nothing: write it signed, to be approved"
    )


@contextmanager
def told(option: str, path: Path) -> Iterator[None]:
    """Tell what is wrong with a file in one line.

    Raises:
        WrongUse: it is so.
    """
    from broker.jobs.job_file import WrongJobFile

    try:
        yield
    except OSError as error:
        raise WrongUse(f"{option}{path}: {error.strerror}") from error
    except WrongJobFile as error:
        raise WrongUse(str(error)) from error


def given(arguments: argparse.Namespace) -> "SignedJob | None":
    """Return the signed job that `--file` names; None if it names no such file."""
    # Of a pipe, what is looked at would be missing from what is read.
    if arguments.file is None or not (path := Path(arguments.file)).is_file():
        return None
    from broker.jobs.signed_file import read_signed

    with told("--file: ", path):
        signed = read_signed(path)
    for option in ("save", "secret", "waves"):
        if signed is not None and getattr(arguments, option):
            raise WrongUse(f"--{option}: the job is signed as it is; leave out one of the two")
    return signed


def job_of(arguments: argparse.Namespace, signed: "SignedJob") -> "Job":
    """Return the job that was signed."""
    from broker.jobs import signed_file

    path = Path(arguments.file)
    with told("--file: ", path):
        return signed_file.job_of(path, signed)


def save(jobs: "list[Job]", arguments: argparse.Namespace) -> int:
    """Write a job to a file, with our signature, for others to add theirs."""
    from broker.jobs.signed_file import sign_job, write_signed

    path = arguments.save
    for option in ("wait", "dry_run", "waves"):
        if getattr(arguments, option):
            raise WrongUse(f"--save: nothing is sent; leave out --{option.replace('_', '-')}")
    if len(jobs) > 1:
        raise WrongUse(f"--save: saves one job, and the file has {len(jobs)}")
    (job,) = jobs
    signed = sign_job(job)
    (signature,) = signed.signatures
    with told("--save: ", path):
        write_signed(path, signed, new=True)
    if arguments.json:
        print(json.dumps({"job": job.id, "file": str(path), "signed_by": signature.name}))
    else:
        print(f"{path}: {job.id}, signed as {signature.name}; others add theirs by pcm approve")
    return DONE
