"""Q229809: a damaged or lost ledger is set aside and made good, and nothing runs again for it."""

import json
import shutil
from datetime import UTC, datetime, timedelta

from agents.store import ledger
from broker import Dispatcher
from schemas import Job, State
from tests.support.faults import until
from tests.support.workstation import Workstation, final, follow


async def test_a_damaged_ledger_is_made_good_from_the_brokers_record(
    ws: Workstation, dispatcher: Dispatcher
) -> None:
    """What ended is not run again, what was accepted is, and administrators can see the damage."""
    ran = ws.folder / "ran"
    service = ws.start("service")

    def append(word: str, **fields: object) -> Job:
        return ws.job(f"echo {word} >> {ran}", shell=True, background=True, **fields)

    done = await dispatcher.dispatch(append("done"))
    await follow(dispatcher, done)
    now = datetime.now(UTC)
    soon = now + timedelta(seconds=4)
    waiting = await dispatcher.dispatch(append("waiting", mandatory_at=soon))
    withdrawn = await dispatcher.dispatch(append("withdrawn", mandatory_at=now + timedelta(days=1)))
    running = await dispatcher.dispatch(
        ws.job(f"echo running >> {ran}; sleep 85.4321", shell=True, background=True)
    )
    service.wait_for("job.received", count=4)
    async for report in dispatcher.follow(running.id):
        if report.state is State.STARTED:
            break
    service.end(9)
    await dispatcher.cancel(withdrawn.id)
    (ws.state_dir / "service" / "ledger.db").write_bytes(b"no ledger at all")
    (ws.state_dir / "service" / "ledger.db-wal").unlink(missing_ok=True)
    service = ws.start("service")
    (event,) = service.events("ledger.damaged")
    assert event["reason"] == "file is not a database"
    await dispatcher.dispatch(done)
    assert final(await follow(dispatcher, running)).state is State.INTERRUPTED
    assert final(await follow(dispatcher, waiting)).state is State.SUCCEEDED
    assert final(await follow(dispatcher, withdrawn)).state is State.CANCELLED
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


async def test_what_ended_long_ago_is_forgotten_and_not_run_again(
    ws: Workstation, dispatcher: Dispatcher
) -> None:
    ran = ws.folder / "ran"
    service = ws.start("service", keep="2s")
    ws.start("interactive", accept_offers="true", keep="2s")
    jobs = [
        await dispatcher.dispatch(ws.job(f"echo x >> {ran}", shell=True, background=background))
        for background in (True, False)
    ]
    for job in jobs:
        assert final(await follow(dispatcher, job)).state is State.SUCCEEDED
        await dispatcher.cancel(job.id)
    ledgers = [ws.state_dir / agent / "ledger.db" for agent in ("service", "interactive-ada")]
    await until(lambda: not any(map(ledger.read, ledgers)))
    await until(lambda: not list((ws.state_dir / "claims").iterdir()))
    for job in jobs:
        await dispatcher.dispatch(job)
    new = await dispatcher.dispatch(ws.job("true", background=True))
    assert final(await follow(dispatcher, new)).state is State.SUCCEEDED
    assert ran.read_text() == "x\nx\n"
    assert not service.events("broker.lost")
