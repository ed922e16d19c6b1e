"""Running agents answer hostile bytes on their sockets, and continue."""

import json
from random import Random

from broker import Dispatcher
from tests.fuzz.mutation import mutated
from tests.support.window import asked, window
from tests.support.workstation import Workstation

_REQUESTS = 300
_LONGEST = 60_000


async def test_requests_to_an_interactive_agent(ws: Workstation, dispatcher: Dispatcher) -> None:
    agent = ws.start("interactive")
    job = ws.job("true", max_postponements=2**31 - 1)  # optional, and without an end
    await dispatcher.dispatch(job)
    agent.wait_for("job.offered")
    seeds = [
        json.dumps({"job": job.id, **request}).encode()
        for request in (
            {"do": "remind", "after": 1e300},
            {"do": "remind", "after": 5.0},
            {"do": "postpone", "until": "9999-12-31T23:59:59-14:00"},
            {"do": "postpone", "until": "2036-11-30T12:00:00+00:00"},
            {"do": "decline", "reason": "no"},
            {"do": "stop"},
            {"do": "output"},
        )
    ]
    random = Random(2026)
    for data in (*seeds, *(mutated(random.choice(seeds), random) for _ in range(_REQUESTS))):
        with window(ws, data[:_LONGEST].replace(b"\n", b" ")) as opened:
            assert opened.next().keys() <= {"message", "error"}, data
    assert "Traceback" not in agent.log.read_text()
    assert asked(ws, "run", job)["message"]


async def test_claims_that_another_user_wrote(ws: Workstation, dispatcher: Dispatcher) -> None:
    """Every user can write to the shared folder: its files end no agent."""
    agent = ws.start("service")
    claims = ws.state_dir / "claims"
    jobs = [ws.job("true") for _ in range(3)]
    for job, content in zip(jobs, (b"[" * 4096, b'{"agent":' * 400, b"\xff\0"), strict=True):
        (claims / job.id).write_bytes(content)
        await dispatcher.dispatch(job)
    background = ws.job("true", background=True)
    await dispatcher.dispatch(background)
    agent.wait_for("job.ended", 4)
    ended = {event["job"] for event in agent.events("job.ended")}
    assert background.id in ended
    assert agent.process.poll() is None
    assert "Traceback" not in agent.log.read_text()
