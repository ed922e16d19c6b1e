"""The order of the users' sessions, and the files that count."""

import os
from pathlib import Path

import pytest

from agents.claims import standings
from agents.claims.standings import PREFIX, Standing, Standings, is_at_screen
from agents.identity import Identity
from agents.store.state_folder import claims_directory
from broker.amqp.topology import AgentKind

NOTHING = Standing(due_at=100, accepted=False, answered=False, shown_at=5)
ANSWERED = Standing(due_at=100, accepted=False, answered=True, shown_at=9)
ACCEPTED = Standing(due_at=0, accepted=True, answered=True, shown_at=9)
LATER = Standing(due_at=100, accepted=False, answered=False, shown_at=6)


def of(folder: Path, user: str) -> Standings:
    return Standings(folder, Identity(AgentKind.INTERACTIVE, "ws", user))


@pytest.mark.parametrize(
    ("own", "other", "now", "gives_way"),
    [
        (NOTHING, ANSWERED, 100, True),
        (NOTHING, ANSWERED, 99, False),  # its countdown goes on
        (NOTHING, ACCEPTED, 99, True),
        (NOTHING, LATER, 100, False),
        (LATER, NOTHING, 100, True),
        (ANSWERED, NOTHING, 100, False),
        (ANSWERED, ACCEPTED, 0, True),
        (ACCEPTED, ACCEPTED, 100, False),
    ],
)
def test_the_session_that_comes_first(
    tmp_path: Path, own: Standing, other: Standing, now: float, *, gives_way: bool
) -> None:
    ada, ben = of(tmp_path, "ada"), of(tmp_path, "ben")
    ben.publish({"other": NOTHING, "job": other})
    assert not ada.prefers_other("job", now)  # not shown to ada
    ada.publish({"job": own})
    assert ada.prefers_other("job", now) is gives_way
    ben.publish({})
    assert not ada.prefers_other("job", now)
    ben.publish({"job": other})
    ben.close()  # its agent has ended
    assert not ada.prefers_other("job", now)


def test_the_user_at_the_screen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standings, "_LOGIND_USERS", tmp_path)
    for user_id, text, at_screen in (
        (1, "NAME=ada\nSTATE=active\nACTIVE_SEATS=seat0\n", True),
        (2, "NAME=ben\nSTATE=active\nSEATS=seat0\nACTIVE_SEATS=\n", False),
        (3, "NAME=eve\nSTATE=active\n", False),
    ):
        (tmp_path / str(user_id)).write_text(text)
        assert is_at_screen(user_id) is at_screen
    assert not is_at_screen(4)
    assert LATER.rank(1) > NOTHING.rank(2)
    assert ANSWERED.rank(2) > NOTHING.rank(1)


def test_what_is_no_standing_of_an_agent_counts_nothing(tmp_path: Path) -> None:
    ada, folder, user_id = of(tmp_path, "ada"), claims_directory(tmp_path), os.geteuid()
    ada.publish({"job": NOTHING})
    too_great = f'{{"job": [1{"0" * 400}, true, true, 0]}}'
    texts = (
        "",
        "[",
        "[" * 5000,
        "{}",
        '{"job": 1}',
        '{"job": ["x", true, true, 0]}',
        "null",
        too_great,
    )
    for number, text in enumerate(texts):
        ben = of(tmp_path, f"ben-{number}")
        (folder / f"{PREFIX}{user_id}.interactive-ben-{number}").write_text(text)
        assert not ada.prefers_other("job", 100)
        ben.close()
    (folder / f"{PREFIX}{user_id}.folder").mkdir()
    os.mkfifo(folder / f"{PREFIX}{user_id}.pipe")
    ben = of(tmp_path, "ben")
    ben.publish({"job": ANSWERED})
    assert ada.prefers_other("job", 100)
    path = folder / f"{PREFIX}{user_id}.interactive-ben"
    path.rename(folder / f"{PREFIX}{user_id + 1}.interactive-eve")  # in another user's name
    assert not ada.prefers_other("job", 100)
