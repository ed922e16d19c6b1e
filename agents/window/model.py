"""The contents of the window, without the widgets: rows, their order, and their texts."""

from dataclasses import dataclass

from agents.window.snapshot import EndedJob, Offer, RunningJob, Snapshot
from agents.window.times import DAY, HOUR, MINUTE, clock, duration, remaining
from schemas.text import counted

URGENT = 60.0
"""Seconds before its deadline from which a job is first in the table and rings the bell."""

_CHOICES = (1, 2, 5, 15, 30, 60, 120, 240, 480, 1440)  # minutes
_MAX_CHOICES = 6
_BAR_WIDTH = 8
_MAX_RECENT = 5
_GOOD, _BAD, _NEUTRAL, _RESTART = "\N{CHECK MARK}", "\N{BALLOT X}", "\N{EN DASH}", "\u21bb"


@dataclass(frozen=True)
class OfferRow:
    """The texts of an offer's row."""

    job: str
    name: str
    sender: str
    comment: str
    requirement: str
    time_left: str
    bar: str
    expires: str
    timeout: str
    urgent: bool


def is_urgent(offer: Offer, now: float) -> bool:
    """Return whether a job's deadline is less than `URGENT` seconds away."""
    return offer.deadline is not None and offer.deadline - now < URGENT


def sorted_offers(
    offers: tuple[Offer, ...], now: float, reminders: dict[str, float]
) -> list[Offer]:
    """Return offers in the order of the table: urgent ones first, then by deadline."""

    def sort_key(offer: Offer) -> tuple[int, float, str]:
        decided = offer.state != "offered" or reminders.get(offer.job, 0) > now
        if is_urgent(offer, now):
            rank = 0
        elif decided:
            rank = 3
        else:
            rank = 1 if offer.mandatory else 2
        return rank, offer.limit, offer.job

    return sorted(offers, key=sort_key)


def offer_row(offer: Offer, now: float, since: float, remind_at: float = 0.0) -> OfferRow:
    """Return an offer's row."""
    return OfferRow(
        job=offer.job,
        name=offer.name,
        sender=offer.sender,
        comment=offer.comment,
        requirement=requirement(offer),
        time_left=time_left(offer, now, remind_at),
        bar=progress_bar(offer, now, since),
        expires=clock(offer.expires_at, now) if offer.expires_at else "never",
        timeout=duration(offer.timeout),
        urgent=is_urgent(offer, now),
    )


def requirement(offer: Offer) -> str:
    """Return an offer's requirement, or its state if the user has decided."""
    sign = "\N{BLACK CIRCLE}" if offer.mandatory else "\N{WHITE CIRCLE}"
    if offer.state in ("postponed", "declined", "accepted"):
        return f"{sign} {offer.state}"
    return f"{sign} {'mandatory' if offer.mandatory else 'optional'}"


def time_left(offer: Offer, now: float, remind_at: float = 0.0) -> str:
    """Return the time until an offer runs automatically, or when it is shown again."""
    if offer.state == "accepted":
        if offer.starts_at and offer.starts_at > now:
            return f"starts {clock(offer.starts_at, now)}"
        return "waits for its files" if offer.waits else "starts soon"
    if offer.deadline is not None:
        return remaining(offer.deadline - now)
    until = offer.until if offer.state == "postponed" else None
    if shown_again_at := max(until or 0.0, remind_at if remind_at > now else 0.0):
        return f"again {clock(shown_again_at, now)}"
    return "no deadline"


def progress_bar(offer: Offer, now: float, since: float) -> str:
    """Return a bar of the time left, of that between `since` and the deadline; "" for neither."""
    if offer.deadline is None or offer.state == "accepted":
        return ""
    total = offer.deadline - since
    share = (offer.deadline - now) / total if total > 0 else 0.0
    full = min(_BAR_WIDTH, max(0, round(share * _BAR_WIDTH)))
    return "\N{FULL BLOCK}" * full + "\N{LIGHT SHADE}" * (_BAR_WIDTH - full)


def next_steps(offer: Offer, now: float, remind_at: float = 0.0) -> str:
    """Return sentences about what happens to an offer next, and whether it can be postponed."""
    parts = (
        _next_event(offer, now),
        _user_choice(offer, now, remind_at),
        _postponements_left(offer),
    )
    return " ".join(filter(None, parts))


def _next_event(offer: Offer, now: float) -> str:
    if offer.state == "accepted":
        if offer.starts_at and offer.starts_at > now:
            return f"Starts at {clock(offer.starts_at, now)}, in the next maintenance window."
        if offer.waits:
            return f"You accepted it; it {offer.waits}."
        return "You accepted it: it starts as soon as possible."
    if offer.deadline is not None:
        return f"Runs automatically at {clock(offer.deadline, now)}."
    return "Runs only if you start it."


def _user_choice(offer: Offer, now: float, remind_at: float) -> str:
    if remind_at > now:
        return f"You will be reminded at {clock(remind_at, now)}."
    if offer.state == "postponed" and offer.until:
        return f"You postponed it until {clock(offer.until, now)}."
    if offer.state == "declined":
        return "You declined it; you can still run it."
    return ""


def _postponements_left(offer: Offer) -> str:
    if offer.postponements_left is None or offer.state == "accepted":
        return ""
    if not offer.postponements_left:
        return "It cannot be postponed again."
    times = offer.postponements_left
    text = "It can be postponed once more." if times == 1 else "It can be postponed {n} more times."
    return text.format(n=times)


def is_allowed(action: str, offer: Offer, now: float) -> bool:
    """Return whether the user can apply an action to an offer."""
    if offer.state == "accepted":
        return False
    match action:
        case "postpone":
            return offer.postponements_left != 0 and now < offer.limit
        case "remind":
            return offer.state == "offered" and now < offer.limit
        case "decline":
            return offer.may_decline
    return True


def postponements(offer: Offer, now: float) -> list[float]:
    """Return the choices of a postponement, in seconds, up to the offer's limit."""
    return _choices(offer.min_interval or 0.0, offer.limit - now)


def reminders(offer: Offer, now: float) -> list[float]:
    """Return the choices of a reminder, in seconds, up to the offer's limit."""
    return _choices(0.0, offer.limit - now)


def _choices(minimum: float, maximum: float) -> list[float]:
    fitting = [minutes * 60.0 for minutes in _CHOICES if minimum <= minutes * 60 < maximum]
    return fitting[-_MAX_CHOICES:]


@dataclass(frozen=True)
class RunRow:
    """The texts of the row of a job that runs or has just ended."""

    job: str
    name: str
    elapsed: str
    state: str
    may_stop: bool
    is_running: bool


def run_rows(snapshot: Snapshot, now: float, since: float) -> list[RunRow]:
    """Return the running jobs, then those that ended after `since`; the newest first."""
    running = sorted(snapshot.running, key=lambda job: job.started_at, reverse=True)
    recent = [job for job in snapshot.history if job.duration is not None and job.at >= since]
    return [
        *(_running_row(job, now) for job in running),
        *(_ended_row(job) for job in recent[:_MAX_RECENT]),
    ]


def _running_row(job: RunningJob, now: float) -> RunRow:
    state = f"running, limit {duration(job.timeout)}"
    elapsed = remaining(now - job.started_at)
    return RunRow(job.job, job.name, elapsed, state, job.may_stop, is_running=True)


def _ended_row(job: EndedJob) -> RunRow:
    elapsed = duration(job.duration or 0)
    return RunRow(job.job, job.name, elapsed, result(job), may_stop=False, is_running=False)


def result(job: EndedJob) -> str:
    """Return a sign and a text for how a job ended."""
    sign, text = _result(job)
    return f"{sign} {text}"


def _result(job: EndedJob) -> tuple[str, str]:
    if job.state == "failed":
        return _BAD, _failure(job)
    if job.state == "succeeded" and job.restart_required:
        return _RESTART, "finished: needs a restart"
    if job.state == "cancelled" and job.duration is not None:
        return _NEUTRAL, "stopped"
    results = {
        "succeeded": (_GOOD, "finished"),
        "timed_out": (_BAD, "timed out"),
        "interrupted": (_BAD, "interrupted"),
        "cancelled": (_NEUTRAL, "cancelled, not run"),
        "expired": (_NEUTRAL, "expired, not run"),
        "not_applicable": (_NEUTRAL, "not for this computer"),
    }
    return results.get(job.state, (_BAD, "refused"))


def _failure(job: EndedJob) -> str:
    if job.exit_code is not None:
        return f"failed: exit code {job.exit_code}"
    if job.signal is not None:
        return f"failed: ended by signal {job.signal}"
    return "failed: could not be started"


def search(history: tuple[EndedJob, ...], text: str) -> list[EndedJob]:
    """Return the jobs that contain all words of a search."""
    words = text.casefold().split()

    def has_all(job: EndedJob) -> bool:
        parts = (job.name, job.comment, job.sender, job.command, job.job, result(job))
        job_text = " ".join(parts).casefold()
        return all(word in job_text for word in words)

    return [job for job in history if has_all(job)]


def status_messages(snapshot: Snapshot | None, now: float) -> list[str]:
    """Return the messages of the status line; none in normal operation."""
    if snapshot is None:
        return ["The agent is not running. Reconnecting\N{HORIZONTAL ELLIPSIS}"]
    since = clock(snapshot.since, now) if snapshot.since else ""
    connection_texts = {
        "unreachable": "No connection to the server since {time}; jobs on this computer continue.",
        "refused": (
            "The server has refused the login since {time}; jobs on this computer continue."
        ),
        "taken": "Another computer of this name receives the jobs since {time}.",
    }
    messages: list[str] = []
    if text := connection_texts.get(snapshot.broker):
        messages.append(text.format(time=since))
    if snapshot.paused:
        reason = f": {snapshot.paused.reason}" if snapshot.paused.reason else ""
        at = clock(snapshot.paused.since, now)
        messages.append(
            f"Paused by {snapshot.paused.by} since {at}{reason}. No job starts until it is resumed."
        )
    if snapshot.service == "absent":
        messages.append("The service agent of this computer is not running.")
    return messages


def offer_facts(offer: Offer, now: float, remind_at: float = 0.0) -> list[tuple[str, str]]:
    """Return the details of an offer, as pairs of a label and a value."""
    return [
        ("Comment", offer.comment or "(no comment)"),
        ("Sender", offer.sender),
        ("Requirement", requirement(offer)),
        ("Next", next_steps(offer, now, remind_at)),
        ("Expires", clock(offer.expires_at, now) if offer.expires_at else "never"),
        ("Time limit", duration(offer.timeout)),
        ("Command", offer.command),
        ("Job", offer.job),
    ]


def ended_facts(job: EndedJob, now: float) -> list[tuple[str, str]]:
    """Return the details of a job that ended, as pairs of a label and a value."""
    took = duration(job.duration) if job.duration is not None else "did not run"
    rows = [
        ("Result", result(job)),
        ("Reason", job.reason),
        ("When", clock(job.at, now)),
        ("Duration", took),
        ("Comment", job.comment),
        ("Sender", job.sender),
        ("Command", job.command),
        ("Job", job.job),
    ]
    return [row for row in rows if row[1]]


def duration_words(seconds: float) -> str:
    """Return a duration in full words, such as 2 hours."""
    for unit, noun in ((DAY, "day"), (HOUR, "hour")):
        if seconds >= unit:
            return counted(int(seconds // unit), noun)
    return counted(int(seconds // MINUTE), "minute")
