"""`pcm report`: what came of a job, as a page for people or a sheet for programs."""

import argparse
import sys
from pathlib import Path

from broker.cli.command_line import DONE, Parser, Wrong, WrongUse
from broker.cli.session import name
from broker.results.query_session import looking


def add_to(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add the command to a program's commands."""
    report = commands.add_parser(
        "report",
        help="what came of a job, as a page or a sheet",
        description="Writes what came of a job as a page for people, whole in one file that needs"
        " no network, or as a sheet with a row a workstation. Give at least one of the two. Files"
        " are written whole or not at all.",
        epilog="example: pcm report JOB --html job.html --csv job.csv",
    )
    report.add_argument("job", metavar="JOB", type=name, help="the job's id; it may be cut short")
    report.add_argument("--html", metavar="FILE", help="the page")
    report.add_argument(
        "--csv",
        metavar="FILE",
        help="the sheet; - for stdout. A cell that a spreadsheet would take for a formula begins"
        " with '",
    )
    report.add_argument("--json", action="store_true", help="print JSON: which files were written")
    report.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    page, sheet = arguments.html, arguments.csv
    if page is None and sheet is None:
        raise WrongUse("report: give --html FILE, --csv FILE, or both")
    files = {
        option: _checked(option, file)
        for option, file in (("--html", page), ("--csv", sheet))
        if file is not None and (option, file) != ("--csv", "-")
    }
    if len(set(files.values())) < len(files):
        raise WrongUse("--csv: is the file of --html; name another one")
    if sheet == "-" and arguments.json:
        raise WrongUse("--json: stdout has the sheet; name a file for it")

    from broker.results.report.content import read_report
    from broker.results.report.files import write_report
    from broker.results.report.sheet import report_csv

    with looking() as history:
        report = read_report(history, arguments.job)
    try:
        write_report(report, html=files.get("--html"), csv=files.get("--csv"))
    except OSError as error:
        raise Wrong(f"{error.filename}: {error.strerror}") from error
    if sheet == "-":
        sys.stdout.buffer.write(report_csv(report).encode())
    _tell(report.job.id, files, as_json=arguments.json)
    return DONE


def _checked(option: str, text: str) -> Path:
    """Return the file that is to be written.

    Raises:
        WrongUse: there cannot be one.
    """
    try:
        file = Path(text).resolve()
        if text in {"", "-"} or file.is_dir():
            raise WrongUse(f"{option}: {text!r}: name a file")
        if file.exists() and not file.is_file():
            raise WrongUse(f"{option}: {text}: is no plain file")
        if not file.parent.is_dir():
            raise WrongUse(f"{option}: {text}: there is no folder {file.parent}")
    except OSError as error:
        raise WrongUse(f"{option}: {text}: {error.strerror}") from error
    return file


def _tell(job: str, files: dict[str, Path], *, as_json: bool) -> None:
    if as_json:
        import json

        print(json.dumps({"job": job} | {key[2:]: str(file) for key, file in files.items()}))
    else:
        for file in files.values():
            print(f"{job}: written to {file}", file=sys.stderr)
