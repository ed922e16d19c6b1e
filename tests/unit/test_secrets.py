"""Secrets reach the commands that they are for, and stand nowhere else as they are."""

import base64
from datetime import UTC, datetime
from pathlib import Path

import pytest
from nacl.public import PrivateKey
from sqlalchemy import Engine

from broker.history.projection.projection import Projection
from broker.history.schema import open_history
from broker.history.workstations import query_fleet
from broker.jobs.rerun_jobs import new_job as rerun_of
from broker.signing.sealing import CannotSeal, seal
from broker.stream.entry import StreamEntry
from schemas import Command, Job, Rollout, group
from schemas.message import BODY_LIMIT
from tests.support.admin import check_in

VALUE = "correct-horse-battery-staple"


def _known(folder: Path, count: int) -> Engine:
    """Return a history that knows so many workstations."""
    key = base64.b64encode(bytes(PrivateKey.generate().public_key)).decode()
    engine = open_history(f"sqlite:///{folder}/history.db")
    with engine.begin() as connection:
        projection = Projection(connection)
        for number in range(count):
            said = check_in(f"ws-{number:03}", "lab", sealing_key=key)
            projection.add([StreamEntry(number, said.kind, "", said.body(), "guest")])
        projection.flush()
    return engine


def test_how_many_workstations_fit_is_reported(tmp_path: Path) -> None:
    """The keys stand in the message, and that has a limit."""
    engine = _known(tmp_path, 400)
    command = Command(argv=("true", *["x" * 100_000] * 10), background=True)
    job = Job(command=command, targets=(group("lab"),))
    with query_fleet(engine) as known:
        with pytest.raises(CannotSeal, match=r"400 workstations .* about \d+ workstations") as told:
            seal(job, {"TOKEN": VALUE}, known)
        fit = int(str(told.value).split("about ")[1].split()[0])
        with pytest.raises(CannotSeal, match="over the limit of 65536"):
            seal(job, {"TOKEN": "x" * 70_000}, known)
        with pytest.raises(ValueError, match="TOKEN is in environment as well"):
            seal(_with_token(job), {"TOKEN": VALUE}, known)
    engine.dispose()
    assert fit > 100
    few = tmp_path / "few"
    few.mkdir()
    engine = _known(few, fit)
    with query_fleet(engine) as known:
        assert len(seal(job, {"TOKEN": VALUE}, known).body()) <= BODY_LIMIT
    engine.dispose()


def _with_token(job: Job) -> Job:
    command = Command(argv=("true",), environment={"TOKEN": "x"}, background=True)
    return job.model_copy(update={"command": command})


@pytest.mark.full
def test_each_wave_and_each_rerun_has_its_own_keys_alone_and_sent_again_it_is_the_same(
    tmp_path: Path,
) -> None:
    engine = _known(tmp_path, 3)
    plain = Job(command=Command(argv=("true",), background=True), targets=(group("lab"),))
    with query_fleet(engine) as known:
        job, again = (seal(plain, {"TOKEN": VALUE}, known) for _ in range(2))
    engine.dispose()
    assert job.body() != again.body()
    assert job.digest() == again.digest() != plain.digest()
    rollout = Rollout(job=job, waves=(("ws-000",), ("ws-001", "ws-002")))
    rerun = rerun_of(job, ["ws-001"], datetime.now(UTC))
    for one, names in (
        (rollout.wave(1), {"ws-000"}),
        (rollout.wave(2), {"ws-001", "ws-002"}),
        (rerun, {"ws-001"}),
    ):
        secrets = one.command.secrets
        assert secrets is not None
        assert secrets.workstations() == names
