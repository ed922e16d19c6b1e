"""`pcm approve`: add a signature to a saved job."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from broker.cli.command_line import DONE, FAILED, CommandError, Parser, UsageError
from broker.cli.confirm import confirm, require_terminal
from broker.cli.terminal import printable
from broker.jobs.files.signed_file import (
    SignedAlready,
    add_signature,
    load_signer,
    read_signed,
    read_signed_job,
    write_signed,
)
from broker.jobs.saved import file_errors
from broker.results.signers import verified

if TYPE_CHECKING:
    from schemas import Job, SignedJob


def add_to(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add the command to a program's commands."""
    approve = commands.add_parser(
        "approve",
        description="Shows a job that pcm send --save wrote to FILE, asks for confirmation, and"
        " adds the signature of PCM_SIGNING_KEY. pcm send --file FILE sends the job with all its"
        " signatures.",
    )
    approve.add_argument("file", metavar="FILE", type=Path)
    approve.add_argument("--yes", action="store_true", help="do not ask for confirmation")
    approve.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    path = arguments.file
    signer = load_signer()
    if not arguments.yes:
        require_terminal("approve")
    with file_errors("", path):
        signed = _read(path)
        job = read_signed_job(path, signed)
        try:
            approved = add_signature(signed, signer)
        except SignedAlready as error:
            raise CommandError(f"{path}: {error}") from error
        _show(job, signed)
        if not arguments.yes and not confirm(f"sign it as {signer.name}?"):
            return FAILED
        write_signed(path, approved, new=False)
    print(f"{path}: signed as {signer.name}; pcm send --file {path} sends it")
    return DONE


def _read(path: Path) -> "SignedJob":
    signed = read_signed(path)
    if signed is None:
        raise UsageError(f"{path}: is not a job saved by pcm send --save")
    return signed


def _show(job: "Job", signed: "SignedJob") -> None:
    """Print the fields of a job that its signer has to check."""
    signers = ", ".join(map(str, verified(job, signed.job_body, signed.signatures)))
    fields = job.model_dump(mode="json", exclude_defaults=True, exclude={"command", "version"})
    command = job.command.model_dump(
        mode="json", exclude_defaults=True, exclude={"argv", "secrets"}
    )
    secrets = job.command.secrets
    for label, value in (
        ("command", str(job.command)),
        *command.items(),
        ("secrets", ", ".join(secrets.names) if secrets else ""),
        *fields.items(),
        ("signatures", signers or "none"),
    ):
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        if text:
            print(f"{label.replace('_', ' '):<20}{printable(text)}")
