"""`pcm send --dry-run`: show which workstations in the history a job would reach, and when."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from broker.amqp.topology import routing_keys
from broker.cli.command_line import DONE, FAILED, UsageError
from broker.cli.session import history_engine
from broker.cli.targets import known_suggestions
from broker.cli.terminal import printable
from broker.client.publishing import check_sendable
from broker.history.queries.workstations import query_fleet
from broker.rollouts.waves import divide, read_waves
from schemas import Target, WallClock
from schemas.text import counted, listed

if TYPE_CHECKING:
    from broker.history.queries.workstations import Fleet, WorkstationRow
    from broker.rollouts.waves import WaveSize
    from schemas import Job
    from schemas.times import Moment

_SHOWN = 50


@dataclass(frozen=True)
class Reach:
    """The workstations that a job would reach, by name.

    Attributes:
        reached: would receive the job and could run it.
        excluded: are among the targets, but excluded.
        not_applicable: would report it as not applicable, for their platform.
        revoked: are among the targets, but the login of their service agent was revoked.
        unknown: targets of which no workstation has checked in; without a queue, nothing is sent.
        waves: the number of workstations in each wave; empty without waves.
    """

    reached: list[str]
    excluded: list[str]
    not_applicable: list[str]
    revoked: list[str]
    unknown: list[str]
    waves: tuple[int, ...] = ()


def dry_run(jobs: "Sequence[Job]", waves: "Sequence[WaveSize]", *, as_json: bool) -> int:
    """Print what sending jobs would do; return the exit status: whether each reaches a workstation.

    Raises:
        UsageError: a job cannot be sent, or not in these waves.
    """
    try:
        for job in jobs:
            check_sendable(job)
    except ValueError as error:
        raise UsageError(str(error)) from error
    with history_engine() as engine, query_fleet(engine) as known:
        try:
            plans = [reach(job, known, waves) for job in jobs]
        except ValueError as error:
            raise UsageError(f"--waves: {error}") from error
        near = [known_suggestions(map(Target.parse, plan.unknown), engine) for plan in plans]
    for job, plan, hint in zip(jobs, plans, near, strict=True):
        if as_json:
            print(json.dumps(_as_json(job, plan)))
        else:
            print("\n".join(map(printable, _lines(job, plan, hint))))
    if not as_json:
        print("nothing was sent")
    return DONE if all(plan.reached and not plan.unknown for plan in plans) else FAILED


def reach(job: "Job", known: "Fleet", waves: "str | Sequence[WaveSize]" = ()) -> Reach:
    """Return which workstations in the history a job would reach; send nothing.

    Args:
        job: the job.
        known: the workstations (`history.fleet`).
        waves: as for `plan_rollout`; default: no waves.

    Raises:
        WrongWaves: the waves are invalid, or leave workstations out.
    """
    reached = known.reached(job)
    with_excluded = known.reached(job.model_copy(update={"excluded": ()}))
    rows = {row.name: row for row in known.workstations()}
    not_applicable = {name for name in reached if not _can_run(job, rows[name])}
    known_names = {"workstation": rows.keys(), "group": known.groups().keys()}
    plan = Reach(
        reached=[name for name in reached if name not in not_applicable],
        excluded=sorted(set(with_excluded) - set(reached)),
        not_applicable=sorted(not_applicable),
        revoked=known.revoked(job),
        unknown=[
            str(target)
            for target in job.targets
            if target.name is not None and target.name not in known_names[target.scope]
        ],
    )
    return replace(plan, waves=_wave_sizes(plan, waves)) if waves else plan


def _wave_sizes(plan: Reach, waves: "str | Sequence[WaveSize]") -> tuple[int, ...]:
    items = read_waves(waves) if isinstance(waves, str) else waves
    names = plan.reached + plan.not_applicable  # both are sent the job
    return tuple(map(len, divide(names, items))) if names else ()


def _can_run(job: "Job", row: "WorkstationRow") -> bool:
    """Whether a workstation has one of the command's platforms, or has not reported its own."""
    wanted, known = job.command.platforms, row.platforms
    return not (wanted and known) or bool(wanted & known)


def _as_json(job: "Job", plan: Reach) -> dict[str, Any]:
    return {
        "job": job.id,
        "routing_keys": routing_keys(job),
        "reached": plan.reached,
        "excluded": plan.excluded,
        "not_applicable": plan.not_applicable,
        "revoked": plan.revoked,
        "unknown_targets": plan.unknown,
        "waves": plan.waves,
        "times": job.model_dump(mode="json", include={"offer_at", "mandatory_at", "expires_at"}),
    }


def _lines(job: "Job", plan: Reach, near: str) -> Iterator[str]:
    """Yield the lines about a job; `near`: what its unknown targets could mean."""
    count = len(plan.reached)
    yield f"{job.title}: would reach {counted(count, 'workstation')}, of those that checked in"
    yield from _row("reached", plan.reached)
    yield from _row("not applicable", plan.not_applicable)
    yield from _row("excluded", plan.excluded)
    yield from _row("revoked", plan.revoked)
    yield from _row("unknown targets", plan.unknown)
    if plan.unknown:
        yield f"{'':<16}if no queue is bound for one of these, pcm send sends nothing{near}"
    if plan.waves:
        yield f"{'waves':<16}{len(plan.waves)}: of {', '.join(map(str, plan.waves))} workstations"
    yield from _row("routing keys", routing_keys(job))
    yield f"{'offer at':<16}{_when(job.offer_at, 'immediately')}"
    yield f"{'mandatory at':<16}{_when(job.mandatory_at, 'never: it is optional')}"
    yield f"{'expires at':<16}{_when(job.expiry, 'never')}"
    if job.respects_windows:
        yield f"{'starts':<16}only in each workstation's maintenance windows"


def _row(label: str, names: Sequence[str]) -> Iterator[str]:
    if names:
        total = f"{len(names)}: " if len(names) > 1 else ""
        hint = "; --json lists all" if len(names) > _SHOWN else ""
        yield f"{label:<16}{total}{listed(names, _SHOWN)}{hint}"


def _when(moment: "Moment | None", otherwise: str) -> str:
    if moment is None:
        return otherwise
    if isinstance(moment, WallClock):
        return f"{moment.local:%Y-%m-%d %H:%M:%S} on each workstation's clock"
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S %Z}"
