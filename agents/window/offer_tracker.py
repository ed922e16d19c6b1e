"""The window's record of offers, kept from one snapshot to the next."""

from agents.window.model import is_urgent
from agents.window.snapshot import Offer, Snapshot


class OfferTracker:
    """Keeps when offers were first and last shown, the alerts given, and the reminders."""

    def __init__(self) -> None:
        self._first_shown: dict[str, float] = {}
        self._last_shown: dict[str, float] = {}
        self._alerted: set[str] = set()
        self.reminders: dict[str, float] = {}

    def since(self, offer: Offer, now: float) -> float:
        """Return when an offer was first shown, if this window has recorded it."""
        return self._first_shown.get(offer.job, offer.shown_at or now)

    def remind_at(self, job: str) -> float:
        """Return the time of a job's reminder; 0 for none."""
        return self.reminders.get(job, 0.0)

    def update(self, snapshot: Snapshot, now: float) -> bool:
        """Record the offers of a snapshot; return whether to ring the bell."""
        offered = {offer.job for offer in snapshot.offers}
        for times in (self._first_shown, self._last_shown, self.reminders):
            for job in times.keys() - offered:
                del times[job]
        urgent = {
            offer.job
            for offer in snapshot.offers
            if is_urgent(offer, now) and offer.state != "accepted"
        }
        shown_again = {offer.job for offer in snapshot.offers if self._shown_again(offer)}
        for job in shown_again:
            self.reminders.pop(job, None)
        alerts = shown_again | (urgent - self._alerted)
        self._alerted = urgent | (self._alerted & offered)
        return bool(alerts)

    def _shown_again(self, offer: Offer) -> bool:
        shown = offer.shown_at or 0.0
        previous = self._last_shown.get(offer.job)
        self._last_shown[offer.job] = shown
        self._first_shown.setdefault(offer.job, shown)
        return previous is not None and shown > previous
