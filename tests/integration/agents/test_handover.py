"""Users who log on after a job was sent: the service agent hands it to their agents."""

import json
import socket
from contextlib import ExitStack, closing
from datetime import timedelta
from pathlib import Path

import pytest

from agents.store import ledger
from broker import Dispatcher, DispatcherSettings
from schemas import Secrets, State
from tests.support.counted import now, past
from tests.support.keys import Keys
from tests.support.waiting import LIMIT, until_true
from tests.support.workstation import Workstation, agents_of, final, follow


@pytest.mark.parametrize("first", ["service", pytest.param("interactive", marks=pytest.mark.full)])
async def test_a_user_who_logs_on_later_is_offered_what_was_sent_before(
    ws: Workstation, dispatcher: Dispatcher, first: str
) -> None:
    """Q173388: and runs what is mandatory. Nothing of a background job leaves the service."""
    service = ws.start("service", takeover_grace="1h", concurrency="1")
    if first == "interactive":
        service.end()
    background = {"background": True, "mandatory_at": now(hours=1)}
    jobs = [
        await dispatcher.dispatch(job)
        for job in (
            ws.job("true"),
            ws.job("true", mandatory_at=now()),
            ws.job("true", mandatory_at=now(hours=-1), user_input_required=True),
            ws.job("true"),
            ws.job("echo", "background", **background),
        )
    ]
    offer, *mandatory, cancelled, hidden = jobs
    await dispatcher.cancel(cancelled.id)
    if first == "service":
        service.wait_for("job.received", 5)
        until_true(lambda: service.events("job.ended"))
        user = ws.start("interactive")
    else:
        user = ws.start("interactive")
        service = ws.start("service", takeover_grace="1h", concurrency="1")
    user.wait_for("job.offered", 3)
    assert ws.run("pcm-agent", "run", offer.id).returncode == 0
    for job in (offer, *mandatory):
        reports = await follow(dispatcher, job)
        assert agents_of(reports, State.STARTED) == {"interactive-ada"}
        assert final(reports).state is State.SUCCEEDED
    await past(ws, dispatcher, now())
    for text in (user.log.read_text(), *map(str, ledger.read(ledger_of(ws, "interactive-ada")))):
        assert cancelled.id not in text
        assert hidden.id not in text
    assert not handed_over(ws)
    another = await dispatcher.dispatch(ws.job("true"))
    with closing(connected(ws)) as connection, connection.makefile("rb") as lines:
        assert json.loads(json.loads(lines.readline())["job"])["id"] == another.id


def ledger_of(ws: Workstation, agent: str) -> Path:
    return ws.state_dir / agent / "ledger.db"


def connected(ws: Workstation) -> socket.socket:
    """Connect to the service agent as a user's agent does."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(LIMIT)
    connection.connect(str(ws.state_dir / "jobs.sock"))
    connection.sendall(b'{"do": "foreground_jobs"}\n')
    return connection


def handed_over(ws: Workstation) -> list[str]:
    """Return what the service agent hands over at once."""
    with closing(connected(ws)) as connection:
        connection.settimeout(1)
        try:
            return connection.recv(1_000_000).decode().splitlines()
        except (TimeoutError, ConnectionResetError):
            return []


async def test_the_users_agent_checks_signatures_and_secrets(
    ws: Workstation, settings: DispatcherSettings, tmp_path: Path
) -> None:
    """What it may not run is left to the agents that may."""
    for folder in ("keys", "others"):
        (tmp_path / folder).mkdir()
    keys, others = Keys(tmp_path / "keys"), Keys(tmp_path / "others")
    keys.trust("ada")
    others.trust("eve")
    service = ws.start("service", trusted_keys=str(keys.folder))
    signing = settings.model_copy(update={"signing_key": keys.private["ada"]})
    async with Dispatcher.connect(signing) as dispatcher:
        job = await dispatcher.dispatch(ws.job("true", expires_at=now(hours=1)))
        keys_of = {f"service@{ws.name}": b"AAAA"}
        secrets = Secrets(names=("TOKEN",), sealed=b"AAAA", keys=keys_of)
        await dispatcher.dispatch(ws.job("true", secrets=secrets))
        service.wait_for("job.received", 2)
        ben = ws.start("interactive", user="ben", trusted_keys=str(others.folder))
        ben.wait_for("job.not_handed_over", 2)
        ada = ws.start("interactive", trusted_keys=str(keys.folder), accept_offers="true")
        ada.wait_for("job.not_handed_over")
        reports = await follow(dispatcher, job)
    assert agents_of(reports, State.SUCCEEDED) == {"interactive-ada"}
    assert len(ada.events("job.received")) == 1
    assert "interactive-ben" not in {report.agent for report in reports}


async def test_a_user_cannot_hold_the_service_up(ws: Workstation, dispatcher: Dispatcher) -> None:
    """Many connections, other requests, and no reader."""
    service = ws.start("service")
    job = await dispatcher.dispatch(ws.job("true", timeout=timedelta(seconds=9)))
    service.wait_for("job.received")
    for request in (b"[" * 9999 + b"\n", b'{"do": "run", "job": "x"}\n', b"x" * 100_000, b"\n"):
        with closing(socket.socket(socket.AF_UNIX)) as connection:
            connection.settimeout(LIMIT)
            connection.connect(str(ws.state_dir / "jobs.sock"))
            connection.sendall(request)
            answer = connection.recv(1000)
            assert answer == b"" or "error" in json.loads(answer)
    with ExitStack() as stack:
        for _ in range(4):
            connection = stack.enter_context(closing(connected(ws)))
            assert job.id.encode() in connection.recv(100_000)
        assert handed_over(ws) == []
    until_true(lambda: handed_over(ws))
    background = await dispatcher.dispatch(ws.job("true", background=True))
    assert final(await follow(dispatcher, background)).state is State.SUCCEEDED
