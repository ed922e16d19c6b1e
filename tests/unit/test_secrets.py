"""Secrets reach the commands that they are for, and stand nowhere else as they are."""

import base64
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
from nacl.exceptions import CryptoError
from nacl.public import PrivateKey, PublicKey, SealedBox
from pydantic import ValidationError
from sqlalchemy import Engine, update

from broker.history.engine import open_history
from broker.history.projection.projection import Projection
from broker.history.queries.workstations import query_fleet
from broker.history.schema import agents
from broker.jobs.rerun_jobs import new_job as rerun_of
from broker.signing.sealing import CannotSeal, seal
from broker.stream.entry import StreamEntry
from schemas import (
    AgentsRevoked,
    CheckIn,
    Command,
    InvalidMessage,
    Job,
    Rollout,
    group,
    workstation,
)
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


def test_a_useless_key_is_refused_when_read_and_a_missing_one_is_told(tmp_path: Path) -> None:
    """Also one that an older program has read into the history."""
    genuine = check_in("ws-000", sealing_key=base64.b64encode(bytes([9, *bytes(31)])).decode())
    useless = base64.b64encode(bytes(32)).decode()
    said = genuine.body().replace(str(genuine.sealing_key).encode(), useless.encode())
    assert useless.encode() in said
    with pytest.raises(InvalidMessage, match="sealing_key: is no key that secrets"):
        CheckIn.read(said, tolerant=True)
    engine = _known(tmp_path, 2)
    with engine.begin() as connection:
        connection.execute(
            update(agents).where(agents.c.workstation == "ws-000").values(sealing_key=useless)
        )
    job = Job(command=Command(argv=("true",), background=True), targets=(group("lab"),))
    with (
        query_fleet(engine) as known,
        pytest.raises(CannotSeal, match=r"^secrets: ws-000 \(service\): no key is known"),
    ):
        seal(job, {"TOKEN": VALUE}, known)
    engine.dispose()


def test_nothing_is_sealed_for_a_revoked_login_until_it_checks_in_again(tmp_path: Path) -> None:
    engine = _known(tmp_path, 2)
    key = base64.b64encode(bytes([9, *bytes(31)])).decode()
    of_ada = check_in("ws-001", agent="interactive-ada", sealing_key=key)
    _project(engine, [of_ada, _revoked("ws-000", "service"), _revoked("ws-001", "interactive-ada")])
    one, lab = (
        Job(command=Command(argv=("true",)), targets=(target,))
        for target in (workstation("ws-000"), group("lab"))
    )

    def sealed_for(job: Job) -> set[str]:
        with query_fleet(engine) as known:
            secrets = seal(job, {"TOKEN": VALUE}, known).command.secrets
        return set(secrets.keys) if secrets else set()

    with pytest.raises(CannotSeal, match=r"^secrets: ws-000: the login was revoked"):
        sealed_for(one)
    assert sealed_for(lab) == {"service@ws-001"}
    _project(engine, [check_in("ws-000", "lab", sealing_key=key), of_ada], first=20)
    assert sealed_for(one) == {"service@ws-000"}
    assert sealed_for(lab) == {"service@ws-000", "service@ws-001", "interactive-ada@ws-001"}
    engine.dispose()


def _revoked(name: str, *agents: str) -> AgentsRevoked:
    return AgentsRevoked(workstation=name, agents=agents, sender="ada@hq")


def _project(engine: Engine, records: Sequence[CheckIn | AgentsRevoked], first: int = 10) -> None:
    with engine.begin() as connection:
        projection = Projection(connection)
        for offset, record in enumerate(records, first):
            projection.add([StreamEntry(offset, record.kind, "", record.body(), "guest")])
        projection.flush()


@pytest.mark.parametrize(
    "point",
    [
        0,
        1,
        2**255 - 20,  # and the same again with what libsodium ignores or reduces
        2**255 - 19,
        2**255 - 18,
        2**255 + 1,
        2**256 - 20,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
    ],
)
def test_a_key_is_useless_exactly_if_nothing_can_be_sealed_for_it(point: int) -> None:
    raw = (point % 2**256).to_bytes(32, "little")
    with pytest.raises(CryptoError):
        SealedBox(PublicKey(raw)).encrypt(b"x")
    with pytest.raises(ValidationError, match="is no key"):
        check_in("ws", sealing_key=base64.b64encode(raw).decode())


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
