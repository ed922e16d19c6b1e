"""Keys, approvals, and orders that are never signed for others."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from broker import Dispatcher, DispatcherSettings
from broker.amqp.connection import connect
from broker.amqp.publisher import Publisher
from broker.history.engine import open_history
from broker.schedules.scheduler import ScheduleRunner
from broker.settings import HistorySettings
from broker.signing.signer import Signer
from broker.stream import stream
from broker.stream.entry import StreamEntry
from schemas import (
    Command,
    Job,
    Rollout,
    Schedule,
    ScheduleRemoval,
    State,
    workstation,
)
from tests.support.admin import Admin, check_in, ended, report
from tests.support.keys import Keys
from tests.support.rabbitmq import Broker


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path)


@pytest.fixture
def admin(node: Broker, tmp_path: Path) -> Admin:
    return Admin(node.url, tmp_path)


def test_keys_are_made_and_never_overwritten(admin: Admin, tmp_path: Path) -> None:
    path = tmp_path / "ada.key"
    words = ("keygen", "Ada", "--out", str(path), "--target", "group:lab", "--command", "df")
    made = admin.run(*words, "--no-shell", "--not-after", "2030-01-01T00:00Z")
    assert made.returncode == 0, made.stderr
    private, public = path.read_text(), (tmp_path / "ada.pub").read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    content = json.loads(public)
    key = content.pop("key")
    assert content == {
        "kind": "trusted_key",
        "name": "ada",
        "targets": ["group:lab"],
        "commands": ["df"],
        "shell": False,
        "not_after": "2030-01-01T00:00:00Z",
    }
    signer = Signer.load(path)
    assert signer is not None
    assert signer.public_text == key
    again = admin.run("keygen", "ada", "--out", str(path))
    other = admin.run("keygen", "ada", "--out", str(tmp_path / "other.key"))
    assert (again.returncode, other.returncode) == (1, 1)
    assert "exists already; nothing was created" in again.stderr
    assert not (tmp_path / "other.key").exists()
    assert (path.read_text(), (tmp_path / "ada.pub").read_text()) == (private, public)
    wrong = admin.run("keygen", "bob", "--out", str(tmp_path / "bob.key"), "--target", "lab")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("pcm: --target: 'lab' is not a target")
    assert not (tmp_path / "bob.key").exists()


async def test_a_job_is_saved_approved_and_sent_as_it_was_signed(
    admin: Admin, keys: Keys, tmp_path: Path
) -> None:
    keys.trust("ada"), keys.trust("bob")
    ada, bob = (str(keys.private[name]) for name in ("ada", "bob"))
    name = f"ws-{tmp_path.name}"[:60].replace("_", "-")
    await admin.declare(name)
    await admin.append([check_in(name)])
    file = tmp_path / "job.json"
    words = ("send", "--to", f"workstation:{name}", "--save", str(file), "--", "df", "-h")
    unsigned = admin.run(*words)
    assert (unsigned.returncode, file.exists()) == (2, False)
    assert "PCM_SIGNING_KEY: is not set" in unsigned.stderr
    saved = admin.run(*words, signing_key=ada)
    assert saved.returncode == 0, saved.stderr
    over = admin.run(*words, signing_key=ada)
    assert (over.returncode, over.stderr) == (2, f"pcm: --save: {file}: File exists\n")
    twice = admin.run("approve", str(file), "--yes", signing_key=ada)
    assert "ada has signed it already" in twice.stderr
    trusting = {"trusted_keys": str(keys.folder)}
    approved = admin.run("approve", str(file), "--yes", signing_key=bob, **trusting)
    assert approved.returncode == 0, approved.stderr
    for text in ("df -h", f"workstation:{name}", "ada (verified)"):
        assert text in approved.stdout
    checked = admin.run("check", str(file))
    assert checked.stdout.startswith(f"{file}: 1 job\n  foreground.optional   df -h  to ")
    mixed = admin.run("send", "--file", str(file), "--name", "other")
    assert mixed.returncode == 2
    sent = admin.run("send", "--file", str(file))
    assert sent.returncode == 0, sent.stderr
    shown = json.loads(admin.run("show", sent.stdout.strip(), "--json", **trusting).stdout)
    assert [(one["name"], one["verified"]) for one in shown["signatures"]] == [
        ("ada", True),
        ("bob", True),
    ]
    (keys.folder / "bob.pub").unlink()
    text = admin.run("show", sent.stdout.strip(), **trusting).stdout
    assert "ada (verified), bob (key " in text
    assert "NOT VERIFIED" in text
    assert "not checked: no PCM_TRUSTED_KEYS" in admin.run("show", sent.stdout.strip()).stdout
    # A changed letter in the file is found by each check.
    file.write_text(file.read_text().replace('df\\"', 'rm\\"'))
    keys.trust("cleo")
    altered = admin.run(
        "approve", str(file), "--yes", signing_key=str(keys.private["cleo"]), **trusting
    )
    assert "the signature of ada is not of this message" in altered.stdout


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("no json", "is not a job saved by pcm send --save"),
        ('{"kind": "signed_job"}', "text: Field required"),
        ('{"kind": "signed_job", "text": "{}"}', "command: Field required"),
        (None, "No such file"),
    ],
)
def test_what_cannot_be_approved_is_reported_in_a_line(
    admin: Admin, keys: Keys, tmp_path: Path, content: str | None, said: str
) -> None:
    keys.make("ada")
    file = tmp_path / "job.json"
    if content is not None:
        file.write_text(content)
    done = admin.run("approve", str(file), "--yes", signing_key=str(keys.private["ada"]))
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


async def test_what_others_recorded_is_not_signed_for_them(
    admin: Admin, keys: Keys, settings: DispatcherSettings, tmp_path: Path
) -> None:
    """A stolen password can write into the stream: a job to rerun, a rollout, a schedule."""
    keys.make("ada"), keys.trust("bob")
    name = f"ws-{tmp_path.name}"[:60].replace("_", "-")
    await admin.declare(name)
    now = datetime.now(UTC)
    command, targets = Command(argv=("true",), background=True), (workstation(name),)
    forged, trusted = (Job(command=command, targets=targets) for _ in range(2))
    rollout = Rollout(job=forged, waves=((name,),))
    schedules = [
        Schedule(
            name=f"{prefix}-{tmp_path.name}"[:60],
            repeat="* * * * *",
            zone="UTC",
            job=forged,
            created_at=now - timedelta(minutes=2),
        )
        for prefix in ("forged", "trusted", "own")
    ]
    await admin.append([check_in(name), forged, ended(forged, name, 1)])
    signing = {"signing_key": keys.private["ada"], "trusted_keys": keys.folder}
    by_bob = settings.model_copy(update={"signing_key": keys.private["bob"]})
    async with Dispatcher.connect(by_bob) as dispatcher:
        await dispatcher.dispatch(trusted)
        await dispatcher.record(schedules[1])
    await admin.append([ended(trusted, name, 1)])
    async with Dispatcher.connect(settings) as dispatcher:
        await dispatcher.record(rollout)
        await dispatcher.record(schedules[0])
    async with Dispatcher.connect(settings.model_copy(update=signing)) as dispatcher:
        await dispatcher.record(schedules[2])
    variables = {key: str(path) for key, path in signing.items()}
    for words in (("rerun", forged.id), ("rollout", "resume", rollout.id)):
        done = admin.run(*words, **variables)
        assert done.returncode == 1
        assert "(it is not signed); nothing was sent" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    again = admin.run("rerun", trusted.id, **variables)
    assert again.returncode == 0, again.stderr
    assert admin.run("rerun", forged.id).returncode == 0  # who signs nothing, signs nothing for it
    history = HistorySettings(
        amqp_url=settings.amqp_url,
        history_url=admin.environment["PCM_HISTORY_URL"],
        signing_key=keys.private["ada"],
        trusted_keys=keys.folder,
    )
    engine = open_history(history.history_url)
    try:
        await ScheduleRunner(history, engine).send_due(now)
    finally:
        engine.dispose()
    jobs = json.loads(admin.run("jobs", "--json").stdout)
    sent = {row["schedule"] for row in jobs if row.get("schedule")}
    assert sent & {schedule.name for schedule in schedules} == {
        schedule.name for schedule in schedules[1:]
    }


class Signers:
    """A wide key at hand, and a narrow and an expired one that signed what is on record."""

    def __init__(self, keys: Keys, settings: DispatcherSettings, folder: Path) -> None:
        self.here, self.elsewhere = (
            f"{word}-{folder.name}"[:60].replace("_", "-") for word in ("a", "b")
        )
        self.now = datetime.now(UTC)
        keys.make("wide")
        keys.trust("narrow", targets=(workstation(self.here),))
        keys.trust("expired", not_after=self.now - timedelta(days=1))
        self.by = {
            key: settings.model_copy(update={"signing_key": keys.private[key]})
            for key in ("narrow", "expired", "wide")
        }
        self.wide = {"signing_key": str(keys.private["wide"]), "trusted_keys": str(keys.folder)}
        self.for_both, self.for_one = (
            Job(
                command=Command(argv=("true",), background=True),
                targets=tuple(map(workstation, names)),
            )
            for names in ((self.here, self.elsewhere), (self.here,))
        )


async def test_a_narrow_or_expired_key_does_not_become_the_wide_one(
    admin: Admin, keys: Keys, settings: DispatcherSettings, tmp_path: Path
) -> None:
    """A job that agents refused, or would refuse, is not signed again by a key without limits."""
    signers = Signers(keys, settings, tmp_path)
    here, elsewhere = signers.here, signers.elsewhere
    for_both, for_one = signers.for_both, signers.for_one
    for name in (here, elsewhere):
        await admin.declare(name)
    plan = Rollout(job=for_both, waves=((here,), (elsewhere,)))
    async with Dispatcher.connect(signers.by["narrow"]) as dispatcher:
        await dispatcher.dispatch(for_both)
        await dispatcher.record(plan)
    async with Dispatcher.connect(signers.by["expired"]) as dispatcher:
        await dispatcher.dispatch(for_one)
    await admin.append([check_in(here), check_in(elsewhere), ended(for_both, here, 1)])
    await admin.append(
        [report(for_both, elsewhere, State.REFUSED), report(for_one, here, State.REFUSED)]
    )
    only_narrow = f"(workstation:{elsewhere}: the key of narrow may order only workstation:{here})"
    for words, status, said in (
        ((for_one.id,), 1, "it was refused on 1: --state refused sends it there"),
        ((for_one.id, "--state", "refused"), 1, "the key of expired is not valid after"),
        ((for_both.id, "--state", "refused"), 1, only_narrow),
        ((for_both.id, "--workstation", elsewhere), 1, "--state refused sends it there"),
        ((for_both.id,), 0, "left out: 1 workstation refused it; --state refused"),
    ):
        done = admin.run("rerun", *words, **signers.wide)
        assert (done.returncode, len(done.stderr.splitlines())) == (status, 1), done
        assert said in done.stderr
    resumed = admin.run("rollout", "resume", plan.id, **signers.wide)
    assert resumed.returncode == 1
    assert only_narrow in resumed.stderr
    text = admin.run("show", for_both.id, **signers.wide).stdout
    assert f"narrow (verified, but may not order this now: workstation:{elsewhere}: " in text
    shown = json.loads(admin.run("show", for_one.id, "--json", **signers.wide).stdout)
    assert [(one["verified"], one["may_order"]) for one in shown["signatures"]] == [(True, False)]


async def test_a_schedule_is_sent_only_for_whom_its_key_may_order(
    admin: Admin, keys: Keys, settings: DispatcherSettings, tmp_path: Path
) -> None:
    """A key that may not order it cannot remove it either."""
    signers = Signers(keys, settings, tmp_path)
    for name in (signers.here, signers.elsewhere):
        await admin.declare(name)
    schedules = {
        word: Schedule(
            name=f"{word}-{tmp_path.name}"[:60],
            repeat="* * * * *",
            zone="UTC",
            job=signers.for_one if word in {"own", "left"} else signers.for_both,
            created_at=signers.now - timedelta(minutes=2),
        )
        for word in ("own", "left", "others", "kept", "late")
    }
    removals = {word: ScheduleRemoval(name=schedules[word].name) for word in ("kept", "left")}
    async with Dispatcher.connect(signers.by["wide"]) as dispatcher:
        await dispatcher.record(schedules["kept"])
        await dispatcher.record(schedules["left"])
    async with Dispatcher.connect(signers.by["narrow"]) as dispatcher:
        for record in (schedules["own"], schedules["others"], removals["kept"]):
            await dispatcher.record(record)
    async with Dispatcher.connect(signers.by["expired"]) as dispatcher:
        await dispatcher.record(schedules["late"])
        await dispatcher.record(removals["left"])
    history = HistorySettings(
        amqp_url=settings.amqp_url,
        history_url=admin.environment["PCM_HISTORY_URL"],
        signing_key=keys.private["wide"],
        trusted_keys=keys.folder,
    )
    engine = open_history(history.history_url)
    try:
        with capture_logs() as logged:
            await ScheduleRunner(history, engine).send_due(signers.now)
    finally:
        engine.dispose()
    words = {schedule.name: word for word, schedule in schedules.items()}
    jobs = json.loads(admin.run("jobs", "--json").stdout)
    sent = {words[row["schedule"]] for row in jobs if row.get("schedule") in words}
    assert sent == {"own", "left", "kept"}
    untrusted = [event["schedule"] for event in logged if event["event"] == "schedule.untrusted"]
    assert sorted(words[name] for name in untrusted if name in words) == [
        "kept",
        "late",
        "left",
        "others",
    ]


async def test_what_is_recorded_again_keeps_its_signatures(
    keys: Keys, settings: DispatcherSettings, tmp_path: Path
) -> None:
    """As a rebuild of the history does with schedules: original signatures are kept."""
    keys.make("ada"), keys.make("bob")
    # No workstation has this name: the schedules stay in the stream for other tests.
    job = Job(command=Command(argv=("true",)), targets=(workstation("nowhere"),))
    signed, unsigned = (
        Schedule(name=f"{word}-{tmp_path.name}"[:60], repeat="0 2 * * *", job=job)
        for word in ("signed", "unsigned")
    )
    by_bob, by_ada = (
        settings.model_copy(update={"signing_key": keys.private[name]}) for name in ("bob", "ada")
    )
    names = {signed.name.encode(), unsigned.name.encode()}

    async def recorded() -> list[StreamEntry]:
        async with connect(settings, "test") as connection:
            publisher = await Publisher.open(connection)
            entries = stream.read_all(connection, publisher, None)
            return [one async for one in entries if any(name in one.body for name in names)]

    async with Dispatcher.connect(by_bob) as dispatcher:
        await dispatcher.record(signed)
    async with Dispatcher.connect(settings) as dispatcher:
        await dispatcher.record(unsigned)
    first = await recorded()
    async with Dispatcher.connect(by_ada) as dispatcher:
        for schedule, entry in zip((signed, unsigned), first, strict=True):
            await dispatcher.record_again(schedule, entry)
    entries = [(entry.body, entry.signatures) for entry in await recorded()]
    assert entries == entries[:2] * 2
    assert ["bob" in signatures for _, signatures in entries[:2]] == [True, False]
