"""The options of `pcm send` for a rollout."""

import argparse
from typing import Any

from broker.cli.command_line import Parser, UsageError, argument_errors
from broker.rollouts.waves import WaveSize, read_waves
from schemas.times import parse_duration

LIMIT_HELP = "maximum number of failures: a count, or 5%% of the workstations sent to so far"
OPTIONS = ("waves", "max_failures", "pause", "wave_limit")


def add_rollout_options(send: Parser) -> None:
    """Add the options of a rollout to `pcm send`."""
    add = send.add_argument_group("in waves").add_argument
    add(
        "--waves",
        metavar="N,N",
        type=_waves,
        help="how many workstations it has reached after each wave, as counts or percentages:"
        " 1,10%%,50%%,100%%; a wave is sent when the one before has ended; the last must be all",
    )
    add("--max-failures", metavar="N", type=limit, help=f"{LIMIT_HELP} (default: 0)")
    add("--pause", metavar="D", type=_duration, help="between a wave's end and the next wave")
    add(
        "--wave-limit",
        metavar="D",
        type=_positive_duration,
        help="a workstation that has not ended after this time has failed (default: no limit)",
    )


def check_rollout_options(arguments: argparse.Namespace) -> bool:
    """Return whether `pcm send` is to send in waves.

    Raises:
        UsageError: there are options of a rollout, but no --waves.
    """
    given = [option for option in OPTIONS if getattr(arguments, option) is not None]
    if given and arguments.waves is None:
        raise UsageError(f"--{given[0].replace('_', '-')}: is for a rollout: give --waves")
    return bool(given)


def limit(text: str) -> str:
    """Read a maximum number of failures."""
    from schemas.orders.rollout import check_limit  # most jobs are sent without waves

    with argument_errors():
        return check_limit(text)


def _waves(text: str) -> tuple[WaveSize, ...]:
    with argument_errors():
        return read_waves(text)


def _duration(text: str) -> Any:
    with argument_errors():
        return parse_duration(text)


def _positive_duration(text: str) -> Any:
    if not (duration := _duration(text)):
        raise argparse.ArgumentTypeError("must be more than 0")
    return duration
