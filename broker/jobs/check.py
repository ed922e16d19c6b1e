"""`pcm check`: validate job files; it needs no broker."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from broker.cli.command_line import DONE, USAGE, Parser
from broker.files.problems import Problem
from broker.jobs.files.job_file import WrongJobFile, read_jobs
from broker.jobs.files.signed_file import job_of, read_signed
from schemas.text import counted

if TYPE_CHECKING:
    from schemas import Job


def add_to(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add the command to a program's commands."""
    check = commands.add_parser(
        "check",
        description="Reads job files as pcm send --file does and prints their jobs, or all their"
        " errors. Sends nothing.",
    )
    check.add_argument("files", metavar="FILE", nargs="+", help="JSON, YAML or TOML; - for stdin")
    check.add_argument("--json", action="store_true", help="print JSON, a line a file")
    check.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    return max(_check(file, as_json=arguments.json) for file in arguments.files)


def _check(file: str, *, as_json: bool) -> int:
    try:
        # A pipe can be read only once.
        signed = read_signed(path) if (path := Path(file)).is_file() else None
        jobs = [job_of(path, signed)] if signed else read_jobs(file)
    except WrongJobFile as error:
        _print_errors(error, file, as_json=as_json)
    except OSError as error:
        unreadable = WrongJobFile(file, [Problem(None, "", error.strerror or str(error))])
        _print_errors(unreadable, file, as_json=as_json)
    else:
        _print_jobs(jobs, file, as_json=as_json)
        return DONE
    return USAGE


def _print_jobs(jobs: "list[Job]", file: str, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"file": file, "jobs": list(map(_job_fields, jobs)), "errors": []}))
        return
    print(f"{file}: {counted(len(jobs), 'job')}")
    for job in jobs:
        targets = ", ".join(map(str, job.targets))
        excluded = ", ".join(map(str, job.excluded))
        title = "".join(char if char.isprintable() else "?" for char in job.title)
        print(
            f"  {job.context}.{job.requirement:<9}  {title}  to {targets}"
            + (excluded and f", not to {excluded}")
        )


def _job_fields(job: "Job") -> dict[str, Any]:
    return {
        "title": job.title,
        "context": job.context,
        "requirement": job.requirement,
        "targets": list(map(str, job.targets)),
        "excluded": list(map(str, job.excluded)),
    }


def _print_errors(error: "WrongJobFile", file: str, *, as_json: bool) -> None:
    if not as_json:
        print(error, file=sys.stderr)
        return
    errors = [
        {"line": problem.line, "field": problem.field, "text": problem.text}
        for problem in error.problems
    ]
    print(json.dumps({"file": file, "jobs": [], "errors": errors}))
