"""`pcm output`: what a job's commands wrote."""

import argparse
import hashlib
import json
import sys
from typing import TYPE_CHECKING

from broker.cli.command_line import DONE, FAILED, Parser, Wrong
from broker.cli.session import name
from broker.cli.terminal import printable_lines
from broker.results.query_session import ROWS, exit_text, few, looking, words

if TYPE_CHECKING:
    from collections.abc import Iterator

    from broker.history.queries import Accounts, JobRow, Pair
    from schemas import Output, Result

_STREAMS = ("stdout", "stderr")


def add_to(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add the command to a program's commands."""
    output = commands.add_parser(
        "output",
        help="what a job's commands wrote",
        description="Shows what a job's commands wrote, under a line for each workstation. What"
        " would do something to a terminal is escaped there. Of one workstation, --stdout or"
        " --stderr into a file or a pipe gives the very bytes.",
        epilog="exit status 1: nothing was written\n\nexamples:\n"
        "  pcm output JOB --together                   who wrote the same, and what\n"
        "  pcm output JOB ws-042 --stdout > list.txt   the file that its command printed",
    )
    output.add_argument("job", metavar="JOB", type=name, help="the job's id; it may be cut short")
    output.add_argument(
        "workstations",
        metavar="WORKSTATION",
        nargs="*",
        type=name,
        help=f"only of these (default: of all, {ROWS} at most)",
    )
    which = output.add_mutually_exclusive_group()
    which.add_argument("--stdout", action="store_true", help="only what was written to stdout")
    which.add_argument("--stderr", action="store_true", help="only what was written to stderr")
    output.add_argument(
        "--together", action="store_true", help="what is equal once, with all its workstations"
    )
    output.add_argument("--all", action="store_true", help="however many there are")
    output.add_argument("--json", action="store_true", help="print JSON, a line a workstation")
    output.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    streams = [one for one in _STREAMS if getattr(arguments, one)] or list(_STREAMS)
    names = list(dict.fromkeys(arguments.workstations)) or None
    with looking() as history:
        accounts = history.accounts
        row = accounts.find(arguments.job)
        pairs = _pairs(accounts, row, names)
        show = _Show(accounts, row, pairs, streams, everything=arguments.all or bool(names))
        if arguments.json:
            written = show.as_json(names)
        elif arguments.together:
            written = show.together(names)
        elif names and len(names) == 1 and len(streams) == 1 and not sys.stdout.isatty():
            written = show.raw(names[0])
        else:
            written = show.apart(names)
    if not written:
        what = f" to {streams[0]}" if len(streams) == 1 else ""
        where = f" on {few(names)}" if names else ""
        print(f"pcm: {row.id}: nothing was written{what}{where}", file=sys.stderr)
    return DONE if written else FAILED


def _pairs(accounts: "Accounts", row: "JobRow", names: list[str] | None) -> "dict[str, Pair]":
    """Return what came of the job on workstations.

    Raises:
        Wrong: it is not for one of those that were named.
    """
    found = {pair.workstation: pair for pair in accounts.pairs(row.id, names=names)}
    if missing := [one for one in names or () if one not in found]:
        raise Wrong(f"{row.id} is not for {few(missing)}")
    return found


class _Show:
    """Shows what a job's commands wrote; each way returns whether that was anything."""

    def __init__(
        self,
        accounts: "Accounts",
        row: "JobRow",
        pairs: "dict[str, Pair]",
        streams: list[str],
        *,
        everything: bool,
    ) -> None:
        self._accounts = accounts
        self._row = row
        self._pairs = pairs
        self._streams = streams
        self._most = len(pairs) if everything else ROWS

    def as_json(self, names: list[str] | None) -> bool:
        """Show a line of JSON for each workstation."""
        written = False
        for place, (workstation, result) in enumerate(self._results(names)):
            written = written or self._wrote(result)
            if place < self._most:
                pair = self._pairs[workstation]
                told = {"workstation": workstation, "state": pair.state}
                shown = result.model_dump(mode="json", include=set(self._streams))
                print(json.dumps({**told, "exit_code": pair.exit_code, **shown}))
            elif written:
                break
        self._tell_left_out(len(names) if names else self._count())
        return written

    def raw(self, workstation: str) -> bool:
        """Write the very bytes of one workstation's one stream."""
        (stream,) = self._streams
        for _, result in self._accounts.results(self._row.id, [workstation]):
            output: Output = getattr(result, stream)
            sys.stdout.buffer.write(output.head + output.tail)
            sys.stdout.buffer.flush()
            if output.dropped:
                print(
                    f"pcm: {output.dropped:,} bytes are missing after the first"
                    f" {len(output.head):,}: the agent keeps PCM_OUTPUT_LIMIT of them",
                    file=sys.stderr,
                )
            return self._wrote(result)
        return False

    def apart(self, names: list[str] | None) -> bool:
        """Show each workstation by itself."""
        shown = 0
        silent = set(names or ())
        for workstation, result in self._results(names):
            if self._wrote(result):
                silent.discard(workstation)
                shown += 1
                if shown > self._most:
                    continue
                self._print(self._header(self._pairs[workstation]), result)
        for workstation in sorted(silent):
            print(self._header(self._pairs[workstation]) + "  (nothing was written)")
        self._tell_left_out(shown)
        return shown > 0

    def together(self, names: list[str] | None) -> bool:
        """Show what is equal once, the most frequent first."""
        alike: dict[bytes, list[str]] = {}
        for workstation, result in self._results(names):
            if self._wrote(result):
                alike.setdefault(self._print_of(workstation, result), []).append(workstation)
        groups = sorted(alike.values(), key=lambda group: (-len(group), group))
        for group in groups[: self._most]:
            # Read again: all that was written may be too much to be kept.
            (_, result), *_ = self._accounts.results(self._row.id, group[:1])
            count = f"{len(group):,} workstations" if len(group) > 1 else "1 workstation"
            members = few(group, max(20, self._most))
            self._print(f"{self._header(self._pairs[group[0]], count)}\n== {members}", result)
        self._tell_left_out(len(groups))
        return bool(groups)

    def _results(self, names: list[str] | None) -> "Iterator[tuple[str, Result]]":
        for workstation, result in self._accounts.results(self._row.id, names):
            if workstation in self._pairs:  # else it has ended since they were read
                yield workstation, result

    def _count(self) -> int:
        return sum(pair.duration is not None for pair in self._pairs.values())

    def _wrote(self, result: "Result") -> bool:
        return any(getattr(result, stream) != type(result.stdout)() for stream in self._streams)

    def _print_of(self, workstation: str, result: "Result") -> bytes:
        pair = self._pairs[workstation]
        parts = [f"{pair.state} {pair.exit_code} {pair.signal}".encode()]
        for stream in self._streams:
            output: Output = getattr(result, stream)
            parts += [str(len(output.head)).encode(), output.head, str(output.dropped).encode()]
            parts.append(output.tail)
        return hashlib.sha256(b"\0".join(parts)).digest()

    def _header(self, pair: "Pair", who: str = "") -> str:
        code = exit_text(pair.exit_code, pair.signal)
        end = f"  exit {code}" if pair.exit_code is not None else f"  {code}" if code else ""
        return f"== {who or pair.workstation}  {words(pair.state)}{end}"

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

    def _tell_left_out(self, count: int) -> None:
        if count > self._most:
            what = f"{count - self._most:,} more"
            print(f"pcm: {what}; --all shows them", file=sys.stderr)


def _write(output: "Output") -> None:
    """Write what a command wrote: as it is, except to a terminal."""
    gap = f"\n... {output.dropped:,} bytes left out ...\n" if output.dropped else ""
    if sys.stdout.isatty():
        text = output.head.decode(errors="backslashreplace") + gap
        text += output.tail.decode(errors="backslashreplace")
        print(printable_lines(text.removesuffix("\n")))
        return
    data = output.head + gap.encode() + output.tail
    sys.stdout.buffer.write(data if data.endswith(b"\n") else data + b"\n")
    sys.stdout.buffer.flush()
