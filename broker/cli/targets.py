"""Read targets as people write them: lists, files of names, and globs that the history resolves."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from broker.amqp.connection import Unroutable
from broker.cli.command_line import CommandError, UsageError
from broker.cli.session import history_engine, optional_history_engine
from schemas import PackageCondition, Target, explain
from schemas.text import did_you_mean, listed, nearest

if TYPE_CHECKING:
    from sqlalchemy import Engine

_SHOWN = 20  # names in a line
_LEAST_LIKENESS = 0.8  # so that ws-42 is near to ws-41, but not to ws-7
_WILDCARDS = frozenset("*?[")
_CONDITIONS = ("installed:", "missing:")

_Names = dict[str, dict[str, list[str]]]  # by scope; of a group its members
_Known = Callable[[], _Names]  # asks the history once, and only if it is needed


def read_targets(option: str, texts: Iterable[str]) -> tuple[Target, ...]:
    """Return the targets of `--to` or `--not-to`; print on stderr what globs mean.

    Raises:
        UsageError: one is not a target, a file cannot be read, or a glob matches nothing.
    """
    return _targets(option, texts, cache(_known))


def _targets(option: str, texts: Iterable[str], known: _Known) -> tuple[Target, ...]:
    found: list[Target] = []
    for word in list(_words(option, texts)):
        if word.startswith(_CONDITIONS):
            found += _on_which_it_holds(option, word)
            continue
        scoped = word if ":" in word or word == "all" else f"workstation:{word}"
        if _WILDCARDS.isdisjoint(scoped):
            found.append(_parse(option, scoped))
        else:
            found += _matching(option, scoped, known())
    return tuple(dict.fromkeys(found))


def read_workstations(option: str, texts: Iterable[str]) -> list[str]:
    """Return the names of workstations; groups and globs are resolved by the history.

    Raises:
        UsageError: as `read_targets` does, or a group has no members; `all` is none.
    """
    names: list[str] = []
    known = cache(_known)
    for target in _targets(option, texts, known):
        if target.scope == "all":
            raise UsageError(f"{option}: all: name workstations or groups")
        if target.scope == "workstation":
            names.append(str(target.name))
            continue
        groups = known()["group"]
        members = groups.get(str(target.name), [])
        if not members:
            near = nearest_name(str(target.name), groups)
            raise UsageError(f"{option}: {target}: no workstation is in it{near}")
        print(f"pcm: {target} means {listed(members, _SHOWN)}", file=sys.stderr)
        names += members
    return list(dict.fromkeys(names))


def nearest_name(word: str, known: Iterable[str]) -> str:
    """Return the known name nearest to an unknown one, as the end of a message, if one is near."""
    return did_you_mean(nearest(word, known, _LEAST_LIKENESS))


def suggestions(targets: Iterable[Target]) -> str:
    """Return what targets that the history does not know could mean, as the end of a message."""
    with optional_history_engine() as engine:
        return "" if engine is None else known_suggestions(targets, engine)


def known_suggestions(targets: Iterable[Target], engine: "Engine") -> str:
    """Return what targets could mean, as `suggestions` does, from a history that is open."""
    known = _names(engine)
    near = dict.fromkeys(_nearest(target, known) for target in targets)
    return did_you_mean(listed([name for name in near if name], _SHOWN))


def print_suggestions(targets: Iterable[Target]) -> None:
    """Print on stderr what targets that the history does not know could mean."""
    if text := suggestions(targets):
        print(f"pcm: {text.removeprefix('; ')}", file=sys.stderr)


@contextmanager
def suggest_for_unroutable(targets: Iterable[Target]) -> Iterator[None]:
    """Add suggestions to the error that no queue is bound for one of the targets."""
    try:
        yield
    except CommandError as error:
        if isinstance(error.__cause__, Unroutable) and (text := suggestions(targets)):
            raise CommandError(f"{error}{text}") from error
        raise


def workstation_targets(names: Iterable[str]) -> list[Target]:
    """Return workstations as targets."""
    return [Target.parse(f"workstation:{name}") for name in names]


def _nearest(target: Target, known: Mapping[str, Mapping[str, object]]) -> str | None:
    """Return the target that an unknown one could mean; a name can be that of a group."""
    name = str(target.name)
    if target.scope not in known or name in known[target.scope]:
        return None
    words = {group: f"group:{group}" for group in known["group"]}
    if target.scope == "workstation":
        words |= {workstation: workstation for workstation in known["workstation"]}
    near = nearest(name, words, _LEAST_LIKENESS)
    return words[near] if near else None


def _words(option: str, texts: Iterable[str]) -> Iterator[str]:
    """Yield the words of lists such as ws-1,ws-2, and of files such as @lab.txt."""
    for text in texts:
        if text.startswith(_CONDITIONS):  # its limits have commas
            yield text
            continue
        if not text.startswith("@"):
            yield from (word for word in text.split(",") if word) if text.strip(",") else [text]
            continue
        try:
            lines = Path(text[1:]).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "is not UTF-8"
            raise UsageError(f"{option}: {text}: {reason}") from error
        words = [
            word for line in lines for word in line.partition("#")[0].replace(",", " ").split()
        ]
        if not words:
            raise UsageError(f"{option}: {text}: names nothing")
        yield from words


def read_conditions(option: str, texts: Iterable[str]) -> tuple[PackageCondition, ...]:
    """Return the conditions on packages among the targets of an option.

    Raises:
        UsageError: one is wrong, or there are other targets as well.
    """
    texts = list(texts)
    conditions = [text for text in texts if text.startswith(_CONDITIONS)]
    if conditions and len(conditions) < len(texts):
        raise UsageError(f"{option}: {conditions[0]}: leave out the other targets, or this one")
    return tuple(_condition(option, text) for text in conditions)


def _condition(option: str, text: str) -> PackageCondition:
    try:
        return PackageCondition.parse(text)
    except ValueError as error:
        reason = explain(error) if isinstance(error, ValidationError) else str(error)
        raise UsageError(f"{option}: {reason}") from error


def _on_which_it_holds(option: str, text: str) -> Sequence[Target]:
    """Return the workstations on which a condition on packages holds, according to the history."""
    from broker.history.history import query_history  # most targets need no history

    condition = _condition(option, text)
    with history_engine() as engine, query_history(engine) as history:
        names = history.packages.matching(condition)
        known = history.packages.names()
    if not names:
        spec = condition.spec.name
        near = "" if spec in known else did_you_mean(nearest(spec, known, _LEAST_LIKENESS))
        raise UsageError(f"{option}: {text}: holds on no workstation that the history knows{near}")
    print(f"pcm: {condition} means {listed(names, _SHOWN)}", file=sys.stderr)
    return workstation_targets(names)


def _parse(option: str, text: str) -> Target:
    try:
        return Target.parse(text)
    except ValueError as error:
        reason = explain(error) if hasattr(error, "errors") else str(error)  # type: ignore[arg-type]
        raise UsageError(f"{option}: {reason}") from error


def _matching(option: str, text: str, known: _Names) -> Sequence[Target]:
    """Return the targets that a glob means, according to the history."""
    scope, _, glob = text.partition(":")
    if scope not in known:
        raise UsageError(
            f"{option}: {text!r} is not a target: use all, group:NAME or workstation:NAME"
        )
    names = sorted(name for name in known[scope] if fnmatchcase(name, glob.lower()))
    if not names:
        raise UsageError(f"{option}: {text}: matches no {scope} that the history knows")
    print(f"pcm: {text} means {listed(names, _SHOWN)}", file=sys.stderr)
    return [_parse(option, f"{scope}:{name}") for name in names]


def _known() -> _Names:
    """Return the known workstations, and the groups with their members."""
    with history_engine() as engine:
        return _names(engine)


def _names(engine: "Engine") -> _Names:
    from broker.history.queries.workstations import query_fleet  # most targets need no history

    with query_fleet(engine) as fleet:
        return {
            "workstation": {name: [name] for name in fleet.all_names()},
            "group": fleet.groups(),
        }
