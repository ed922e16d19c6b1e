"""What is shown, without how: rows made of a snapshot, in their order, and words for them."""

from dataclasses import dataclass

from agents.window.snapshot import EndedJob, Offer, RunningJob, Snapshot
from agents.window.times import DAY, HOUR, MINUTE, clock, left, length

URGENT = 60.0
"""Seconds before a deadline from which a job is at the top, and has rung."""

_CHOICES = (1, 2, 5, 15, 30, 60, 120, 240, 480, 1440)  # minutes
_MOST_CHOICES = 6
_BAR = 8
_RECENT = 5
_GOOD, _BAD, _NEITHER, _AGAIN = "\N{CHECK MARK}", "\N{BALLOT X}", "\N{EN DASH}", "\u21bb"


@dataclass(frozen=True)
class OfferRow:
    """An offer, in words."""

    job: str
    name: str
    sender: str
    comment: str
    kind: str
    left: str
    bar: str
    expires: str
    timeout: str
    urgent: bool


def is_urgent(offer: Offer, now: float) -> bool:
    """Whether a job runs by itself so soon that the user must hear of it."""
    return offer.deadline is not None and offer.deadline - now < URGENT


def sorted_offers(
    offers: tuple[Offer, ...], now: float, reminders: dict[str, float]
) -> list[Offer]:
    """Return offers as a user should look at them: what runs next by itself first."""

    def place(offer: Offer) -> tuple[int, float, str]:
        quiet = offer.state != "offered" or reminders.get(offer.job, 0) > now
        if is_urgent(offer, now):
            rank = 0
        elif quiet:
            rank = 3
        else:
            rank = 1 if offer.mandatory else 2
        return rank, offer.limit, offer.job

    return sorted(offers, key=place)


def offer_row(offer: Offer, now: float, since: float, remind_at: float = 0.0) -> OfferRow:
    """Return an offer's row."""
    return OfferRow(
        job=offer.job,
        name=offer.name,
        sender=offer.sender,
        comment=offer.comment,
        kind=kind(offer),
        left=time_left(offer, now, remind_at),
        bar=bar(offer, now, since),
        expires=clock(offer.expires_at, now) if offer.expires_at else "never",
        timeout=length(offer.timeout),
        urgent=is_urgent(offer, now),
    )


def kind(offer: Offer) -> str:
    """Return whether an offer is mandatory, or what the user said to it."""
    sign = "\N{BLACK CIRCLE}" if offer.mandatory else "\N{WHITE CIRCLE}"
    words = {
        "postponed": "postponed",
        "declined": "declined",
        "accepted": "accepted",
    }
    plain = "required" if offer.mandatory else "optional"
    return f"{sign} {words.get(offer.state, plain)}"


def time_left(offer: Offer, now: float, remind_at: float = 0.0) -> str:
    """Return how long until an offer runs by itself, or when it comes back."""
    if offer.state == "accepted":
        if offer.starts_at and offer.starts_at > now:
            return f"starts {clock(offer.starts_at, now)}"
        return "starts soon"
    if offer.deadline is not None:
        return left(offer.deadline - now)
    back = offer.until if offer.state == "postponed" else None
    if back := max(back or 0.0, remind_at if remind_at > now else 0.0):
        return f"again {clock(back, now)}"
    return "if you like"


def bar(offer: Offer, now: float, since: float) -> str:
    """Return the share of the time since then that is left, drawn; nothing if none runs out."""
    if offer.deadline is None or offer.state == "accepted":
        return ""
    whole = offer.deadline - since
    share = (offer.deadline - now) / whole if whole > 0 else 0.0
    full = min(_BAR, max(0, round(share * _BAR)))
    return "\N{FULL BLOCK}" * full + "\N{LIGHT SHADE}" * (_BAR - full)


def sentences(offer: Offer, now: float, remind_at: float = 0.0) -> str:
    """Say what happens to an offer next, and what the user may do about it."""
    return " ".join(filter(None, (_next(offer, now), _back(offer, now, remind_at), _may(offer))))


def _next(offer: Offer, now: float) -> str:
    if offer.state == "accepted":
        if offer.starts_at and offer.starts_at > now:
            return f"Starts at {clock(offer.starts_at, now)}, when this computer may be worked on."
        return "You said yes: it starts as soon as it may."
    if offer.deadline is not None:
        return f"Runs by itself at {clock(offer.deadline, now)}."
    return "Runs only if you want it."


def _back(offer: Offer, now: float, remind_at: float) -> str:
    if remind_at > now:
        return f"You will be reminded at {clock(remind_at, now)}."
    if offer.state == "postponed" and offer.until:
        return f"You postponed it until {clock(offer.until, now)}."
    if offer.state == "declined":
        return "You declined it; you may still run it."
    return ""


def _may(offer: Offer) -> str:
    if offer.postponements_left is None or offer.state == "accepted":
        return ""
    if not offer.postponements_left:
        return "It cannot be postponed any more."
    times = offer.postponements_left
    text = "It can be postponed once more." if times == 1 else "It can be postponed {n} more times."
    return text.format(n=times)


def may(action: str, offer: Offer, now: float) -> bool:
    """Whether the user may do something to an offer."""
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
    """Return for how many seconds an offer can be postponed: fewer choices the less is left."""
    return _choices(offer.min_interval or 0.0, offer.limit - now)


def reminders(offer: Offer, now: float) -> list[float]:
    """Return after how many seconds the user can be reminded of an offer."""
    return _choices(0.0, offer.limit - now)


def _choices(least: float, room: float) -> list[float]:
    fit = [minutes * 60.0 for minutes in _CHOICES if least <= minutes * 60 < room]
    return fit[-_MOST_CHOICES:]


@dataclass(frozen=True)
class RunRow:
    """A job that runs, or did so a moment ago."""

    job: str
    name: str
    elapsed: str
    words: str
    may_stop: bool
    runs: bool


def run_rows(snapshot: Snapshot, now: float, since: float) -> list[RunRow]:
    """Return what runs, and below it what ran since a time; the newest first."""
    running = sorted(snapshot.running, key=lambda job: job.started_at, reverse=True)
    recent = [job for job in snapshot.history if job.duration is not None and job.at >= since]
    return [*(_runs(job, now) for job in running), *(_ran(job) for job in recent[:_RECENT])]


def _runs(job: RunningJob, now: float) -> RunRow:
    words = f"runs; at most {length(job.timeout)}"
    return RunRow(job.job, job.name, left(now - job.started_at), words, job.may_stop, runs=True)


def _ran(job: EndedJob) -> RunRow:
    took = length(job.duration or 0)
    return RunRow(job.job, job.name, took, result(job), may_stop=False, runs=False)


def result(job: EndedJob) -> str:
    """Return in words how a job ended."""
    sign, words = _result(job)
    return f"{sign} {words}"


def _result(job: EndedJob) -> tuple[str, str]:
    if job.state == "failed":
        return _BAD, _failure(job)
    if job.state == "succeeded" and job.restart_required:
        return _AGAIN, "finished: needs a restart"
    if job.state == "cancelled" and job.duration is not None:
        return _NEITHER, "stopped"
    ends = {
        "succeeded": (_GOOD, "finished"),
        "timed_out": (_BAD, "stopped: it took too long"),
        "interrupted": (_BAD, "broken off"),
        "cancelled": (_NEITHER, "withdrawn, not run"),
        "expired": (_NEITHER, "expired, not run"),
        "not_applicable": (_NEITHER, "not for this computer"),
    }
    return ends.get(job.state, (_BAD, "refused"))


def _failure(job: EndedJob) -> str:
    if job.exit_code is not None:
        return f"failed: exit code {job.exit_code}"
    if job.signal is not None:
        return f"failed: ended by signal {job.signal}"
    return "failed: could not be started"


def found(history: tuple[EndedJob, ...], text: str) -> list[EndedJob]:
    """Return the jobs in which all words of a search occur."""
    words = text.casefold().split()

    def has_all(job: EndedJob) -> bool:
        parts = (job.name, job.comment, job.sender, job.command, job.job, result(job))
        told = " ".join(parts).casefold()
        return all(word in told for word in words)

    return [job for job in history if has_all(job)]


def quiet(snapshot: Snapshot | None, now: float) -> list[str]:
    """Return what is not as always, in words; nothing where all is well."""
    if snapshot is None:
        return ["The agent of this window is not there. Connecting again\N{HORIZONTAL ELLIPSIS}"]
    since = clock(snapshot.since, now) if snapshot.since else ""
    told = {
        "unreachable": "No connection to the server since {time}; what is here goes on.",
        "refused": "The server refuses this computer since {time}; what is here goes on.",
    }
    found = [told[snapshot.broker].format(time=since)] if snapshot.broker in told else []
    if snapshot.paused:
        why = f": {snapshot.paused.reason}" if snapshot.paused.reason else ""
        text = "Paused by {who} since {time}{why}. Nothing starts until it goes on."
        at = clock(snapshot.paused.since, now)
        found.append(text.format(who=snapshot.paused.by, time=at, why=why))
    if snapshot.service == "absent":
        found.append("The service of this computer is not running.")
    return found


def offer_facts(offer: Offer, now: float, remind_at: float = 0.0) -> list[tuple[str, str]]:
    """Return all about an offer, as pairs of a word and what it is."""
    return [
        ("Why", offer.comment or "(nothing was said)"),
        ("From", offer.sender),
        ("Kind", kind(offer)),
        ("Next", sentences(offer, now, remind_at)),
        ("Expires", clock(offer.expires_at, now) if offer.expires_at else "never"),
        ("Takes", f"at most {length(offer.timeout)}"),
        ("Runs", offer.command),
        ("Number", offer.job),
    ]


def ended_facts(job: EndedJob, now: float) -> list[tuple[str, str]]:
    """Return all about a job that ended."""
    took = length(job.duration) if job.duration is not None else "did not run"
    rows = [
        ("Result", result(job)),
        ("Reason", job.reason),
        ("When", clock(job.at, now)),
        ("Took", took),
        ("Why", job.comment),
        ("From", job.sender),
        ("Ran" if job.duration is not None else "Runs", job.command),
        ("Number", job.job),
    ]
    return [row for row in rows if row[1]]


def whole(seconds: float) -> str:
    """Return a choice of a duration in full words."""
    if seconds >= DAY:
        return "1 day" if seconds < 2 * DAY else f"{int(seconds // DAY)} days"
    if seconds >= HOUR:
        return "1 hour" if seconds < 2 * HOUR else f"{int(seconds // HOUR)} hours"
    minutes = int(seconds // MINUTE)
    return "1 minute" if minutes == 1 else f"{minutes} minutes"
