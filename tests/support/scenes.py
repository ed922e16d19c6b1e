"""The window's main states, the same at every time and place: for pictures."""

from tests.support.standin import NOW, Fields, ended, offer, running, snapshot

_MINUTE, _HOUR, _DAY = 60, 3600, 86400

OFFERS = [
    offer(
        "20261118-100000-aaaaaaaaaa",
        "Office update 2026.4",
        comment="Closes a hole in the mail program; it restarts your mail.",
        sender="mallory@desk-7",
        command="/opt/office/update --quiet --to 2026.4",
        deadline=NOW + 12 * _MINUTE + 5,
        countdown=True,
        expires_at=NOW + 2 * _DAY,
        timeout=20 * _MINUTE,
        postponements_left=2,
    ),
    offer(
        "20261118-100000-bbbbbbbbbb",
        "Encrypt the disk",
        comment="Needed by the new data rules.",
        deadline=NOW + 6 * _HOUR,
        state="postponed",
        until=NOW + _HOUR,
        expires_at=NOW + 7 * _DAY,
        timeout=2 * _HOUR,
    ),
    offer(
        "20261118-100000-cccccccccc",
        "Try the new drawing program",
        comment="Please give feedback.",
        expires_at=NOW + 3 * _DAY,
        timeout=10 * _MINUTE,
    ),
    offer(
        "20261118-100000-dddddddddd",
        "Clean old downloads",
        comment="Frees about 12 GB.",
        state="declined",
        timeout=5 * _MINUTE,
    ),
]
RUNNING = [running("20261118-100000-eeeeeeeeee", "Collect printer settings", timeout=10 * _MINUTE)]
OUTPUT: list[Fields] = [
    {"stream": "stdout", "text": "looking for printers\n"},
    {"stream": "stdout", "text": "found: floor-2-colour\nfound: floor-2-plotter\n"},
    {"stream": "stderr", "text": "floor-3-mono does not answer\n"},
    {"stream": "stdout", "text": "writing \x1b[31msettings\x1b[0m"},
]
HISTORY = [
    ended("20261118-090000-1111111111", "Fonts for the new letterhead"),
    ended(
        "20261118-080000-2222222222",
        "Kernel modules",
        restart_required=True,
        exit_code=3010,
        at=NOW - 2 * _HOUR,
        duration=381.0,
    ),
    ended(
        "20261117-080000-3333333333",
        "Scanner driver",
        state="failed",
        exit_code=2,
        at=NOW - _DAY,
        sender="mallory@desk-7",
    ),
    ended(
        "20261116-080000-4444444444",
        "Survey",
        state="expired",
        exit_code=None,
        duration=None,
        at=NOW - 2 * _DAY,
    ),
]


def busy() -> Fields:
    """Return a snapshot with something in each tab."""
    return snapshot(offers=OFFERS, running=RUNNING, history=HISTORY)
