"""What agents say of themselves, the groups they are in by facts, and jobs that leave them out."""

import platform

import pytest

from agents import facts, platforms
from schemas import Facts
from schemas.names import check_name

AUTOMATIC = facts.gather().groups


def test_facts_are_those_of_this_machine() -> None:
    found = facts.gather()
    assert found is facts.gather()
    assert found.os == "linux"
    assert f"{found.os}/{found.arch}" in platforms.here()
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
