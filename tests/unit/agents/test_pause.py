"""A paused workstation starts nothing, forgets nothing, and goes on in order."""

from datetime import timedelta
from pathlib import Path

from agents.store.ledger import Ledger, read_metadata
from agents.store.transaction import JobRecord
from schemas import Command, Job, Pause, State, everyone
from schemas.policy import Host, InteractiveRules, ServiceRules, Step
from tests.support.counted import now

PLACE = Host(frozenset({"linux"}))
SERVICE = ServiceRules(PLACE, takeover_grace=60)
INTERACTIVE = InteractiveRules(PLACE, countdown=300)
TIME = now()
NOW = TIME.timestamp()


def entry(**fields: object) -> JobRecord:
    background = bool(fields.pop("background", False))
    job = Job(
        command=Command(argv=("true",), background=background),
        targets=(everyone,),
        created_at=TIME,
        mandatory_at=TIME,
        expires_at=TIME + timedelta(hours=1),
    )
    return JobRecord(job, NOW, **fields)  # type: ignore[arg-type]


def test_while_paused_only_what_is_no_start_goes_on() -> None:
    expiry = NOW + 3600
    for held in (entry(background=True), entry(), entry(state=State.STARTED, starts=1)):
        following = SERVICE.next(held, NOW + 900, claimed=False, paused=True)
        assert (following.step, following.at) == (Step.CLOSE, expiry)
    following = INTERACTIVE.next(entry(), NOW, claimed=False, paused=True)
    assert following.step is Step.OFFER
    offered = entry(shown_at=NOW, state=State.OFFERED)
    # The claim is taken, so that the user's agent comes first when the pause ends.
    following = INTERACTIVE.next(offered, NOW + 900, claimed=False, paused=True)
    assert (following.step, following.at) == (Step.COUNT_DOWN, NOW)
    for state in (State.OFFERED, State.ACCEPTED, State.STARTED):
        held = entry(shown_at=NOW, state=state)
        following = INTERACTIVE.next(held, NOW + 900, claimed=True, paused=True)
        assert (following.step, following.at) == (Step.CLOSE, expiry)
        going_on = INTERACTIVE.next(held, NOW + 900, claimed=True, paused=False)
        assert going_on.step is Step.RUN
        assert going_on.at <= NOW + 900
    for rules in (SERVICE, INTERACTIVE):
        cancelled = rules.next(entry(cancelled="no"), NOW, claimed=False, paused=True)
        assert cancelled.state is State.CANCELLED


async def test_the_newest_word_counts_however_often_and_late_the_others_come(
    tmp_path: Path,
) -> None:
    path = tmp_path / "ledger.db"
    old, pausing, going_on = (
        Pause(workstation="w", paused=paused, created_at=now(seconds=seconds))
        for seconds, paused in enumerate((True, True, False))
    )
    book = Ledger(path)
    assert not read_metadata(path).paused
    for said, new in (
        (pausing, True),
        (pausing, False),
        (old, False),
        (going_on, True),
        (pausing, False),
    ):
        assert await book.commit(lambda transaction, said=said: transaction.set_pause(said)) is new  # type: ignore[misc]
    book.close()
    metadata = read_metadata(path)
    assert (metadata.paused, metadata.pause) == (False, going_on)
