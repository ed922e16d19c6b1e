"""Which machines have one workstation's name, by their check-ins."""

from dataclasses import replace
from typing import Any

from broker.history.queries.machines import MachineRow, current, duplicated, former_names

NOW = 1_000_000


def row(
    machine: str, first: int, last: int, *, boot: str = "", agent: str = "service", **fields: Any
) -> MachineRow:
    given: dict[str, Any] = {"standby": False, "at": NOW, "interval": 60, "up": True, **fields}
    boot = boot or f"boot of {machine}"
    return MachineRow("ws", agent, machine, boot, host=machine, address="", first_offset=first,
                      last_offset=last, **given)  # fmt: skip


def names(*rows: MachineRow) -> list[str]:
    """Return the machines that are shown, if there is more than one."""
    found = current(rows, NOW, 2.5)
    return [row.machine for row in found] if duplicated(found) else []


def test_one_machine_is_one() -> None:
    """Also after a restart, and with two agents."""
    assert names(row("a", 1, 9)) == []
    assert names(row("a", 1, 5, boot="one"), row("a", 6, 9, boot="two")) == []
    assert names(row("a", 1, 9), row("a", 2, 8, agent="interactive-ada")) == []


def test_a_machine_that_was_replaced_is_no_second_one() -> None:
    assert names(row("old", 1, 5), row("new", 6, 9)) == []
    assert names(row("old", 1, 8, at=NOW - 8 * 86400), row("new", 6, 9)) == []


def test_a_waiting_machine_is_shown() -> None:
    waits = row("b", 3, 7, standby=True)
    assert names(row("a", 1, 9), waits) == ["a", "b"]
    clone = row("a", 3, 7, boot="of the clone", standby=True)
    assert names(row("a", 1, 9), clone) == ["a", "a"]


def test_a_machine_that_no_longer_waits_is_not_shown() -> None:
    """It was stopped, is missing, or has received the queue since."""
    holder = row("a", 1, 9)
    assert names(holder, row("b", 3, 7, standby=True, up=False)) == []
    assert names(holder, row("b", 3, 7, standby=True, at=NOW - 200)) == []
    assert names(row("a", 1, 5), row("b", 3, 5, standby=True), row("b", 6, 9)) == []


def test_machines_that_have_the_queue_in_turn_are_shown() -> None:
    """One is on by day, the other one at night: neither ever waits."""
    assert names(row("day", 1, 8), row("night", 5, 9)) == ["night", "day"]
    assert names(
        row("day", 1, 2, boot="mon"),
        row("night", 3, 4, boot="mon n"),
        row("day", 5, 6, boot="tue"),
    ) == ["day", "night"]
    assert names(row("a", 1, 8, boot="one"), row("a", 5, 9, boot="clone")) == ["a", "a"]


def test_a_former_name_is_shown_until_it_is_forgotten_or_another_machine_has_it() -> None:
    old, new = (
        replace(row("a", 1, 5), workstation="old"),
        replace(row("a", 6, 9), workstation="new"),
    )
    assert former_names([old, new, replace(row("b", 1, 9), workstation="other")]) == {
        "new": ["old"]
    }
    assert former_names([new]) == {}
    assert former_names([old, new, replace(row("b", 7, 8), workstation="old")]) == {}
    clones = replace(row("a", 3, 8), workstation="clone"), replace(row("a", 1, 9), workstation="ws")
    assert former_names(clones) == {}
