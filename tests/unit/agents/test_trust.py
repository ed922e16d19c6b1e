"""The orders that an agent accepts: the folder of keys, and the required signatures."""

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from agents.inbox.trust import Trust, Untrusted
from agents.settings import AgentSettings
from broker.settings import WrongSetting
from broker.signing.key_files import write_new
from broker.signing.signer import Signer, make_key
from schemas import Cancellation, Command, Context, Job, TrustedKey, everyone, group, workstation
from schemas.orders.signature import Signatures, write_signatures
from tests.support.keys import Keys

NOBODY = 65534


class AgentKeys(Keys):
    """Keys that an agent of ws-1 trusts."""

    def open(self, **settings: Any) -> Trust:
        """Return what the agent trusts."""
        given = {"workstation": "ws-1", "groups": ("lab",), "trusted_keys": self.folder}
        trust = Trust.from_settings(AgentSettings(**{**given, **settings}))
        assert trust is not None
        return trust


@pytest.fixture
def keys(tmp_path: Path) -> AgentKeys:
    return AgentKeys(tmp_path)


def _job(**fields: Any) -> Job:
    given: dict[str, Any] = {"command": Command(argv=("true",)), "targets": (group("lab"),)}
    return Job(**{**given, **fields})


def _objection(trust: Trust, job: Job, signatures: Signatures, body: bytes | None = None) -> str:
    trust.refresh()
    header = write_signatures(signatures)
    try:
        trust.check(job, body or job.body(), header, datetime.now(UTC))
    except Untrusted as error:
        return str(error)
    return ""


def test_what_is_signed_by_a_trusted_key_is_taken_and_nothing_else(keys: AgentKeys) -> None:
    ada, eve = keys.trust("ada"), keys.make("eve")
    trust, job = keys.open(), _job()
    other = job.model_copy(update={"targets": (everyone,)})
    assert _objection(trust, job, (ada.sign(job),)) == ""
    assert _objection(trust, job, ()) == "it is not signed"
    assert "is not trusted" in _objection(trust, job, (eve.sign(job),))
    renamed = eve.sign(job).model_copy(update={"name": "ada", "key": ada.sign(job).key})
    assert _objection(trust, job, (renamed,)) == "the signature of ada is not of this message"
    assert "is not of this message" in _objection(trust, other, (ada.sign(job),))
    assert "is not of this message" in _objection(trust, job, (ada.sign(job),), job.body() + b" ")
    assert _objection(trust, job, (eve.sign(job), ada.sign(job))) == ""


def test_another_kind_of_order_is_another_message(keys: AgentKeys) -> None:
    ada = keys.trust("ada")
    job = _job()
    cancellation = Cancellation(job_id=job.id)
    header = write_signatures((ada.sign(job),))
    with pytest.raises(Untrusted, match="not of this message"):
        keys.open().check(cancellation, job.body(), header, datetime.now(UTC))


def test_a_job_for_others_is_refused_however_it_came(keys: AgentKeys) -> None:
    """A queue may be bound to what its workstation is not in, by a stolen password."""
    ada = keys.trust("ada")
    job = _job(targets=(group("office"), workstation("ws-2")))
    assert "not for this workstation" in _objection(keys.open(), job, (ada.sign(job),))


def test_an_old_order_is_stale(keys: AgentKeys) -> None:
    trust = keys.open(signed_within=timedelta(days=3))
    now = datetime.now(UTC)
    assert trust.stale(_job(created_at=now - timedelta(days=2)), now) == ""
    assert "over 3d ago" in trust.stale(_job(created_at=now - timedelta(days=4)), now)


def test_two_different_people_sign_where_one_has_to_approve(keys: AgentKeys) -> None:
    ada, bob = keys.trust("ada"), keys.trust("bob", targets=("group:lab",))
    trust, job = keys.open(approvals=1), _job()
    by_ada = ada.sign(job)
    assert _objection(trust, job, (by_ada, bob.sign(job))) == ""
    assert "2 trusted keys must sign it, 1 did" in _objection(trust, job, (by_ada,))
    assert "2 trusted keys must sign it, 1 did" in _objection(trust, job, (by_ada, by_ada))
    # Two keys of one name, as while they are exchanged, are one signer's.
    new = keys.make("ada")
    keys.path("ada-2").write_bytes(TrustedKey(name="ada", key=new.public_text).body())
    assert "2 trusted keys must sign it, 1 did" in _objection(trust, job, (by_ada, new.sign(job)))
    # An approval out of scope is none.
    keys.path("bob").write_bytes(
        TrustedKey(name="bob", key=bob.public_text, targets=(group("office"),)).body()
    )
    assert "may order only group:office" in _objection(trust, job, (by_ada, bob.sign(job)))
    cancellation = Cancellation(job_id=job.id)
    header = write_signatures((ada.sign(cancellation),))
    trust.check(cancellation, cancellation.body(), header, datetime.now(UTC))


def test_of_two_files_of_one_key_none_is_trusted(keys: AgentKeys) -> None:
    """Otherwise the file names' order would decide which limits it has."""
    ada, bob = keys.trust("ada", targets=(group("office"),)), keys.trust("bob")
    wide = TrustedKey(name="a-second", key=ada.public_text)
    keys.path("a-second").write_bytes(wide.body())
    with capture_logs() as logged:
        trust = keys.open()
    job = _job()
    assert "is not trusted" in _objection(trust, job, (ada.sign(job),))
    assert _objection(trust, job, (bob.sign(job),)) == ""
    (problem,) = [event["reason"] for event in logged if event["event"] == "key.unusable"]
    assert str(keys.path("ada")) in problem
    assert f"has the same key as {keys.path('a-second')}" in problem
    keys.path("a-second").unlink()
    assert "may order only group:office" in _objection(trust, job, (ada.sign(job),))


def test_a_folder_is_not_reached_through_a_link_of_another_user(keys: AgentKeys) -> None:
    """Another user could change the target."""
    if os.geteuid():
        pytest.skip("needs root to make links of others")
    keys.trust("ada")
    site = keys.folder.parent
    for name, target in (("own", site), ("relative", Path("own")), ("theirs", site)):
        (site / name).symlink_to(target)
    os.chown(site / "theirs", NOBODY, 0, follow_symlinks=False)
    for way in ("own", "relative", f"own/../{site.name}"):
        keys.open(trusted_keys=site / way / keys.folder.name)
    around = site / "around"
    around.symlink_to(site / "theirs")
    loop = site / "loop"
    loop.symlink_to(loop)
    for way, reason in (
        ("theirs", "theirs: is a link of another user"),
        ("around", "theirs: is a link of another user"),
        ("loop", "is a link"),
    ):
        with pytest.raises(WrongSetting, match=f"PCM_TRUSTED_KEYS: .*{reason}"):
            keys.open(trusted_keys=site / way / keys.folder.name)
    their = site / "folder"
    their.mkdir()
    (their / "way").symlink_to(site)
    os.chown(their, NOBODY, 0)
    with pytest.raises(WrongSetting, match="folder: belongs to neither root nor this user"):
        keys.open(trusted_keys=their / "way" / keys.folder.name)


def test_keys_come_and_go_without_a_restart(keys: AgentKeys) -> None:
    ada = keys.trust("ada")
    trust, job = keys.open(), _job()
    bob = keys.trust("bob")
    assert _objection(trust, job, (bob.sign(job),)) == ""
    keys.path("ada").unlink()
    assert "is not trusted" in _objection(trust, job, (ada.sign(job),))
    key = TrustedKey(name="bob", key=bob.public_text, contexts=(Context.BACKGROUND,))
    keys.path("bob").write_bytes(key.body())
    assert "only background" in _objection(trust, job, (bob.sign(job),))


def _instead(path: Path, make: Callable[[], object]) -> None:
    path.unlink()
    make()


_FILE_HARMS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "text": (lambda path: path.write_text("no key"), "is not a public key"),
    "empty": (lambda path: path.write_text(""), "is not a public key"),
    "long": (lambda path: path.write_text("x" * 70_000), "too many for a key"),
    "writable": (lambda path: path.chmod(0o666), "others can write to it"),
    "another's": (lambda path: os.chown(path, NOBODY, 0), "belongs to neither root nor this user"),
    "link": (lambda path: path.symlink_to(path.rename(path.with_suffix(".x"))), "is a link"),
    "folder": (lambda path: _instead(path, path.mkdir), "is not a regular file"),
    "pipe": (lambda path: _instead(path, lambda: os.mkfifo(path)), "is not a regular file"),
}


@pytest.mark.parametrize(("harm", "reason"), _FILE_HARMS.values(), ids=_FILE_HARMS)
def test_a_file_that_is_broken_or_unsafe_is_reported_and_trusted_for_nothing(
    keys: AgentKeys, harm: Callable[[Path], Any], reason: str
) -> None:
    if os.geteuid():
        pytest.skip("needs root to make files of others")
    ada, bob = keys.trust("ada"), keys.trust("bob")
    trust, job = keys.open(), _job()
    harm(keys.path("ada"))
    with capture_logs() as logged:
        assert "is not trusted" in _objection(trust, job, (ada.sign(job),))
        assert _objection(trust, job, (bob.sign(job),)) == ""
    assert [reason in str(event) for event in logged].count(True) == 1


_FOLDER_HARMS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "writable": (lambda folder: folder.chmod(0o777), "others can write to it"),
    "a group's": (lambda folder: folder.chmod(0o775), "others can write to it"),
    "another's": (lambda folder: os.chown(folder, NOBODY, 0), "belongs to neither"),
    "above": (lambda folder: folder.parent.chmod(0o777), "others can write to it"),
    "gone": (lambda folder: folder.rename(folder.with_name("x")), "No such file"),
    "link": (lambda path: path.symlink_to(path.rename(path.with_name("x"))), "not a folder"),
}


@pytest.mark.parametrize(("harm", "reason"), _FOLDER_HARMS.values(), ids=_FOLDER_HARMS)
def test_a_folder_that_others_can_change_is_trusted_for_nothing(
    keys: AgentKeys,
    harm: Callable[[Path], Any],
    reason: str,
) -> None:
    if os.geteuid():
        pytest.skip("needs root to make folders of others")
    ada = keys.trust("ada")
    trust, job = keys.open(), _job()
    harm(keys.folder)
    with pytest.raises(WrongSetting, match=f"PCM_TRUSTED_KEYS: .*{reason}"):
        keys.open()
    if keys.folder.parent.stat().st_mode & 0o022:
        return  # of what is above, only the next start takes notice
    assert reason in _objection(trust, job, (ada.sign(job),))


def test_a_private_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ada.key"
    made = make_key("ada", path)
    assert path.stat().st_mode & 0o777 == 0o600
    found = Signer.load(path)
    assert found is not None
    assert found.public_text == made.public_text
    secret = path.read_text().split('"seed":"')[1][:20]
    harms: dict[str, Callable[[], object]] = {
        "others can read it: chmod 600": lambda: path.chmod(0o640),
        "not a private key": lambda: _instead(path, lambda: write_new(path, secret, 0o600)),
        "No such file": path.unlink,
    }
    for reason, harm in harms.items():
        harm()
        with pytest.raises(WrongSetting, match=reason) as raised:
            Signer.load(path)
        assert "PCM_SIGNING_KEY" in str(raised.value)
        assert secret not in str(raised.value)
