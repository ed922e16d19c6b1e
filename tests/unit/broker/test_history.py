"""How the stream's entries become the history's rows, in SQLite and in PostgreSQL."""

import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice, permutations
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select

from broker.history import reader
from broker.history import schema as tables
from broker.history.engine import open_history
from broker.history.position import read_position
from broker.history.projection.projection import Projection
from broker.history.queries.jobs import query_jobs
from broker.history.queries.rows import STATES, JobRow
from broker.history.queries.workstations import query_fleet
from broker.history.reader import rebuild
from broker.jobs.dry_run import reach
from broker.schedules.queries import running_before
from broker.stream.entry import StreamEntry
from schemas import (
    AgentsRevoked,
    Cancellation,
    CheckIn,
    Command,
    Facts,
    Job,
    Message,
    Output,
    Pause,
    Report,
    Result,
    State,
    Target,
    WorkstationForgotten,
    everyone,
    group,
    workstation,
)
from schemas.orders.schedule import Occurrence
from schemas.reports.check_in import MISSING_AFTER
from schemas.reports.report import final_id
from tests.support.postgresql import schema
from tests.support.schedules import NOON, make

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
PAUSE = Pause(workstation="ws-2", paused=True, reason="exam", sender="ada@hq", created_at=NOW)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/history.db"
    else:
        with schema() as made:
            yield made


@pytest.fixture
def history(url: str) -> Iterator[Engine]:
    engine = open_history(url)
    yield engine
    engine.dispose()


def project(engine: Engine, messages: Sequence[Message], first: int = 0, cut: int = 1000) -> None:
    """Project messages that stand in the stream from an offset on, some in a transaction."""
    entries = [
        StreamEntry(first + place, getattr(message, "kind"), "", message.body(), "guest")  # noqa: B009
        for place, message in enumerate(messages)
    ]
    for start in range(0, len(entries), cut):
        with engine.begin() as connection:
            projection = Projection(connection)
            projection.add(entries[start : start + cut])
            projection.flush()


def check_in(name: str, *groups: str, agent: str = "service", **more: Any) -> CheckIn:
    interval = timedelta(minutes=15)
    return CheckIn(workstation=name, agent=agent, groups=groups, interval=interval, at=NOW, **more)


def job(*targets: Target, **more: Any) -> Job:
    more.setdefault("created_at", NOW)
    return Job(command=Command(argv=("true",), background=True), targets=targets, **more)


def report(of: Job, name: str, state: State, after: float = 0.0, **more: Any) -> Report:
    if state.final:
        more.setdefault("id", final_id(of.id, name))
    if state is State.SUCCEEDED:
        more.setdefault("result", result(0))
    return Report(
        job_id=of.id,
        workstation=name,
        agent="service",
        state=state,
        at=NOW + timedelta(seconds=after),
        **more,
    )


def result(exit_code: int, error: str = "") -> Result:
    return Result(
        exit_code=exit_code,
        duration=timedelta(seconds=1),
        max_memory=1,
        stderr=Output(head=error.encode()),
    )


def states(engine: Engine, of: Job, at: datetime = NOW) -> dict[str, str]:
    with query_jobs(engine, at.timestamp()) as asked:
        return {outcome.workstation: outcome.state for outcome in asked.outcomes(of.id)}


def content(engine: Engine) -> dict[str, list[Any]]:
    """Return all that a history holds."""
    with engine.connect() as connection:
        return {
            table.name: sorted(map(tuple, connection.execute(select(table)).all()), key=repr)
            for table in tables.CONTENT
        }


def test_each_workstation_is_in_exactly_one_state_and_they_add_up(history: Engine) -> None:
    names = [f"ws-{number}" for number in range(20)]
    sent = job(everyone, workstation("stranger"), expires_at=NOW + timedelta(days=1))
    told = [State.RECEIVED, State.OFFERED, State.POSTPONED, State.ACCEPTED, State.STARTED]
    told += [state for state in State if state.final]
    told += [State.DECLINED]
    stories = [report(sent, name, state) for name, state in zip(names, told, strict=False)]
    project(history, [*(check_in(name) for name in names), sent, *stories])
    with query_jobs(history, NOW.timestamp()) as asked:
        row = asked.find(sent.id)
        outcomes = asked.outcomes(sent.id)
    assert row.counts == Counter(outcome.state for outcome in outcomes)
    assert row.counts.total() == len({outcome.workstation for outcome in outcomes}) == 21
    assert set(row.counts) <= set(STATES)
    expected = {name: str(state) for name, state in zip(names, told, strict=False)}
    silent = dict.fromkeys(names[len(told) :], "queued")
    assert states(history, sent) == {**expected, **silent, "stranger": "unreachable"}


def test_who_never_reported_is_expired_or_cancelled_when_the_job_is(history: Engine) -> None:
    expiring = job(everyone, expires_at=NOW + timedelta(hours=1))
    withdrawn = job(everyone)
    partly = job(everyone)
    project(
        history,
        [
            check_in("on"),
            check_in("off"),
            *(expiring, withdrawn, partly),
            report(expiring, "on", State.SUCCEEDED),
            report(withdrawn, "on", State.STARTED),
            Cancellation(job_id=withdrawn.id, reason="no", sender="ada@hq", created_at=NOW),
            Cancellation(job_id=partly.id, workstations=("off",), created_at=NOW),
        ],
    )
    assert states(history, expiring) == {"on": "succeeded", "off": "queued"}
    later = NOW + timedelta(hours=2)
    assert states(history, expiring, later) == {"on": "succeeded", "off": "expired"}
    assert states(history, withdrawn) == {"on": "started", "off": "cancelled"}
    assert states(history, partly) == {"on": "queued", "off": "queued"}
    with query_jobs(history, later.timestamp()) as asked:
        row = asked.find(withdrawn.id)
        found = asked.rows(asked.has_state(["expired"]))
    assert (row.cancelled_by, row.cancel_reason) == ("ada@hq", "no")
    assert [each.id for each in found] == [expiring.id]


def test_a_job_is_for_those_who_were_there_when_it_was_sent(history: Engine) -> None:
    before, after = job(group("lab")), job(group("lab"), workstation("ws-3"))
    project(
        history,
        [
            *(check_in("ws-1", "lab"), check_in("ws-2", "office"), before),
            *(check_in("ws-3", "office"), check_in("ws-2", "lab"), check_in("ws-1"), after),
        ],
    )
    assert states(history, before) == {"ws-1": "queued"}
    assert states(history, after) == {"ws-2": "queued", "ws-3": "queued"}


def test_how_the_stream_is_cut_up_does_not_matter(history: Engine) -> None:
    chance = random.Random(7)
    names = [f"ws-{number}" for number in range(8)]
    messages: list[Message] = [check_in(name, chance.choice(["lab", "hq"])) for name in names]
    sent: list[Job] = []
    for _ in range(300):
        kind = chance.random()
        if kind < 0.1 or not sent:
            sent.append(job(chance.choice([everyone, group("lab"), workstation("ws-2")])))
            messages.append(sent[-1])
        elif kind < 0.2:
            messages.append(check_in(chance.choice(names), chance.choice(["lab", "hq"])))
        elif kind < 0.23:
            messages.append(WorkstationForgotten(workstation=chance.choice(names), created_at=NOW))
        elif kind < 0.26:
            messages.append(Cancellation(job_id=chance.choice(sent).id, created_at=NOW))
        else:
            state = chance.choice(list(State))
            about = report(chance.choice(sent), chance.choice(names), state, chance.random())
            messages.append(about)
    project(history, messages)
    whole = content(history)
    assert len(whole["outcomes"]) > 50
    for cut in (1, 7, 50):
        rebuild(history)
        assert not any(content(history).values())
        project(history, messages, cut=cut)
        assert content(history) == whole


def test_a_final_state_is_final_whatever_the_clocks_say(history: Engine) -> None:
    sent = job(workstation("ws-1"))
    project(
        history,
        [
            check_in("ws-1"),
            sent,
            report(sent, "ws-1", State.FAILED, -3600, result=result(3, "E: no\nmore")),
            report(sent, "ws-1", State.STARTED, 7200),
            report(sent, "ws-1", State.EXPIRED, 9000, id="of-another-make"),
        ],
    )
    with query_jobs(history, NOW.timestamp()) as asked:
        (outcome,) = asked.outcomes(sent.id)
        (failure,) = asked.failures(sent.id)
        assert len(asked.events(sent.id, "ws-1")) == 3
        assert dict(asked.results(sent.id))["ws-1"].exit_code == 3
    assert (outcome.state, outcome.exit_code, outcome.line) == ("failed", 3, "E: no")
    assert (failure.count, failure.example, failure.exit_code) == (1, "ws-1", 3)


def test_a_report_of_another_job_with_the_id_changes_nothing(history: Engine) -> None:
    sent = job(workstation("ws-1"))
    project(history, [sent, report(sent, "ws-1", State.SUCCEEDED)])
    project(history, [report(sent, "ws-1", State.CONFLICT, 60)], first=9)
    assert states(history, sent) == {"ws-1": "succeeded"}


def test_reports_of_a_job_that_is_not_known_make_it_known(history: Engine) -> None:
    lost = job(workstation("ws-1"))
    project(history, [report(lost, "ws-1", State.STARTED)])
    assert states(history, lost) == {"ws-1": "started"}
    with query_jobs(history) as asked:
        assert asked.body(lost.id) is None
    project(history, [lost], first=5)
    with query_jobs(history) as asked:
        assert asked.body(lost.id) == lost
        assert asked.find(lost.id[:20]).command == "true"


def test_a_workstation_that_is_forgotten_is_unreachable_until_it_speaks(history: Engine) -> None:
    done, waits, runs = job(everyone), job(everyone), job(everyone)
    project(
        history,
        [
            *(check_in("ws-1"), done, waits, runs),
            report(done, "ws-1", State.SUCCEEDED),
            report(runs, "ws-1", State.STARTED),
            WorkstationForgotten(workstation="ws-1", sender="ada@hq", created_at=NOW),
        ],
    )
    found = [states(history, each)["ws-1"] for each in (done, waits, runs)]
    assert found == ["succeeded", "unreachable", "unreachable"]
    with query_fleet(history) as asked:
        assert asked.workstations() == []
        assert asked.groups() == {}
    project(history, [report(runs, "ws-1", State.INTERRUPTED), check_in("ws-1")], first=20)
    assert states(history, runs)["ws-1"] == "interrupted"
    assert states(history, waits)["ws-1"] == "unreachable"


def test_each_job_ends_though_no_agent_reports_it(history: Engine) -> None:
    """In the history's view, at reading time; a real report counts, however late it comes."""
    day = timedelta(days=1)
    plain, short = job(everyone), job(everyone, expires_at=NOW + day)
    sent = [check_in("ws-1"), check_in("ws-2"), plain, short]
    received = [report(each, "ws-2", State.RECEIVED) for each in (plain, short)]
    project(history, [*sent, *received])
    with query_jobs(history, NOW.timestamp()) as asked:
        assert asked.find(plain.id).expires_at == (NOW + 30 * day).timestamp()
    assert states(history, plain, NOW + 29 * day) == {"ws-1": "queued", "ws-2": "received"}
    assert states(history, short, NOW + 1.5 * day) == {"ws-1": "expired", "ws-2": "received"}
    late = (NOW + 2.5 * day).timestamp()
    with query_jobs(history, late) as asked:
        concluded = {each.workstation: each.concluded for each in asked.outcomes(short.id)}
        assert concluded == {"ws-1": True, "ws-2": True}
        assert asked.find(short.id).counts == {"expired": 2}
        assert [group.count for group in asked.failures(short.id)] == [2]
        assert [row.id for row in asked.search(states=["received"])] == [plain.id]
    with query_fleet(history, late) as asked:
        assert [row.waiting for row in asked.workstations()] == [1, 1]
    project(history, [report(short, "ws-2", State.SUCCEEDED, 60)], first=20)
    with query_jobs(history, late) as asked:
        (outcome,) = asked.outcomes(short.id, names=["ws-2"])
        assert (outcome.state, outcome.concluded) == ("succeeded", False)


def test_a_queue_that_was_made_anew_and_a_sleep_stay_known(history: Engine) -> None:
    told = [check_in("ws-1", queue_new_at=NOW), check_in("ws-1", woke_at=NOW), check_in("ws-1")]
    project(history, told)
    with query_fleet(history, NOW.timestamp()) as asked:
        (service,) = asked.workstations()[0].agents
    assert (service.queue_new_at, service.woke_at) == (NOW.timestamp(), NOW.timestamp())


def test_a_revoked_workstation_is_reached_by_nothing_until_it_checks_in(history: Engine) -> None:
    waits, received, later = job(everyone), job(everyone), job(everyone)
    only_user = AgentsRevoked(workstation="ws-1", agents=("interactive-ada",), sender="ada@hq")
    both = only_user.model_copy(update={"agents": ("service", "interactive-ada")})
    project(
        history,
        [
            *(check_in("ws-1", "lab"), check_in("ws-1", agent="interactive-ada")),
            *(waits, received, report(received, "ws-1", State.RECEIVED), only_user),
        ],
    )
    assert [states(history, each)["ws-1"] for each in (waits, received)] == ["queued", "received"]
    project(history, [both, later], first=20)
    # What its agents have received, they still run.
    found = [states(history, each).get("ws-1") for each in (waits, received, later)]
    assert found == ["unreachable", "received", None]
    with query_fleet(history, NOW.timestamp()) as asked:
        (row,) = asked.workstations()
        assert (row.status(asked.now), row.agents[1].status(asked.now)) == ("revoked", "revoked")
        assert asked.reached(job(everyone)) == asked.reached(job(group("lab"))) == []
        plan = reach(job(group("lab")), asked)
        assert (plan.reached, plan.revoked, plan.unknown) == ([], ["ws-1"], [])
    project(history, [check_in("ws-1", "lab")], first=30)
    with query_fleet(history, NOW.timestamp()) as asked:
        assert asked.reached(job(everyone)) == ["ws-1"]
        assert asked.workstations()[0].status(asked.now) == "up"


def test_the_fleet_is_as_it_last_checked_in(history: Engine) -> None:
    facts = Facts(os="linux", arch="x86_64", release="debian-12", memory=2**33)
    waits = job(everyone)
    project(
        history,
        [
            check_in("ws-1", "lab", facts=facts, program="0.1.0", windows="Sun 02:00-06:00"),
            check_in("ws-1", "user-said-so", agent="interactive-ada", facts=facts),
            check_in("ws-2", "lab", "hq", up=False, facts=facts),
            check_in("ws-2", "hq", pause=PAUSE, facts=facts),
            waits,
        ],
    )
    with query_fleet(history, NOW.timestamp()) as asked:
        first, second = asked.workstations()
        assert (first.groups, second.groups) == (("lab",), ("hq",))  # the service's count
        assert [each.agent for each in first.agents] == ["service", "interactive-ada"]
        assert (first.os, first.memory, first.waiting) == ("linux", 2**33, 1)
        assert second.agents[0].status(asked.now) == "paused"
        assert (second.agents[0].paused_by, second.agents[0].pause_reason) == ("ada@hq", "exam")
        assert first.agents[0].status(asked.now) == "up"
        assert first.agents[0].status(asked.now + 3600) == "missing"
        assert asked.reached(job(group("hq"), workstation("ws-1"))) == ["ws-1", "ws-2"]
        assert asked.reached(job(everyone, excluded=(group("lab"),))) == ["ws-2"]
        assert [row.name for row in asked.workstations(group="lab")] == ["ws-1"]


def test_a_users_agent_does_not_speak_for_the_whole_workstation(history: Engine) -> None:
    """Neither by check-ins nor by reports, in any order, once its service has spoken."""
    linux, windows = (
        Facts(os=name, arch="x86_64", release="r", memory=1) for name in ("linux", "windows")
    )
    by_service = check_in("ws-1", "lab", facts=linux)
    by_user = check_in("ws-1", "hq", agent="interactive-ada", facts=windows)
    late = NOW + timedelta(days=1000)
    by_user = by_user.model_copy(update={"at": late})
    sent = job(everyone).model_copy(update={"command": Command(argv=("true",))})
    said = report(sent, "ws-1", State.OFFERED).model_copy(
        update={"agent": "interactive-ada", "at": late}
    )
    for cut in (1, 10):
        for order in permutations((by_user, by_service, sent, said)):
            rebuild(history)
            project(history, [*order, by_user], cut=cut)
            with query_fleet(history, NOW.timestamp()) as asked:
                (row,) = asked.workstations()
            assert (row.os, row.groups, row.seen_at) == ("linux", ("lab",), NOW.timestamp())
    rebuild(history)
    project(history, [by_user])  # there is no service
    with query_fleet(history, NOW.timestamp()) as asked:
        (row,) = asked.workstations()
    assert (row.os, row.groups, row.seen_at) == ("windows", ("hq",), late.timestamp())


def test_by_what_an_agent_decides_is_kept(history: Engine) -> None:
    told: dict[str, Any] = {
        "windows": "Sun 02:00-06:00",
        "zone": "Europe/Berlin",
        "accept_offers": True,
    }
    times: dict[str, Any] = {
        "countdown": timedelta(minutes=30),
        "takeover_grace": timedelta(0),
        "missing_after": timedelta(hours=2),
    }
    project(history, [check_in("new", **told, **times), check_in("older")])
    with query_fleet(history) as asked:
        rows = {row.name: row.agents[0] for row in asked.workstations()}
    new, older = rows["new"], rows["older"]
    assert (new.windows, new.zone, new.accept_offers) == tuple(told.values())
    assert (new.countdown, new.takeover_grace, new.missing_after) == (1800, 0, 7200)
    assert (older.windows, older.zone, older.countdown, older.takeover_grace) == (
        "",
        "",
        None,
        None,
    )
    assert older.missing_after == MISSING_AFTER.total_seconds()  # the default of older agents


def test_what_is_due_before_a_job_is_known_by_agent(history: Engine) -> None:
    def due(after: int, **more: Any) -> Job:
        command = Command(argv=("true",), **more)
        mandatory_at = NOW + timedelta(seconds=after)
        target = (workstation("ws-1"), workstation("ws-2"))
        return Job(command=command, targets=target, created_at=NOW, mandatory_at=mandatory_at)

    first, second, later, hidden = due(10), due(20), due(30), due(10, background=True)
    ada: dict[str, Any] = {"agent": "interactive-ada"}
    told = [
        report(first, "ws-1", State.RECEIVED, 40),
        *(report(first, "ws-1", State.OFFERED, after).model_copy(update=ada) for after in (60, 50)),
        report(second, "ws-1", State.RECEIVED, 45),
        report(second, "ws-2", State.RECEIVED, 46),
        report(later, "ws-1", State.RECEIVED, 47),
        report(hidden, "ws-1", State.RECEIVED, 48),
    ]
    project(history, [first, second, later, hidden, *told])
    start = NOW.timestamp()
    with query_jobs(history) as asked:
        found = asked.due_before("ws-1", start + 30)
    assert {agent: sorted(rows) for agent, rows in found.items()} == {
        "service": [(start + 10, start + 40), (start + 20, start + 45)],
        "interactive-ada": [(start + 10, start + 50)],
    }


def test_ids_may_be_cut_short_where_that_is_clear(history: Engine) -> None:
    sent = [job(everyone, id=f"job-{letter}") for letter in "abc"]
    project(history, sent)
    from broker.history.queries.rows import UnknownId

    with query_jobs(history) as asked:
        assert asked.find("job-b").id == "job-b"
        with pytest.raises(UnknownId, match="matches several: job-c, job-b, job-a"):
            asked.find("job-")
        with pytest.raises(UnknownId, match="no such job"):
            asked.find("jo%")
        newest: list[JobRow] = asked.rows(most=2)
        assert [row.id for row in newest] == ["job-c", "job-b"]


def test_what_cannot_be_read_is_passed_over(history: Engine) -> None:
    sent = job(workstation("ws-1"))
    good = report(sent, "ws-1", State.SUCCEEDED).body()
    body = b"\n".join((b"{", json.dumps({"kind": "report"}).encode(), good))
    with history.begin() as connection:
        projection = Projection(connection)
        projection.add(
            [
                StreamEntry(0, "report", "", body, "guest"),
                StreamEntry(1, "other", "", b"\xff", "guest"),
            ]
        )
        projection.flush()
    assert states(history, sent) == {"ws-1": "succeeded"}


CHECK_IN = b'{"kind":"check_in","workstation":"x","agent":"service","interval":1,%s}'
FAILED = b'{"kind":"report","job_id":"j","workstation":"x","agent":"service","state":"failed",%s}'
RESULT = FAILED % b'"result":{"duration":1,"max_memory":1,%s}'
NUMBERS = [b"1" + b"0" * 30, b"1" + b"0" * 400]
BODIES = [
    *(CHECK_IN % b'"facts":{"memory":%s}' % number for number in NUMBERS),
    *(CHECK_IN % b'"waiting":%s' % number for number in NUMBERS),
    *(CHECK_IN.replace(b"1,%s", number) for number in NUMBERS),
    *(RESULT % b'"exit_code":%s' % number for number in NUMBERS),
    *(RESULT % b'"signal":%s' % number for number in NUMBERS),
    *(FAILED % b'"result":{"duration":%s,"max_memory":1}' % number for number in NUMBERS),
    RESULT % b'"stdout":{"head":{"base64":null}}',
    FAILED % b'"reason":"a\\u0000b"',
    FAILED % b'"id":"%s"' % (b"i" * 100_000),
]


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
def test_hostile_entries_cost_themselves_alone(history: Engine, body: bytes) -> None:
    sent = job(workstation("ws-1"))
    kind = json.loads(body[: body.index(b",")] + b"}")["kind"]
    entries = [
        StreamEntry(0, "job", "", sent.body(), "guest"),
        StreamEntry(1, kind, "", body, "guest"),
        StreamEntry(2, "report", "", report(sent, "ws-1", State.SUCCEEDED).body(), "guest"),
    ]
    with history.begin() as connection:
        place = reader.store(connection, read_position(connection), entries)
    assert place.next_offset == 3
    assert states(history, sent) == {"ws-1": "succeeded"}


def test_answers_are_of_one_moment(url: str) -> None:
    ours, theirs = open_history(url), open_history(url)
    sent = job(workstation("ws-1"))
    project(ours, [check_in("ws-1"), sent])
    with query_jobs(ours, NOW.timestamp()) as asked:
        assert asked.counts([sent.id])[sent.id] == {"queued": 1}
        project(theirs, [report(sent, "ws-1", State.RECEIVED)], first=5)
        assert asked.counts([sent.id])[sent.id] == {"queued": 1}
    assert states(ours, sent) == {"ws-1": "received"}
    ours.dispose()
    theirs.dispose()


def test_who_is_left_out_is_reported_at_once(history: Engine) -> None:
    sent = job(everyone, workstation("stranger"), excluded=(group("lab"), workstation("stranger")))
    project(history, [check_in("ws-1", "lab"), check_in("ws-2"), sent])
    assert states(history, sent) == {
        "ws-1": "not_applicable",
        "ws-2": "queued",
        "stranger": "not_applicable",
    }


def test_what_was_started_after_a_departure_runs(history: Engine) -> None:
    sent = job(workstation("ws-1"))
    gone = WorkstationForgotten(workstation="ws-1", created_at=NOW)
    project(history, [check_in("ws-1"), sent, report(sent, "ws-1", State.RECEIVED), gone])
    assert states(history, sent) == {"ws-1": "unreachable"}
    project(history, [report(sent, "ws-1", State.STARTED, -9000)], first=9)
    assert states(history, sent) == {"ws-1": "started"}


def test_a_job_that_reached_nobody_is_no_job(history: Engine) -> None:
    sent, heard = job(workstation("ws-1")), job(workstation("ws-1"))
    unsent = [Cancellation(job_id=each.id, unsent=True, created_at=NOW) for each in (sent, heard)]
    project(history, [sent, heard, report(heard, "ws-1", State.RECEIVED), *unsent])
    with query_jobs(history) as asked:
        assert [row.id for row in asked.rows()] == [heard.id]
        assert asked.outcomes(sent.id) == []


def test_an_occurrence_knows_the_earlier_one_that_runs(history: Engine) -> None:
    """At its own time, so that all schedulers decide alike, also later; and now."""
    minute = timedelta(minutes=1)
    schedule = make(everyone, repeat="* * * * *", created_at=NOON)
    first, second, third = islice(schedule.coming(NOON), 3)
    job_of_first = first.job()
    started = report(job_of_first, "ws-1", State.STARTED).model_copy(update={"at": first.send_at})
    project(history, [check_in("ws-1"), job_of_first, started])

    def running(occurrence: Occurrence, at: datetime) -> str | None:
        return running_before(history, occurrence, at.timestamp())

    assert running(first, first.send_at) is None
    assert running(second, second.send_at) == running(third, third.send_at) == first.id
    assert running(second, second.send_at + timedelta(days=1)) is None  # its agent is gone
    end = ended(job_of_first, 90.0).model_copy(update={"at": first.send_at + 1.5 * minute})
    project(history, [end], first=10)
    assert running(second, second.send_at) == first.id  # it ran then
    assert running(second, third.send_at) is None
    assert running(third, third.send_at) is None


def ended(of: Job, duration: float) -> Report:
    done = result(0).model_copy(update={"duration": timedelta(seconds=duration)})
    return report(of, "ws-1", State.SUCCEEDED, result=done)
