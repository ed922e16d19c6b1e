"""`pcm dead`: list, show, requeue and drop dead letters."""

import argparse
import base64
import json
import sys
import time
from dataclasses import fields
from datetime import datetime
from typing import TYPE_CHECKING, Any

from broker.cli.command_line import DONE, FAILED, CommandError, Parser, UsageError
from broker.cli.confirm import confirm, require_terminal
from broker.cli.session import run_async
from broker.cli.terminal import Cell, Column, print_table, printable, printable_lines
from broker.cli.time_formats import age, local
from broker.dead_letters.letters import MAX_LETTERS, DeadLetters, UnknownLetter
from broker.settings import BrokerSettings, load
from schemas.text import listed

if TYPE_CHECKING:
    from collections.abc import Collection

    from broker.dead_letters.letter import Letter
_BODY_LIMIT = 8192  # characters of a body that are printed as text
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
    actions = commands.add_parser(
        "dead",
        description="Messages that an agent could not read, or that the broker could not deliver,"
        " stay in the queue pcm.dead until an administrator requeues or drops them. list and show"
        " change nothing. An ID can be shortened.",
    ).add_subparsers(dest="action", required=True, metavar="list|show|requeue|drop")
    listing = actions.add_parser("list", help="list letters", description="Lists the letters.")
    show = actions.add_parser(
        "show", help="show a letter", description="Shows a letter's headers and body."
    )
    show.add_argument("id", metavar="ID", nargs=1)
    for one in (listing, show):
        one.add_argument("--json", action="store_true", help="print JSON")
    requeue = actions.add_parser(
        "requeue",
        help="send it again",
        description="Sends letters again, and removes them when the broker has stored the new"
        " messages; letters that arrive in the meantime stay. Letters of the same message are sent"
        " once. A job is sent to all its targets: agents that have it do not run it again, and"
        " agents that have refused it still refuse it. Other messages are sent with their original"
        " routing key, and return from each agent that still cannot read them.",
    )
    drop = actions.add_parser(
        "drop", help="remove letters", description="Removes letters permanently."
    )
    drop.add_argument("--yes", action="store_true", help="with --all: do not ask for confirmation")
    for several in (requeue, drop):
        several.add_argument("id", metavar="ID", nargs="*")
        several.add_argument("--all", action="store_true", help="all letters")
    for action in (listing, show, requeue, drop):
        action.set_defaults(run=_dead)


def _dead(arguments: argparse.Namespace) -> int:
    what = arguments.action
    if what in {"requeue", "drop"} and bool(arguments.id) == arguments.all:
        raise UsageError(f"dead {what}: give ID, or --all")
    if what == "drop" and arguments.yes and not arguments.all:
        raise UsageError("dead drop: --yes is for --all; IDs need no confirmation")

    try:
        if what == "drop" and arguments.all and not arguments.yes:
            return _drop_if_agreed(arguments)
        return run_async(_do(arguments))
    except UnknownLetter as error:
        raise CommandError(str(error)) from error


def _drop_if_agreed(arguments: argparse.Namespace) -> int:
    """Drop the letters that are in the queue when the user is asked.

    They are not held while the user decides.
    """
    require_terminal("dead drop --all")
    ids: set[str] = set()

    async def read_ids() -> int:
        async with DeadLetters.open(load(BrokerSettings)) as letters:
            ids.update(letter.id for letter in letters)
        return DONE

    run_async(read_ids())
    if not ids:
        return _print_none()
    return run_async(_do(arguments, ids)) if confirm(f"drop {len(ids)} letters?") else FAILED


async def _do(arguments: argparse.Namespace, confirmed: "Collection[str] | None" = None) -> int:
    ids = tuple(getattr(arguments, "id", ()))
    # Keep as little as possible in memory: there can be many letters.
    needs_content = arguments.action in {"show", "requeue"}
    beginnings = tuple(word.lower() for word in ids or ("",)) if needs_content else ()
    async with DeadLetters.open(
        load(BrokerSettings), keep_content=lambda letter_id: letter_id.startswith(beginnings)
    ) as letters:
        if letters.left_out:
            print(
                f"pcm: there are {letters.left_out} more letters than the maximum of {MAX_LETTERS}"
                " that can be read",
                file=sys.stderr,
            )
        # Find all letters first: if an id is wrong, nothing is done.
        selected = map(letters.find, ids) if ids else letters
        chosen = list({letter.id: letter for letter in selected}.values())
        if confirmed is not None:
            chosen = [letter for letter in chosen if letter.id in confirmed]
        if arguments.action == "requeue":
            return await _requeue(letters, chosen)
        if arguments.action == "drop":
            await letters.drop(*chosen)
    # Release the letters before printing.
    if arguments.action == "show":
        return _show(chosen[0], as_json=arguments.json)
    if arguments.action == "list":
        return _list(chosen, as_json=arguments.json)
    for letter in chosen:
        print(f"{letter.id}: dropped: {_summary(letter)}")
    return DONE if chosen else _print_none()


async def _requeue(letters: "DeadLetters", chosen: "list[Letter]") -> int:
    status = DONE
    async for same, keys, error in letters.requeue_all(chosen):
        if error is not None:
            for letter in same:
                print(f"pcm: {letter.id}: {printable(str(error))}", file=sys.stderr)
            status = FAILED
            continue
        first, *others = same
        print(f"{first.id}: sent again as {printable(listed(keys, 1))}", flush=True)
        for other in others:
            print(f"{other.id}: the same message as {first.id}", flush=True)
    return status if chosen else _print_none()


def _list(letters: "list[Letter]", *, as_json: bool) -> int:
    if as_json:
        print(json.dumps([_fields(letter) for letter in letters], indent=2))
    elif letters:
        _print_table(letters)
    else:
        _print_none()
    return DONE


def _print_none() -> int:
    print("no dead letters")
    return DONE


def _print_table(letters: "list[Letter]") -> None:
    now = time.time()
    print_table(_COLUMNS, [_cells(letter, now) for letter in letters])


def _cells(letter: "Letter", now: float) -> "Collection[object]":
    cells = _fields(letter) | {"at": _at(letter.at, now), "workstation": _workstation(letter)}
    del cells["verified"]
    return cells.values()


def _workstation(letter: "Letter") -> str:
    """Return the workstation, and whether it is only what the letter itself says."""
    if letter.verified or not letter.workstation:
        return letter.workstation
    return f"{letter.workstation} (unverified)"


def _at(at: datetime | None, now: float) -> Cell | None:
    return Cell(local(at.timestamp()), age(at.timestamp(), now)) if at else None


def _fields(letter: "Letter") -> dict[str, Any]:
    return {
        "id": letter.id,
        "at": letter.at.isoformat() if letter.at else None,
        "workstation": letter.workstation,
        "agent": letter.agent,
        "verified": letter.verified,
        "job": letter.job_id or None,
        "count": letter.count,
        "reason": letter.reason,
    }


def _summary(letter: "Letter") -> str:
    parts = (_workstation(letter), letter.agent, letter.job_id, letter.reason)
    return printable("  ".join(part for part in parts if part))


def _show(letter: "Letter", *, as_json: bool) -> int:
    body = letter.body or b""
    if as_json:
        data = {field.name: getattr(letter, field.name) for field in fields(letter)}
        del data["job_id"]
        data |= _fields(letter) | {"body": _as_json(body)}
        print(json.dumps(data, indent=2, default=_plain))
        return DONE
    for name, value in (
        ("id", letter.id),
        ("at", _local(letter.at)),
        ("reason", letter.reason),
        ("queue", letter.queue),
        ("workstation", _workstation(letter)),
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
    beginning = printable_lines(text[:_BODY_LIMIT])
    more = len(text) - _BODY_LIMIT
    return beginning if more <= 0 else f"{beginning}\n... {more} more characters; --json prints all"


def _plain(value: object) -> str:
    """Return a header's value as JSON."""
    if isinstance(value, datetime):
        return value.isoformat()
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)


def _local(at: datetime | None) -> str:
    return local(at.timestamp()) if at else "-"
