"""The messages between administrators and agents: orders, reports and their parts."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from schemas.errors import PcmError
    from schemas.message import InvalidMessage, Message, explain
    from schemas.names import Target, everyone, group, workstation
    from schemas.orders.command import Command
    from schemas.orders.job import Cancellation, Context, Job, Requirement
    from schemas.orders.package import (
        PackageCondition,
        PackageReference,
        PackageSpec,
        RequiredPackage,
    )
    from schemas.orders.rollout import Rollout, RolloutOrder, WaveEnded, WaveSent
    from schemas.orders.schedule import Occurrence, Schedule, ScheduleRemoval
    from schemas.orders.secrets import Secrets
    from schemas.orders.signature import Signature, SignedJob
    from schemas.orders.trusted_key import TrustedKey
    from schemas.orders.workstation import AgentsRevoked, Pause, WorkstationForgotten
    from schemas.packages.channel import ChannelList
    from schemas.packages.manifest import Manifest, Package, SignedText
    from schemas.reports.check_in import CheckIn, Facts
    from schemas.reports.packages import ContentProgress, ContentState, InstalledPackage
    from schemas.reports.rejected_record import RejectedRecord
    from schemas.reports.report import Output, Report, Result, State
    from schemas.times import WallClock

_MODULES = {
    "schemas.errors": ("PcmError",),
    "schemas.message": ("InvalidMessage", "Message", "explain"),
    "schemas.names": ("Target", "everyone", "group", "workstation"),
    "schemas.orders.command": ("Command",),
    "schemas.orders.job": ("Cancellation", "Context", "Job", "Requirement"),
    "schemas.orders.package": (
        "PackageCondition",
        "PackageReference",
        "PackageSpec",
        "RequiredPackage",
    ),
    "schemas.orders.rollout": ("Rollout", "RolloutOrder", "WaveEnded", "WaveSent"),
    "schemas.orders.schedule": ("Occurrence", "Schedule", "ScheduleRemoval"),
    "schemas.orders.secrets": ("Secrets",),
    "schemas.orders.signature": ("Signature", "SignedJob"),
    "schemas.orders.trusted_key": ("TrustedKey",),
    "schemas.orders.workstation": ("AgentsRevoked", "Pause", "WorkstationForgotten"),
    "schemas.packages.channel": ("ChannelList",),
    "schemas.packages.manifest": ("Manifest", "Package", "SignedText"),
    "schemas.reports.check_in": ("CheckIn", "Facts"),
    "schemas.reports.packages": ("ContentProgress", "ContentState", "InstalledPackage"),
    "schemas.reports.rejected_record": ("RejectedRecord",),
    "schemas.reports.report": ("Output", "Report", "Result", "State"),
    "schemas.times": ("WallClock",),
}

__all__ = [
    "AgentsRevoked",
    "Cancellation",
    "ChannelList",
    "CheckIn",
    "Command",
    "ContentProgress",
    "ContentState",
    "Context",
    "Facts",
    "InstalledPackage",
    "InvalidMessage",
    "Job",
    "Manifest",
    "Message",
    "Occurrence",
    "Output",
    "Package",
    "PackageCondition",
    "PackageReference",
    "PackageSpec",
    "Pause",
    "PcmError",
    "RejectedRecord",
    "Report",
    "RequiredPackage",
    "Requirement",
    "Result",
    "Rollout",
    "RolloutOrder",
    "Schedule",
    "ScheduleRemoval",
    "Secrets",
    "Signature",
    "SignedJob",
    "SignedText",
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
