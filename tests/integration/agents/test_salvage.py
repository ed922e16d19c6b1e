"""Q229809: a damaged or lost ledger is set aside and made good, and nothing runs again for it."""

import json
import shutil
from datetime import UTC, datetime, timedelta

import pytest

from agents.store import ledger
from broker import Dispatcher
from broker.amqp import topology
from broker.stream import stream
from schemas import Job, Report, Result, State
from tests.support.clock import Clock
from tests.support.waiting import until
from tests.support.workstation import Workstation, final, follow, until_state


@pytest.mark.full
async def test_a_damaged_ledger_is_made_good_from_the_brokers_record(
    ws: Workstation, dispatcher: Dispatcher
) -> None:
    """What ended is not run again, what was accepted is, and administrators can see the damage."""
    ran = ws.folder / "ran"
    clock = Clock(ws)
    service = clock.start("service")

    def append(word: str, **fields: object) -> Job:
        return ws.job(f"echo {word} >> {ran}", shell=True, background=True, **fields)

    done = await dispatcher.dispatch(append("done"))
    await follow(dispatcher, done)
    due = datetime.now(UTC) + timedelta(hours=1)
    waiting = await dispatcher.dispatch(append("waiting", mandatory_at=due))
    withdrawn = await dispatcher.dispatch(append("withdrawn", mandatory_at=due))
    running = await dispatcher.dispatch(
        ws.job(f"echo running >> {ran}; sleep 85.4321", shell=True, background=True)
    )
    for job, state in (
        (waiting, State.RECEIVED),
        (withdrawn, State.RECEIVED),
        (running, State.STARTED),
    ):
        await until_state(dispatcher, job, state)
    service.end(9)
    await dispatcher.cancel(withdrawn.id)
    (ws.state_dir / "service" / "ledger.db").write_bytes(b"no ledger at all")
    (ws.state_dir / "service" / "ledger.db-wal").unlink(missing_ok=True)
    service = clock.start("service")
    (event,) = service.events("ledger.damaged")
    assert event["reason"] == "file is not a database"
    assert final(await follow(dispatcher, running)).state is State.INTERRUPTED
    assert final(await follow(dispatcher, withdrawn)).state is State.CANCELLED
    clock.set(2 * 3600)
    await dispatcher.dispatch(done)
    assert final(await follow(dispatcher, waiting)).state is State.SUCCEEDED
    assert final(await follow(dispatcher, done)).state is State.SUCCEEDED
    assert sorted(ran.read_text().split()) == ["done", "running", "waiting"]
    told = json.loads(ws.run("pcm", "dead", "list", "--json").stdout)
    (letter,) = [row for row in told if row["workstation"] == ws.name]
    assert letter["reason"].startswith("the ledger was damaged: file is not a database; ")
    ws.run("pcm", "dead", "drop", letter["id"])


async def test_after_a_lost_ledger_nothing_that_ended_runs_again(
    ws: Workstation, dispatcher: Dispatcher
) -> None:
    """Q229809: as far as the broker can show it, also to a workstation that was set up anew."""
    ran = ws.folder / "ran"
    ws.start("service")
    ws.start("interactive", accept_offers="true")
    jobs = [
        await dispatcher.dispatch(ws.job(f"echo x >> {ran}", shell=True, background=background))
        for background in (True, False)
    ]
    for job in jobs:
        await follow(dispatcher, job)
    ws.stop()
    shutil.rmtree(ws.state_dir / "service")
    shutil.rmtree(ws.state_dir / "interactive-ada")
    ws.start("service")
    ws.start("interactive", accept_offers="true")
    for job in jobs:
        await dispatcher.dispatch(job)
    for background in (True, False):
        other = await dispatcher.dispatch(ws.job("true", background=background))
        assert final(await follow(dispatcher, other)).state is State.SUCCEEDED
    assert ran.read_text() == "x\nx\n"


@pytest.mark.full
async def test_what_ended_long_ago_is_forgotten_and_not_run_again(
    ws: Workstation, dispatcher: Dispatcher
) -> None:
    ran = ws.folder / "ran"
    service = ws.start("service", keep="3s")
    ws.start("interactive", accept_offers="true", keep="3s")
    jobs = [
        await dispatcher.dispatch(ws.job(f"echo x >> {ran}", shell=True, background=background))
        for background in (True, False)
    ]
    for job in jobs:
        assert final(await follow(dispatcher, job)).state is State.SUCCEEDED
        await dispatcher.cancel(job.id)
    for agent in ("service", "interactive-ada"):
        path = ws.state_dir / agent / "ledger.db"
        await until(lambda path=path: not ledger.read(path))  # type: ignore[misc]
    await until(lambda: not list((ws.state_dir / "claims").glob("[!.]*")))
    for job in jobs:
        await dispatcher.dispatch(job)
    new = await dispatcher.dispatch(ws.job("true", background=True))
    assert final(await follow(dispatcher, new)).state is State.SUCCEEDED
    assert ran.read_text() == "x\nx\n"
    assert not service.events("broker.lost")


async def test_after_a_lost_ledger_a_users_agent_keeps_no_background_job_from_the_service(
    ws: Workstation, dispatcher: Dispatcher
) -> None:
    """What it reports of such a job does not count for the service either."""
    ran = ws.folder / "ran"
    assert ws.start("service").end() == 0
    job = await dispatcher.dispatch(ws.job(f"echo x >> {ran}", shell=True, background=True))
    result = Result(exit_code=0, duration=timedelta(0), max_memory=0)
    claim = Report(
        job_id=job.id,
        workstation=ws.name,
        agent="interactive-ada",
        state=State.SUCCEEDED,
        result=result,
    )
    key = topology.report_key(claim.state, ws.name, claim.agent)
    await dispatcher.retry(
        lambda publisher: stream.append(publisher, key, claim.body(), kind="report")
    )
    shutil.rmtree(ws.state_dir / "service")
    ws.start("service")  # its ledger is newer than the job
    ending = final(await follow(dispatcher, job))
    assert (ending.state, ending.agent) == (State.SUCCEEDED, "service")
    assert ran.read_text() == "x\n"
