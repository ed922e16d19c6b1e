"""Follow a rollout: print each change of its state."""

import sys
from typing import TYPE_CHECKING

from broker.amqp.timeouts import timeout
from broker.cli.command_line import FAILED
from broker.cli.session import history_errors, optional_history_engine, with_dispatcher
from broker.rollouts import views
from broker.rollouts.command import exit_status
from broker.rollouts.control import follow_rollout
from broker.rollouts.progress import UnknownRollout, find_plan

if TYPE_CHECKING:
    from broker.client.dispatcher import Dispatcher


def watch_rollout(rollout_id: str, *, as_json: bool, limit: float | None) -> int | None:
    """Follow a rollout until it has ended or stopped, or for `limit` seconds.

    Returns:
        The exit status; None if the history has no rollout of this id.
    """
    with optional_history_engine() as engine:
        try:
            plan = find_plan(engine, rollout_id) if engine else None
        except UnknownRollout:
            plan = None
    if plan is None:
        return None
    print_state = views.StatePrinter(plan, as_json=as_json)

    async def work(dispatcher: "Dispatcher") -> int:
        try:
            async with timeout(limit):
                state = await follow_rollout(dispatcher, plan.id, print_state)
        except TimeoutError:
            print(f"pcm: gave up waiting for the rollout {plan.id}", file=sys.stderr)
            return FAILED
        if not as_json and (hint := views.hint(plan, state)):
            print(hint, flush=True)
        return exit_status(state)

    with history_errors():
        return with_dispatcher(work)
