"""Check-ins, groups by facts, and jobs that exclude workstations."""

import platform
from pathlib import Path

import pytest

from agents import facts, platforms
from schemas import Facts
from schemas.names import check_name

AUTOMATIC = facts.gather_facts().groups


def test_facts_are_those_of_this_machine() -> None:
    found = facts.gather_facts()
    assert found is facts.gather_facts()
    assert found.os == "linux"
    assert f"{found.os}/{found.arch}" in platforms.platform_names()
    assert found.python == platform.python_version()
    assert found.memory > 64 * 1024 * 1024
    assert {f"os-{found.os}", f"arch-{found.arch}"} < set(AUTOMATIC)


@pytest.mark.parametrize(
    "text", ["x86_64", "Linux", "opensuse-tumbleweed", "ubuntu-24.04", "a b/c:d", "ärz", "x" * 100]
)
def test_groups_of_facts_are_names_whatever_the_facts_are(text: str) -> None:
    groups = Facts(os=text, arch=text, release=text).groups
    assert len(groups) == 3
    assert [check_name(name) for name in groups] == list(groups)
    assert not Facts().groups


@pytest.mark.parametrize(
    ("given", "zone"),
    [
        ("Europe/Berlin", "Europe/Berlin"),
        (":America/New_York", "America/New_York"),
        ("", "UTC"),  # as the C library has it
        ("CET-1CEST", ""),
        (":/usr/share/zoneinfo/Europe/Berlin", "Europe/Berlin"),
    ],
)
def test_the_zone_is_that_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, given: str, zone: str
) -> None:
    monkeypatch.setenv("TZ", given)
    assert facts.zone() == zone


def test_the_zone_is_that_of_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TZ", raising=False)
    clock = tmp_path / "localtime"
    monkeypatch.setattr(platforms, "LOCAL_ZONE", clock)
    assert facts.zone() == "UTC"
    clock.write_bytes(b"a copy of a file has no name")
    assert facts.zone() == ""
    file = tmp_path / "zoneinfo" / "Europe" / "Berlin"
    file.parent.mkdir(parents=True)
    file.touch()
    clock.unlink()
    clock.symlink_to(file)
    assert facts.zone() == "Europe/Berlin"
