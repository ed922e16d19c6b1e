"""`pcm report`: write a job's results as an HTML page or as CSV."""

import argparse
import json
import sys
from pathlib import Path

from broker.cli.command_line import DONE, CommandError, Parser, UsageError
from broker.cli.session import name
from broker.results.query_session import query_session
from broker.results.report.content import read_report
from broker.results.report.csv_table import report_csv
from broker.results.report.files import write_report


def add_to(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add the command to a program's commands."""
    report = commands.add_parser(
        "report",
        description="Writes a job's results as an HTML page in one file that needs no network, or"
        " as CSV with a row for each workstation. Give at least one of the two. Files are replaced"
        " atomically.",
        epilog="example: pcm report JOB --html job.html --csv job.csv",
    )
    report.add_argument("job", metavar="JOB", type=name, help="the job's id, or its beginning")
    report.add_argument("--html", metavar="FILE", help="file of the page")
    report.add_argument(
        "--csv",
        metavar="FILE",
        help="file of the CSV; - for stdout. A cell that a spreadsheet would take for a formula"
        " gets a leading '",
    )
    report.add_argument("--json", action="store_true", help="print JSON: the written files")
    report.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    html, csv = arguments.html, arguments.csv
    if html is None and csv is None:
        raise UsageError("report: give --html FILE, --csv FILE, or both")
    files = {
        option: _writable_file(option, file)
        for option, file in (("--html", html), ("--csv", csv))
        if file is not None and (option, file) != ("--csv", "-")
    }
    if len(set(files.values())) < len(files):
        raise UsageError("--csv: is the file of --html; name another one")
    if csv == "-" and arguments.json:
        raise UsageError("--json: not with --csv -; name a file for the CSV")

    with query_session() as history:
        content = read_report(history, arguments.job)
    try:
        write_report(content, html=files.get("--html"), csv=files.get("--csv"))
    except OSError as error:
        raise CommandError(f"{error.filename}: {error.strerror}") from error
    if csv == "-":
        sys.stdout.buffer.write(report_csv(content).encode())
    _print_files(content.job.id, files, as_json=arguments.json)
    return DONE


def _writable_file(option: str, text: str) -> Path:
    """Return the file to write.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        file = Path(text).resolve()
        if text in {"", "-"} or file.is_dir():
            raise UsageError(f"{option}: {text!r}: name a file")
        if file.exists() and not file.is_file():
            raise UsageError(f"{option}: {text}: is not a regular file")
        if not file.parent.is_dir():
            raise UsageError(f"{option}: {text}: there is no folder {file.parent}")
    except OSError as error:
        raise UsageError(f"{option}: {text}: {error.strerror}") from error
    return file


def _print_files(job: str, files: dict[str, Path], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"job": job} | {key[2:]: str(file) for key, file in files.items()}))
    else:
        for file in files.values():
            print(f"{job}: written to {file}", file=sys.stderr)
