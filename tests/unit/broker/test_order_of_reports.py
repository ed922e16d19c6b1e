"""`Progress`, `pcm watch` and the history agree on which of several reports counts."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, func, select

from broker import Progress
from broker.history import schema as tables
from broker.history.engine import open_history
from broker.history.projection.projection import Projection
from broker.history.queries.jobs import query_jobs
from broker.history.reader import rebuild
from broker.history.schema import rejected_entries, reports
from broker.stream.entry import StreamEntry
from broker.watch.tally import WatchTally
from schemas import Command, Job, Output, Report, Result, State, everyone, workstation
from schemas.reports.report import ANSWERS, Rank, final_id
from tests.support.postgresql import schema

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
NAMES = ("ws-1", "ws-2")
AGENTS = ("service", "interactive-ada", "interactive-bob")
JOB = Job(
    command=Command(argv=("true",)),
    targets=tuple(workstation(name) for name in NAMES),
    created_at=NOW,
)
HARMLESS = {State.SUCCEEDED, State.CANCELLED, State.NOT_APPLICABLE}


def ran(exit_code: int = 0, text: bytes = b"") -> Result:
    return Result(
        exit_code=exit_code,
        duration=timedelta(seconds=1),
        max_memory=1,
        stdout=Output(head=text),
    )


def report(state: State, name: str = "ws-1", **more: Any) -> Report:
    if state is State.SUCCEEDED and more.get("result") is None:
        more["result"] = ran()
    more.setdefault("agent", "service")
    return Report(job_id=JOB.id, workstation=name, state=state, **more)


def with_an_id(of: Report, number: int, *, shared: bool) -> Report:
    """Give a report an id of its own, or a final one that of all ends of its workstation."""
    same = shared and of.state.final
    name = final_id(of.job_id, of.workstation) if same else f"report-{number}"
    return of.model_copy(update={"id": name})


def stories(states: Sequence[State]) -> st.SearchStrategy[list[Report]]:
    """Return reports of some states, at times that are the same, close together or far apart."""
    near = st.integers(-2, 2).map(lambda seconds: NOW + timedelta(seconds=seconds))
    far = st.datetimes(datetime(1970, 1, 1), datetime(8999, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - the zone is drawn
    one = st.builds(
        report,
        st.sampled_from(states),
        st.sampled_from(NAMES),
        agent=st.sampled_from(AGENTS),
        at=near | far,
        reason=st.sampled_from(["", "one", "another"]),
        until=st.none() | near,
        result=st.none() | st.builds(ran, st.integers(0, 2), st.sampled_from([b"", b"a", b"b"])),
    )
    return st.lists(one, max_size=10)


NONE: st.SearchStrategy[list[Report]] = st.just([])
# Where a job was accepted, no answer counts: half of the stories are of users who only answer.
STORIES = st.sampled_from([list(State), ANSWERS]).flatmap(stories)

Counted = tuple[str, str, float | None, str]


def in_history(
    engine: Engine,
    sent: Sequence[Report],
    cut: int,
    job: Job | None = JOB,
    job_at: int = 0,
) -> dict[str, Counted]:
    """Return what counts on each workstation after a history has read reports in an order."""
    rebuild(engine)
    records: list[Job | Report] = [*sent[:job_at], *([job] if job else []), *sent[job_at:]]
    entries = [
        StreamEntry(place, one.kind, "", one.body(), "guest") for place, one in enumerate(records)
    ]
    for start in range(0, len(entries), cut):
        with engine.begin() as connection:
            projection = Projection(connection)
            projection.add(entries[start : start + cut])
            projection.flush()
    with query_jobs(engine, NOW.timestamp()) as asked:
        return {
            outcome.workstation: (outcome.state, outcome.agent, outcome.at, outcome.reason)
            for outcome in asked.outcomes(JOB.id)
            if outcome.agent  # else nothing was reported
        }


def derived(engine: Engine) -> dict[str, list[dict[str, Any]]]:
    """Return the rows that derive from reports, without places in the stream."""
    with engine.connect() as connection:
        return {
            table.name: sorted(
                (
                    {
                        name: value
                        for name, value in row.items()
                        if name != "offset"
                        and not (name == "rank_offset" and row["rank"] == Rank.ANSWERED)
                    }
                    for row in connection.execute(select(table)).mappings()
                ),
                key=repr,
            )
            for table in (tables.jobs, tables.outcomes, tables.reports, tables.results)
        }


def watched(sent: Sequence[Report]) -> tuple[Progress, WatchTally]:
    """Return what `Progress` and `pcm watch` show after reports in an order."""
    progress = Progress(JOB.id)
    tally = WatchTally(progress)
    progress.add(JOB)
    for one in sent:
        if progress.add(one):
            tally.add(one)
    return progress, tally


def in_progress(progress: Progress) -> dict[str, Counted]:
    return {
        name: (one.state, one.agent, one.timestamp, one.reason)
        for name, one in progress.workstations.items()
    }


def test_all_views_agree_in_any_order_however_the_stream_is_cut_and_with_any_clocks(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    engine = open_history(f"sqlite:///{tmp_path_factory.mktemp('history')}/history.db")

    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        shared = data.draw(st.booleans())
        sent = [
            with_an_id(one, number, shared=shared) for number, one in enumerate(data.draw(STORIES))
        ]
        again = sent + sent[: len(sent) // 2]
        orders = [data.draw(st.permutations(again)) for _ in range(3)]
        first = in_history(engine, orders[0], data.draw(st.integers(1, 12)))
        assert first == in_history(engine, orders[1], data.draw(st.integers(1, 12)))
        for order in orders:
            progress, tally = watched(order)
            assert in_progress(progress) == first
            now = [one.state for one in progress.workstations.values()]
            assert sorted((+progress.counts).elements()) == sorted(now)
            assert tally.failed == sum(each.final and each not in HARMLESS for each in now)
            assert len(tally.started) == now.count(State.STARTED)

    try:
        check()
    finally:
        engine.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """A history in each database."""
    with ExitStack() as stack:
        url = f"sqlite:///{tmp_path}/history.db"
        if request.param == "postgresql":
            url = stack.enter_context(schema())
        engine = open_history(url)
        stack.callback(engine.dispose)
        yield engine


def test_all_tables_are_the_same_in_any_order_however_the_stream_is_cut(empty: Engine) -> None:
    """Also if final reports of one id differ, and for a job not yet read."""

    @settings(max_examples=100 if empty.dialect.name == "sqlite" else 15)
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        shared = data.draw(st.booleans())
        sent = [
            with_an_id(one, number, shared=shared) for number, one in enumerate(data.draw(STORIES))
        ]
        job = data.draw(st.sampled_from([JOB, None]))
        found = []
        for _ in range(2):
            again = sent + data.draw(st.lists(st.sampled_from(sent), max_size=3) if sent else NONE)
            in_order = data.draw(st.permutations(again))
            counted = in_history(empty, in_order, data.draw(st.integers(1, 12)), job)
            found.append((counted, derived(empty)))
            progress, _ = watched(in_order)
            assert not job or in_progress(progress) == counted
        assert found[0] == found[1]

    check()


def test_of_two_ends_the_result_of_the_one_that_counts_is_kept(empty: Engine) -> None:
    """The first one read was kept, whichever it was."""
    first = report(State.FAILED, at=NOW, result=ran(1, b"first"), reason="first")
    second = report(
        State.FAILED, at=NOW + timedelta(seconds=1), result=ran(2, b"second"), reason="second"
    )
    ends = [with_an_id(one, 0, shared=True) for one in (first, second)]
    for in_order in permutations(ends):
        for cut in (1, 3):
            in_history(empty, in_order, cut)
            with query_jobs(empty, NOW.timestamp()) as asked:
                ((_, result),) = asked.results(JOB.id)
                assert str(result.stdout) == "first"
                (event,) = asked.events(JOB.id, "ws-1")
                assert event.reason == "first"


def test_the_history_weighs_what_several_users_answered_however_it_is_cut(tmp_path: Path) -> None:
    ada, bob = AGENTS[1:]
    sent = [
        report(State.OFFERED, agent=ada, at=NOW),
        report(State.OFFERED, agent=bob, at=NOW + timedelta(seconds=1)),
        report(State.DECLINED, agent=bob, at=NOW + timedelta(seconds=2)),
        report(State.RECEIVED, at=NOW + timedelta(seconds=3)),
    ]
    expected = ("offered", ada, NOW.timestamp(), "")
    engine = open_history(f"sqlite:///{tmp_path}/history.db")
    for order in permutations(sent):
        for cut in (1, 2, 5):
            assert in_history(engine, order, cut) == {"ws-1": expected}
    engine.dispose()


def test_an_old_offer_counts_again_when_the_user_of_a_newer_one_declines(tmp_path: Path) -> None:
    cy, bob, ada = "interactive-cy", "interactive-bob", "interactive-ada"
    sent = [
        report(State.DECLINED, agent=cy, at=NOW + timedelta(seconds=5)),
        report(State.OFFERED, agent=bob, at=NOW + timedelta(seconds=1)),
        report(State.OFFERED, agent=ada, at=NOW + timedelta(seconds=2)),
        report(State.DECLINED, agent=ada, at=NOW + timedelta(seconds=3)),
    ]
    expected = ("offered", bob, (NOW + timedelta(seconds=1)).timestamp(), "")
    engine = open_history(f"sqlite:///{tmp_path}/history.db")
    assert in_history(engine, sent, 1) == {"ws-1": expected}
    engine.dispose()


BACKGROUND = JOB.model_copy(update={"command": Command(argv=("true",), background=True)})
FOR_ONE = JOB.model_copy(update={"targets": (workstation("ws-1"),)})
FOR_ALL = JOB.model_copy(update={"targets": (everyone, workstation("ws-1"))})
CAN_HAVE = [
    (BACKGROUND, {(name, "service") for name in NAMES}),
    (FOR_ONE, {("ws-1", agent) for agent in AGENTS}),
    (FOR_ALL, {(name, agent) for name in NAMES for agent in AGENTS}),
]


def test_only_agents_that_can_have_the_job_count_also_if_they_report_before_it_is_known(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    engine = open_history(f"sqlite:///{tmp_path_factory.mktemp('history')}/history.db")

    @settings(max_examples=30)
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        job, reporters = data.draw(st.sampled_from(CAN_HAVE))
        shared = data.draw(st.booleans())
        sent = [
            with_an_id(one, number, shared=shared) for number, one in enumerate(data.draw(STORIES))
        ]
        genuine = [one for one in sent if (one.workstation, one.agent) in reporters]
        expected = in_history(engine, genuine, 1000, FOR_ALL)
        for _ in range(2):
            order = data.draw(st.permutations(sent))
            place = data.draw(st.integers(0, len(sent)))
            cut = data.draw(st.integers(1, 12))
            assert in_history(engine, order, cut, job, place) == expected
            with engine.connect() as connection:
                rejected = connection.scalar(select(func.count()).select_from(rejected_entries))
                kept = connection.scalar(select(func.count()).select_from(reports))
            assert rejected == len(sent) - len(genuine)
            assert kept == len({(one.workstation, one.id) for one in genuine})
            progress = Progress(job.id)
            records: list[Job | Report] = [*order[:place], job, *order[place:]]
            for record in records:
                progress.add(record)
            assert in_progress(progress) == expected
            now = [one.state for one in progress.workstations.values()]
            assert sorted((+progress.counts).elements()) == sorted(now)

    try:
        check()
    finally:
        engine.dispose()


def test_what_an_interactive_agent_says_of_a_background_job_ends_no_waiting() -> None:
    progress = Progress(JOB.id)
    progress.add(BACKGROUND)
    assert not progress.add(report(State.SUCCEEDED, agent="interactive-ada"))
    assert (progress.ended, progress.succeeded, progress.waiting) == (False, False, set(NAMES))


@pytest.mark.parametrize("clock", [-3600, 3600])
def test_watch_says_started_as_the_history_does_whatever_the_clock(clock: int) -> None:
    """A clock that was set back between two reports hid the start from `pcm watch`."""
    later = NOW + timedelta(seconds=clock)
    sent = [
        report(State.OFFERED, agent="interactive-ada", at=NOW),
        report(State.STARTED, agent="interactive-ada", at=later),
    ]
    for order in (sent, sent[::-1]):
        progress, tally = watched(order)
        assert progress.workstations["ws-1"].state is State.STARTED
        assert list(tally.started) == ["ws-1"]


def test_one_user_who_declines_does_not_end_the_waiting_while_another_is_asked() -> None:
    sent = [
        report(State.OFFERED, agent="interactive-ada", at=NOW),
        report(State.OFFERED, agent="interactive-bob", at=NOW),
        report(State.DECLINED, agent="interactive-ada", at=NOW + timedelta(minutes=1)),
    ]
    progress, _ = watched(sent)
    assert "ws-1" in progress.waiting
    progress.add(report(State.DECLINED, agent="interactive-bob", at=NOW + timedelta(minutes=2)))
    assert "ws-1" not in progress.waiting


def test_a_second_end_takes_the_place_of_the_first_in_what_watch_counts() -> None:
    """Two ends of one job are a fault; that of a command counts, and none is counted twice."""
    refused = report(State.REFUSED, reason="its id is known")
    progress, tally = watched([refused])
    assert tally.failed == 1
    ran = report(State.SUCCEEDED)
    assert progress.add(ran)
    tally.add(ran)
    assert (tally.failed, tally.failures, str(tally)) == (0, {}, "1 succeeded, 1 queued")
