"""Decide whether the keys that signed an order may give it: pure, with the time handed in.

Agents ask this of each order that they receive. The same question is asked before a recorded
message is signed again.
"""

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING

from schemas import Target, everyone, group
from schemas.text import listed

if TYPE_CHECKING:
    from broker.signing.signer import Order
    from broker.signing.trusted_keys import Verdict
    from schemas import ScheduleRemoval

_SHOWN = 3


def objection(
    verdicts: "Iterable[Verdict]",
    order: "Order | ScheduleRemoval",
    here: Collection[Target],
    required: int,
    now: datetime,
) -> str:
    """Return why the signers of an order may not give it to a workstation now; "" if they may.

    Args:
        verdicts: the signatures, each with its trusted key if it verifies.
        order: the order.
        here: all targets that include the workstation.
        required: how many different signers must be allowed to give it.
        now: the time.
    """
    names, reasons = set(), []
    for verdict in verdicts:
        if verdict.key is None:
            reasons.append(verdict.reason)
        elif reason := verdict.key.objection(order, here, now):
            reasons.append(f"the key of {verdict.key.name} {reason}")
        else:
            names.add(verdict.key.name)
    if len(names) >= required:
        return ""
    if names:
        reasons.insert(0, f"{required} trusted keys must sign it, {len(names)} did")
    return "; ".join(reasons) or "it is not signed"


def objection_for(
    targets: Iterable[Target],
    verdicts: "Iterable[Verdict]",
    order: "Order | ScheduleRemoval",
    now: datetime,
    groups: Mapping[str, Iterable[str]] | None = None,
) -> str:
    """Return why one signer may not give an order to all workstations of targets; "" if one may.

    Args:
        targets: the targets.
        verdicts: the signatures.
        order: the order.
        now: the time.
        groups: the groups of workstations among the targets, as far as they are believed.
    """
    verdicts = list(verdicts)
    refused: dict[str, list[str]] = {}
    for target in targets:
        here = (everyone, target, *map(group, (groups or {}).get(target.name or "", ())))
        if reason := objection(verdicts, order, here, 1, now):
            refused.setdefault(reason, []).append(str(target))
    return "; ".join(f"{listed(of, _SHOWN)}: {reason}" for reason, of in refused.items())
