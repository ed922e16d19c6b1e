"""A short chaos run; its verdict finds each kind of violation."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest

from schemas import Command, Job, Report, Result, State, workstation
from tests.chaos.__main__ import chaos
from tests.chaos.plan import draw
from tests.chaos.verdict import Evidence, Figure, Line, Poison, Sent, judge
from tests.support.rabbitmq import own_nodes


@pytest.mark.timeout(900)
def test_every_promise_is_kept_while_all_goes_wrong() -> None:
    with own_nodes():
        assert chaos(seed=5, seconds=30, workstations=3, jobs=80) == []


def test_a_seed_makes_one_plan() -> None:
    plans = [draw(seed, 60, 4, 100, given=False) for seed in (1, 1, 2)]
    assert plans[0] == plans[1] != plans[2]


def _report(state: State, agent: str = "service", code: int | None = None) -> Report:
    result = None if code is None else Result(exit_code=code, duration=timedelta(), max_memory=0)
    return Report(job_id="job", workstation="ws", agent=agent, state=state, result=result)


def _evidence() -> Evidence:
    """Return the evidence of a background job that ran and of a poison message."""
    job = Job(id="job", command=Command(argv=("x",), background=True), targets=(workstation("ws"),))
    ran = [State.RECEIVED, State.STARTED]
    refused = Report(job_id="bad", workstation="ws", agent="service", state=State.REFUSED)
    at = job.created_at.timestamp()
    return Evidence(
        sent={"job": Sent(job, ("ws",), "quick", stored=True)},
        records=[job, *map(_report, ran), _report(State.SUCCEEDED, code=0), refused],
        lines={
            ("job", "ws"): [
                Line("start", "t", "service", at, None),
                Line("end", "t", "service", at, 0),
            ]
        },
        poison=[Poison("bad", "ws", ("service",))],
        dead={("bad", "ws", "service")},
    )


def _times(evidence: Evidence, name: str, seconds: float) -> None:
    sent = evidence.sent["job"]
    moment = sent.job.created_at + timedelta(seconds=seconds)
    sent.job = sent.job.model_copy(update={name: moment})


def _silence(evidence: Evidence) -> None:
    evidence.records = [
        r for r in evidence.records if not (isinstance(r, Report) and r.job_id == "job")
    ]


def _lost(evidence: Evidence) -> None:
    _silence(evidence)
    evidence.lines.clear()


def _record_lost(evidence: Evidence) -> None:
    del evidence.records[0]


def _twice(evidence: Evidence) -> None:
    evidence.lines["job", "ws"].insert(0, Line("start", "u", "service", 0, None))


def _shown(evidence: Evidence) -> None:
    evidence.records.append(_report(State.OFFERED, "interactive-ada"))


def _no_final(evidence: Evidence) -> None:
    del evidence.records[3]


def _run_and_silent(evidence: Evidence) -> None:
    _silence(evidence)


def _many_final(evidence: Evidence) -> None:
    evidence.records.append(_report(State.INTERRUPTED))


def _no_run(evidence: Evidence) -> None:
    evidence.lines.clear()


def _half_run(evidence: Evidence) -> None:
    del evidence.lines["job", "ws"][1]


def _other_code(evidence: Evidence) -> None:
    evidence.records[3] = _report(State.FAILED, code=1)


def _other_agent(evidence: Evidence) -> None:
    evidence.records[3] = _report(State.SUCCEEDED, "interactive-ada", 0)


def _no_start(evidence: Evidence) -> None:
    del evidence.records[2]


def _ran_expired(evidence: Evidence) -> None:
    _times(evidence, "expires_at", 60)
    evidence.records[3] = _report(State.EXPIRED)


def _ran_cancelled(evidence: Evidence) -> None:
    evidence.sent["job"].withdrawing = True
    evidence.records[3] = _report(State.CANCELLED)


def _elsewhere(evidence: Evidence) -> None:
    evidence.lines["job", "other"] = evidence.lines["job", "ws"]


def _too_late(evidence: Evidence) -> None:
    _times(evidence, "expires_at", 60)
    evidence.lines["job", "ws"][0] = replace(
        evidence.lines["job", "ws"][0], at=evidence.sent["job"].job.created_at.timestamp() + 65
    )
    started = evidence.records[2]
    assert isinstance(started, Report)
    evidence.records[2] = started.model_copy(update={"at": started.at + timedelta(seconds=64)})


def _too_early(evidence: Evidence) -> None:
    _times(evidence, "mandatory_at", 5)


def _poison_lost(evidence: Evidence) -> None:
    evidence.dead.clear()


def _poison_silent(evidence: Evidence) -> None:
    del evidence.records[4]


def _remains(evidence: Evidence) -> None:
    evidence.remains.append("4711 sleep")


def _fell_over(evidence: Evidence) -> None:
    evidence.fallen.append("service ended by itself")


@pytest.mark.parametrize(
    ("tamper", "figure"),
    [
        (_lost, Figure.LOST),
        (_record_lost, Figure.LOST),
        (_twice, Figure.RUN_TWICE),
        (_shown, Figure.SHOWN),
        (_no_final, Figure.NO_FINAL),
        (_run_and_silent, Figure.NO_FINAL),
        (_many_final, Figure.MANY_FINAL),
        (_no_run, Figure.DISAGREE),
        (_half_run, Figure.DISAGREE),
        (_other_code, Figure.DISAGREE),
        (_other_agent, Figure.DISAGREE),
        (_no_start, Figure.DISAGREE),
        (_ran_expired, Figure.DISAGREE),
        (_ran_cancelled, Figure.DISAGREE),
        (_elsewhere, Figure.DISAGREE),
        (_too_late, Figure.EXPIRED_RUN),
        (_too_early, Figure.TOO_EARLY),
        (_poison_lost, Figure.POISON),
        (_poison_silent, Figure.NO_FINAL),
        (_remains, Figure.REMAINS),
        (_fell_over, Figure.FELL_OVER),
    ],
)
def test_what_is_forbidden_is_seen(tamper: Callable[[Evidence], None], figure: Figure) -> None:
    evidence = _evidence()
    assert judge(evidence) == []
    tamper(evidence)
    assert figure in {finding.figure for finding in judge(evidence)}
