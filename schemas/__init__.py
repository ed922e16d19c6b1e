"""The messages between administrators and agents: orders, reports and their parts."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from schemas.check_in import CheckIn, Facts, Pause, WorkstationForgotten
    from schemas.command import Command
    from schemas.errors import PcmError
    from schemas.job import Cancellation, Context, Job, Requirement
    from schemas.message import InvalidMessage, Message, explain
    from schemas.names import Target, everyone, group, workstation
    from schemas.rejected_record import RejectedRecord
    from schemas.report import Output, Report, Result, State
    from schemas.rollout import Rollout, RolloutOrder, WaveEnded, WaveSent
    from schemas.schedule import Occurrence, Schedule, ScheduleRemoval
    from schemas.secrets import Secrets
    from schemas.signature import Signature, SignedJob
    from schemas.times import WallClock
    from schemas.trusted_key import TrustedKey

_MODULES = {
    "schemas.check_in": ("CheckIn", "Facts", "Pause", "WorkstationForgotten"),
    "schemas.command": ("Command",),
    "schemas.errors": ("PcmError",),
    "schemas.job": ("Cancellation", "Context", "Job", "Requirement"),
    "schemas.message": ("InvalidMessage", "Message", "explain"),
    "schemas.names": ("Target", "everyone", "group", "workstation"),
    "schemas.rejected_record": ("RejectedRecord",),
    "schemas.report": ("Output", "Report", "Result", "State"),
    "schemas.rollout": ("Rollout", "RolloutOrder", "WaveEnded", "WaveSent"),
    "schemas.schedule": ("Occurrence", "Schedule", "ScheduleRemoval"),
    "schemas.secrets": ("Secrets",),
    "schemas.signature": ("Signature", "SignedJob"),
    "schemas.times": ("WallClock",),
    "schemas.trusted_key": ("TrustedKey",),
}

__all__ = [
    "Cancellation",
    "CheckIn",
    "Command",
    "Context",
    "Facts",
    "InvalidMessage",
    "Job",
    "Message",
    "Occurrence",
    "Output",
    "Pause",
    "PcmError",
    "RejectedRecord",
    "Report",
    "Requirement",
    "Result",
    "Rollout",
    "RolloutOrder",
    "Schedule",
    "ScheduleRemoval",
    "Secrets",
    "Signature",
    "SignedJob",
    "State",
    "Target",
    "TrustedKey",
    "WallClock",
    "WaveEnded",
    "WaveSent",
    "WorkstationForgotten",
    "everyone",
    "explain",
    "group",
    "workstation",
]


if not TYPE_CHECKING:  # for a type checker, __getattr__ would make any name valid

    def __getattr__(name: str) -> object:
        # Import on demand: each module costs time and memory, and few programs need all.
        from importlib import import_module

        for module, names in _MODULES.items():
            if name in names:
                value = globals()[name] = getattr(import_module(module), name)
                return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
