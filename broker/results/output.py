"""`pcm output`: print the output of a job's commands."""

import argparse
import hashlib
import json
import sys
from typing import TYPE_CHECKING

from broker.cli.command_line import DONE, FAILED, CommandError, Parser
from broker.cli.session import name
from broker.cli.terminal import printable_lines
from broker.results.query_session import (
    ROWS,
    exit_text,
    query_session,
    state_text,
    unknown_workstation_hint,
)
from schemas.text import listed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from broker.history.history import History
    from broker.history.queries.jobs import JobQueries
    from broker.history.queries.rows import JobRow, OutcomeRow
    from schemas import Output, Result

_STREAMS = ("stdout", "stderr")
_MAX_NAMES = 10


def add_to(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add the command to a program's commands."""
    output = commands.add_parser(
        "output",
        description="Prints the output of a job's commands, with a header line for each"
        " workstation. On a terminal, control characters are escaped. With one workstation and"
        " --stdout or --stderr, a file or pipe receives the exact bytes.",
        epilog="exit status 1: there is no output\n\nexamples:\n"
        "  pcm output JOB --together                   equal outputs once\n"
        "  pcm output JOB ws-042 --stdout > list.txt   the exact bytes of one output",
    )
    output.add_argument("job", metavar="JOB", type=name, help="the job's id, or its beginning")
    output.add_argument(
        "workstations",
        metavar="WORKSTATION",
        nargs="*",
        type=name,
        help=f"only these (default: all, {ROWS} at most)",
    )
    which = output.add_mutually_exclusive_group()
    which.add_argument("--stdout", action="store_true", help="only stdout")
    which.add_argument("--stderr", action="store_true", help="only stderr")
    output.add_argument(
        "--together", action="store_true", help="print equal outputs once, with their workstations"
    )
    output.add_argument("--all", action="store_true", help=f"more than {ROWS} workstations")
    output.add_argument("--json", action="store_true", help="print JSON, one line a workstation")
    output.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    streams = [one for one in _STREAMS if getattr(arguments, one)] or list(_STREAMS)
    names = list(dict.fromkeys(arguments.workstations)) or None
    with query_session() as history:
        queries = history.jobs
        row = queries.find(arguments.job)
        outcomes = _outcomes(history, row, names)
        printer = _OutputPrinter(
            queries, row, outcomes, streams, everything=arguments.all or bool(names)
        )
        if arguments.json:
            written = printer.print_json(names)
        elif arguments.together:
            written = printer.print_grouped(names)
        elif names and len(names) == 1 and len(streams) == 1 and not sys.stdout.isatty():
            written = printer.write_bytes(names[0])
        else:
            written = printer.print_each(names)
    if not written:
        stream = f" on {streams[0]}" if len(streams) == 1 else ""
        where = f" of {listed(names, _MAX_NAMES)}" if names else ""
        print(f"pcm: {row.id}: no output{stream}{where}", file=sys.stderr)
    return DONE if written else FAILED


def _outcomes(
    history: "History", row: "JobRow", names: list[str] | None
) -> "dict[str, OutcomeRow]":
    """Return the job's state on each workstation.

    Raises:
        CommandError: it is not for one of the named workstations.
    """
    found = history.jobs.outcomes(row.id, names=names)
    outcomes = {outcome.workstation: outcome for outcome in found}
    if missing := [name for name in names or () if name not in outcomes]:
        near = unknown_workstation_hint(history, missing[0]) if len(missing) == 1 else ""
        raise CommandError(f"{row.id} is not for {listed(missing, _MAX_NAMES)}{near}")
    return outcomes


class _OutputPrinter:
    """Prints the output of a job's commands; each method returns whether there was any."""

    def __init__(
        self,
        queries: "JobQueries",
        row: "JobRow",
        outcomes: "dict[str, OutcomeRow]",
        streams: list[str],
        *,
        everything: bool,
    ) -> None:
        self._queries = queries
        self._row = row
        self._outcomes = outcomes
        self._streams = streams
        self._most = len(outcomes) if everything else ROWS

    def print_json(self, names: list[str] | None) -> bool:
        """Print a line of JSON for each workstation."""
        written = False
        for index, (workstation, result) in enumerate(self._results(names)):
            written = written or self._has_output(result)
            if index < self._most:
                outcome = self._outcomes[workstation]
                fields = {
                    "workstation": workstation,
                    "state": outcome.state,
                    "exit_code": outcome.exit_code,
                }
                streams = result.model_dump(mode="json", include=set(self._streams))
                print(json.dumps({**fields, **streams}))
            elif written:
                break
        self._print_left_out(len(names) if names else self._count())
        return written

    def write_bytes(self, workstation: str) -> bool:
        """Write the exact bytes of one workstation's stream."""
        (stream,) = self._streams
        for _, result in self._queries.results(self._row.id, [workstation]):
            output: Output = getattr(result, stream)
            sys.stdout.buffer.write(output.head + output.tail)
            sys.stdout.buffer.flush()
            if output.dropped:
                print(
                    f"pcm: {output.dropped:,} bytes are missing after the first"
                    f" {len(output.head):,}: agents keep PCM_OUTPUT_LIMIT bytes",
                    file=sys.stderr,
                )
            return self._has_output(result)
        return False

    def print_each(self, names: list[str] | None) -> bool:
        """Print the output of each workstation."""
        shown = 0
        without_output = set(names or ())
        for workstation, result in self._results(names):
            if self._has_output(result):
                without_output.discard(workstation)
                shown += 1
                if shown > self._most:
                    continue
                self._print(self._header(self._outcomes[workstation]), result)
        for workstation in sorted(without_output):
            print(self._header(self._outcomes[workstation]) + "  (no output)")
        self._print_left_out(shown)
        return shown > 0

    def print_grouped(self, names: list[str] | None) -> bool:
        """Print equal outputs once, the most frequent first."""
        by_digest: dict[bytes, list[str]] = {}
        for workstation, result in self._results(names):
            if self._has_output(result):
                by_digest.setdefault(self._digest(workstation, result), []).append(workstation)
        groups = sorted(by_digest.values(), key=lambda group: (-len(group), group))
        for group in groups[: self._most]:
            # Read it again: all outputs together may not fit into memory.
            (_, result), *_ = self._queries.results(self._row.id, group[:1])
            count = f"{len(group):,} workstations" if len(group) > 1 else "1 workstation"
            members = listed(group, max(20, self._most))
            self._print(f"{self._header(self._outcomes[group[0]], count)}\n== {members}", result)
        self._print_left_out(len(groups))
        return bool(groups)

    def _results(self, names: list[str] | None) -> "Iterator[tuple[str, Result]]":
        for workstation, result in self._queries.results(self._row.id, names):
            if workstation in self._outcomes:  # otherwise it has ended after the outcomes were read
                yield workstation, result

    def _count(self) -> int:
        return sum(outcome.duration is not None for outcome in self._outcomes.values())

    def _has_output(self, result: "Result") -> bool:
        return any(getattr(result, stream) != type(result.stdout)() for stream in self._streams)

    def _digest(self, workstation: str, result: "Result") -> bytes:
        outcome = self._outcomes[workstation]
        parts = [f"{outcome.state} {outcome.exit_code} {outcome.signal}".encode()]
        for stream in self._streams:
            output: Output = getattr(result, stream)
            parts += [str(len(output.head)).encode(), output.head, str(output.dropped).encode()]
            parts.append(output.tail)
        return hashlib.sha256(b"\0".join(parts)).digest()

    def _header(self, outcome: "OutcomeRow", title: str = "") -> str:
        code = exit_text(outcome.exit_code, outcome.signal)
        end = f"  exit {code}" if outcome.exit_code is not None else f"  {code}" if code else ""
        return f"== {title or outcome.workstation}  {state_text(outcome.state)}{end}"

    def _print(self, header: str, result: "Result") -> None:
        print(header)
        for stream in self._streams:
            output: Output = getattr(result, stream)
            if output == type(output)():
                continue
            if stream == "stderr":
                print("-- stderr")
            sys.stdout.flush()
            _write(output)
        print()

    def _print_left_out(self, count: int) -> None:
        if count > self._most:
            print(f"pcm: {count - self._most:,} more; --all shows them", file=sys.stderr)


def _write(output: "Output") -> None:
    """Write a command's output; escape it on a terminal."""
    gap = f"\n... {output.dropped:,} bytes left out ...\n" if output.dropped else ""
    if sys.stdout.isatty():
        text = output.head.decode(errors="backslashreplace") + gap
        text += output.tail.decode(errors="backslashreplace")
        print(printable_lines(text.removesuffix("\n")))
        return
    data = output.head + gap.encode() + output.tail
    sys.stdout.buffer.write(data if data.endswith(b"\n") else data + b"\n")
    sys.stdout.buffer.flush()
