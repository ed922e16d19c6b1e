"""`pcm dead`: what could not be delivered or read, for people and as JSON."""

import argparse
import base64
import json
import sys
import time
from dataclasses import fields
from datetime import datetime
from typing import TYPE_CHECKING, Any

from broker.cli.command_line import DONE, FAILED, Parser, Wrong, WrongUse
from broker.cli.confirm import agreed, check_askable
from broker.cli.session import finish
from broker.cli.terminal import Cell, Column, print_table, printable, printable_lines
from broker.cli.time_formats import age, local

if TYPE_CHECKING:
    from collections.abc import Collection

    from broker.dead_letters.letter import Letter
    from broker.dead_letters.letters import DeadLetters

_SHOWN = 8192  # characters of a body that people are shown
_COLUMNS = (
    Column("id"),
    Column("at"),
    Column("workstation", rank=1, least=12),
    Column("agent", rank=4, least=7),
    Column("job", rank=2, least=15),
    Column("count", rank=3, right=True),
    Column("reason", least=20),
)


def add_to(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add the command to a program's commands."""
    about = "look at what could not be delivered or read"
    actions = commands.add_parser(
        "dead",
        help=about,
        description="What an agent could not read, and what the broker gave up delivering, is in"
        " the queue pcm.dead until an administrator sends it again or drops it. Looking changes"
        " nothing. An ID may be cut short.",
    ).add_subparsers(dest="what", required=True, metavar="list|show|requeue|drop")
    listing = actions.add_parser("list", help="a row a letter", description="Lists the letters.")
    show = actions.add_parser(
        "show", help="all of one", description="Shows a letter's headers and body."
    )
    show.add_argument("id", metavar="ID", nargs=1)
    for one in (listing, show):
        one.add_argument("--json", action="store_true", help="print JSON")
    requeue = actions.add_parser(
        "requeue",
        help="send it again",
        description="Sends letters again, and removes them once the broker has stored the new"
        " message; what comes back here meanwhile stays. Letters of the same message are sent"
        " once. A job goes to all that it is for: who has it already does not run it once more,"
        " and who has refused it does not take it. Whatever else goes where it was sent at first,"
        " and comes back from each agent that still cannot read it.",
    )
    drop = actions.add_parser(
        "drop", help="remove it for good", description="Removes letters for good."
    )
    drop.add_argument("--yes", action="store_true", help="with --all: do not ask back")
    for several in (requeue, drop):
        several.add_argument("id", metavar="ID", nargs="*")
        several.add_argument("--all", action="store_true", help="all letters")
    for action in (listing, show, requeue, drop):
        action.set_defaults(run=_dead)


def _dead(arguments: argparse.Namespace) -> int:
    """Do what is asked, and return the exit status."""
    what = arguments.what
    if what in {"requeue", "drop"} and bool(arguments.id) == arguments.all:
        raise WrongUse(f"dead {what}: give ID, or --all")
    if what == "drop" and arguments.yes and not arguments.all:
        raise WrongUse("dead drop: --yes goes with --all; IDs are not asked about")

    from broker.dead_letters.letters import UnknownLetter

    try:
        if what == "drop" and arguments.all and not arguments.yes:
            return _drop_if_agreed(arguments)
        return finish(_do(arguments))
    except UnknownLetter as error:
        raise Wrong(str(error)) from error


def _drop_if_agreed(arguments: argparse.Namespace) -> int:
    """Drop all letters that are there when the user is asked; meanwhile others may look."""
    check_askable("dead drop --all")
    seen: set[str] = set()

    async def look() -> int:
        from broker.dead_letters.letters import DeadLetters
        from broker.settings import BrokerSettings, load

        async with DeadLetters.open(load(BrokerSettings)) as letters:
            seen.update(letter.id for letter in letters)
        return DONE

    finish(look())
    if not seen:
        return _none()
    return finish(_do(arguments, seen)) if agreed(f"drop {len(seen)} letters for good?") else FAILED


async def _do(arguments: argparse.Namespace, agreed_on: "Collection[str] | None" = None) -> int:
    from broker.dead_letters.letters import MOST, DeadLetters
    from broker.settings import BrokerSettings, load

    ids = tuple(getattr(arguments, "id", ()))
    # Of all others only rows are kept: there may be very many.
    kept = arguments.what in {"show", "requeue"}
    beginnings = tuple(word.lower() for word in ids or ("",)) if kept else ()
    async with DeadLetters.open(
        load(BrokerSettings), whole=lambda known: known.startswith(beginnings)
    ) as letters:
        if letters.left_out:
            print(
                f"pcm: there are {letters.left_out} letters more than the {MOST} that can be"
                " looked at together",
                file=sys.stderr,
            )
        # All ids are looked up first: where one is wrong, nothing is done.
        found = map(letters.find, ids) if ids else letters
        chosen = list({letter.id: letter for letter in found}.values())
        if agreed_on is not None:
            chosen = [letter for letter in chosen if letter.id in agreed_on]
        if arguments.what == "requeue":
            return await _requeue(letters, chosen)
        if arguments.what == "drop":
            await letters.drop(*chosen)
    # Others may look while we print.
    if arguments.what == "show":
        return _show(chosen[0], as_json=arguments.json)
    if arguments.what == "list":
        return _list(chosen, as_json=arguments.json)
    for letter in chosen:
        print(f"{letter.id}: dropped: {_line(letter)}")
    return DONE if chosen else _none()


async def _requeue(letters: "DeadLetters", chosen: "list[Letter]") -> int:
    status = DONE
    async for same, keys, error in letters.requeue_all(chosen):
        if error is not None:
            for stays in same:
                print(f"pcm: {stays.id}: {printable(str(error))}", file=sys.stderr)
            status = FAILED
            continue
        letter, *others = same
        more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
        print(f"{letter.id}: sent again as {printable(keys[0])}{more}", flush=True)
        for other in others:
            print(f"{other.id}: the same message as {letter.id}", flush=True)
    return status if chosen else _none()


def _list(letters: "list[Letter]", *, as_json: bool) -> int:
    if as_json:
        print(json.dumps([_row(letter) for letter in letters], indent=2))
    elif letters:
        _print_table(letters)
    else:
        _none()
    return DONE


def _none() -> int:
    print("no dead letters")
    return DONE


def _print_table(letters: "list[Letter]") -> None:
    now = time.time()
    rows = [(_row(letter) | {"at": _at(letter.at, now)}).values() for letter in letters]
    print_table(_COLUMNS, rows)


def _at(at: datetime | None, now: float) -> Cell | None:
    return Cell(local(at.timestamp()), age(at.timestamp(), now)) if at else None


def _row(letter: "Letter") -> dict[str, Any]:
    return {
        "id": letter.id,
        "at": letter.at.isoformat() if letter.at else None,
        "workstation": letter.workstation,
        "agent": letter.agent,
        "job": letter.job_id or None,
        "count": letter.count,
        "reason": letter.reason,
    }


def _line(letter: "Letter") -> str:
    parts = (letter.workstation, letter.agent, letter.job_id, letter.reason)
    return printable("  ".join(part for part in parts if part))


def _show(letter: "Letter", *, as_json: bool) -> int:
    body = letter.body or b""
    if as_json:
        rest = {part.name: getattr(letter, part.name) for part in fields(letter)}
        del rest["job_id"]
        whole = rest | _row(letter) | {"body": _as_json(body)}
        print(json.dumps(whole, indent=2, default=_plain))
        return DONE
    for name, value in (
        ("id", letter.id),
        ("at", _local(letter.at)),
        ("reason", letter.reason),
        ("queue", letter.queue),
        ("workstation", letter.workstation),
        ("agent", letter.agent),
        ("job", letter.job_id),
        ("kind", letter.kind),
        ("routing key", letter.routing_key),
        ("login", letter.login),
        ("message id", letter.message_id),
        ("content type", letter.content_type),
        ("count", letter.count),
        ("size", letter.size),
    ):
        if value not in ("", "-"):
            print(f"{name:<14}{printable(str(value))}")
    print()
    print(_as_text(body))
    return DONE


def _as_json(body: bytes) -> "str | dict[str, str]":
    try:
        return body.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(body).decode()}


def _as_text(body: bytes) -> str:
    try:
        text = json.dumps(json.loads(body), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        text = body.decode(errors="backslashreplace")
    shown = printable_lines(text[:_SHOWN])
    more = len(text) - _SHOWN
    return shown if more <= 0 else f"{shown}\n... {more} characters more; --json prints it whole"


def _plain(value: object) -> str:
    """Return a header's value as JSON knows it."""
    if isinstance(value, datetime):
        return value.isoformat()
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)


def _local(at: datetime | None) -> str:
    return local(at.timestamp()) if at else "-"
