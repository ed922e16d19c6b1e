"""What a window remembers of offers from one snapshot to the next."""

from agents.window.model import is_urgent
from agents.window.snapshot import Offer, Snapshot


class Memory:
    """When offers were first and last shown, which have rung, and of which to remind."""

    def __init__(self) -> None:
        self._first: dict[str, float] = {}
        self._last: dict[str, float] = {}
        self._rung: set[str] = set()
        self.reminders: dict[str, float] = {}

    def since(self, offer: Offer, now: float) -> float:
        """Return when an offer was first shown, as far as this window knows."""
        return self._first.get(offer.job, offer.shown_at or now)

    def remind_at(self, job: str) -> float:
        """Return when the user wants to be reminded of a job; 0: not at all."""
        return self.reminders.get(job, 0.0)

    def take(self, snapshot: Snapshot, now: float) -> bool:
        """Take in what is offered now; return whether the user must hear of it."""
        there = {offer.job: offer for offer in snapshot.offers}
        for kept in (self._first, self._last, self.reminders):
            for job in kept.keys() - there.keys():
                del kept[job]
        urgent = {
            offer.job
            for offer in snapshot.offers
            if is_urgent(offer, now) and offer.state != "accepted"
        }
        again = {offer.job for offer in snapshot.offers if self._shown_again(offer)}
        for job in again:
            self.reminders.pop(job, None)
        new = again | (urgent - self._rung)
        self._rung = urgent | (self._rung & there.keys())
        return bool(new)

    def _shown_again(self, offer: Offer) -> bool:
        shown = offer.shown_at or 0.0
        before = self._last.get(offer.job)
        self._last[offer.job] = shown
        self._first.setdefault(offer.job, shown)
        return before is not None and shown > before
