"""A machine's identity: its own, stable, and no published machine id."""

from pathlib import Path

import pytest

from agents import machine


@pytest.fixture
def own_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let this machine's id be in a file of the test."""
    path = tmp_path / "machine-id"
    path.write_text("5b0e3c4c7f5c4b35a9a3d1c0ffee0001\n")
    monkeypatch.setattr(machine, "_MACHINE_ID", path)
    return path


def _folder(parent: Path, name: str) -> Path:
    folder = parent / name
    folder.mkdir(mode=0o700)
    return folder


def test_it_is_stable_and_a_hash(own_id: Path, tmp_path: Path) -> None:
    folder = _folder(tmp_path, "service")
    found = machine.identify(folder)
    assert machine.identify(folder) == found
    for secret in (own_id, folder / "machine-id"):
        assert secret.read_text().strip() not in found.model_dump_json()
    assert (folder / "machine-id").stat().st_mode & 0o777 == 0o600


def test_other_machines_and_other_folders_have_another(own_id: Path, tmp_path: Path) -> None:
    one, other = _folder(tmp_path, "one"), _folder(tmp_path, "other")
    ids = {machine.identify(one).id, machine.identify(other).id}
    own_id.write_text("5b0e3c4c7f5c4b35a9a3d1c0ffee0002\n")
    ids.add(machine.identify(one).id)
    own_id.unlink()  # as in a container
    ids |= {machine.identify(one).id, machine.identify(one).id}
    assert len(ids) == 4


@pytest.mark.usefixtures("own_id")
def test_a_damaged_id_is_made_again(tmp_path: Path) -> None:
    folder = _folder(tmp_path, "service")
    former = machine.identify(folder).id
    (folder / "machine-id").write_bytes(b"\xff" * 10)
    (folder / "machine-id.new").write_text("left by a crash")
    made = machine.identify(folder).id
    assert made != former
    assert machine.identify(folder).id == made
