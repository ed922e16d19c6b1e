"""RabbitMQ: the topology, the connection and the administrator's side."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from broker.amqp.connection import (
        Blocked,
        BrokerError,
        LoginRefused,
        Refused,
        Unreachable,
        Unroutable,
    )
    from broker.client.batch import Sent
    from broker.client.dispatcher import Dispatcher
    from broker.client.fleet_orders import NotForgettable
    from broker.client.follow import UnknownJob
    from broker.client.progress import Progress
    from broker.client.publishing import NotSendable
    from broker.client.sync import SyncDispatcher, send, send_and_wait
    from broker.dead_letters.letter import Letter
    from broker.dead_letters.letters import Busy, DeadLetters, Requeued, UnknownLetter
    from broker.dead_letters.resending import NotRequeued
    from broker.enrolment.rights import AgentLogin
    from broker.enrolment.workstation import Credentials, NotEnrolled, enrol, revoke, rotate
    from broker.history.history import History
    from broker.history.queries import Accounts, Event, FailureGroup, JobRow, Pair, UnknownId
    from broker.history.schema import HistoryError
    from broker.history.workstations import AgentRow, Fleet, WorkstationRow
    from broker.jobs.dry_run import Reach, reach
    from broker.jobs.job_file import WrongJobFile, read_jobs
    from broker.jobs.rerun_jobs import NothingToRerun, NotItsWorkstation, Rerun, rerun
    from broker.results.why.why import Why, why
    from broker.rollouts.control import (
        RolloutError,
        abort_rollout,
        pause_rollout,
        plan_rollout,
        resume_rollout,
        start_rollout,
    )
    from broker.rollouts.progress import (
        RolloutProgress,
        UnknownRollout,
        find_rollout,
        list_rollouts,
    )
    from broker.rollouts.state import RolloutState, WaveTally
    from broker.rollouts.waves import WrongWaves
    from broker.schedules.queries import (
        UnknownSchedule,
        find_schedule,
        list_schedules,
        next_occurrences,
        occurrences_sent,
        occurrences_under_way,
    )
    from broker.settings import (
        BrokerSettings,
        DispatcherSettings,
        HistorySettings,
        ManagementSettings,
        WrongSetting,
    )
    from broker.signing.resign_policy import SigningRefused
    from broker.signing.sealing import CannotSeal, seal
    from schemas.errors import PcmError

_MODULES = {
    "broker.amqp.connection": (
        "Blocked",
        "BrokerError",
        "LoginRefused",
        "Refused",
        "Unreachable",
        "Unroutable",
    ),
    "broker.client.batch": ("Sent",),
    "broker.client.dispatcher": ("Dispatcher",),
    "broker.client.fleet_orders": ("NotForgettable",),
    "broker.client.follow": ("UnknownJob",),
    "broker.client.progress": ("Progress",),
    "broker.client.publishing": ("NotSendable",),
    "broker.client.sync": ("SyncDispatcher", "send", "send_and_wait"),
    "broker.dead_letters.letter": ("Letter",),
    "broker.dead_letters.letters": ("Busy", "DeadLetters", "Requeued", "UnknownLetter"),
    "broker.dead_letters.resending": ("NotRequeued",),
    "broker.enrolment.rights": ("AgentLogin",),
    "broker.enrolment.workstation": ("Credentials", "NotEnrolled", "enrol", "revoke", "rotate"),
    "broker.history.history": ("History",),
    "broker.history.queries": ("Accounts", "Event", "FailureGroup", "JobRow", "Pair", "UnknownId"),
    "broker.history.schema": ("HistoryError",),
    "broker.history.workstations": ("AgentRow", "Fleet", "WorkstationRow"),
    "broker.jobs.dry_run": ("Reach", "reach"),
    "broker.jobs.job_file": ("WrongJobFile", "read_jobs"),
    "broker.jobs.rerun_jobs": ("NotItsWorkstation", "NothingToRerun", "Rerun", "rerun"),
    "broker.results.why.why": ("Why", "why"),
    "broker.rollouts.control": (
        "RolloutError",
        "abort_rollout",
        "pause_rollout",
        "plan_rollout",
        "resume_rollout",
        "start_rollout",
    ),
    "broker.rollouts.progress": (
        "RolloutProgress",
        "UnknownRollout",
        "find_rollout",
        "list_rollouts",
    ),
    "broker.rollouts.state": ("RolloutState", "WaveTally"),
    "broker.rollouts.waves": ("WrongWaves",),
    "broker.schedules.queries": (
        "UnknownSchedule",
        "find_schedule",
        "next_occurrences",
        "occurrences_sent",
        "occurrences_under_way",
        "list_schedules",
    ),
    "broker.settings": (
        "BrokerSettings",
        "DispatcherSettings",
        "HistorySettings",
        "ManagementSettings",
        "WrongSetting",
    ),
    "broker.signing.resign_policy": ("SigningRefused",),
    "broker.signing.sealing": ("CannotSeal", "seal"),
    "schemas.errors": ("PcmError",),
}

__all__ = [
    "Accounts",
    "AgentLogin",
    "AgentRow",
    "Blocked",
    "BrokerError",
    "BrokerSettings",
    "Busy",
    "CannotSeal",
    "Credentials",
    "DeadLetters",
    "Dispatcher",
    "DispatcherSettings",
    "Event",
    "FailureGroup",
    "Fleet",
    "History",
    "HistoryError",
    "HistorySettings",
    "JobRow",
    "Letter",
    "LoginRefused",
    "ManagementSettings",
    "NotEnrolled",
    "NotForgettable",
    "NotItsWorkstation",
    "NotRequeued",
    "NotSendable",
    "NothingToRerun",
    "Pair",
    "PcmError",
    "Progress",
    "Reach",
    "Refused",
    "Requeued",
    "Rerun",
    "RolloutError",
    "RolloutProgress",
    "RolloutState",
    "Sent",
    "SigningRefused",
    "SyncDispatcher",
    "UnknownId",
    "UnknownJob",
    "UnknownLetter",
    "UnknownRollout",
    "UnknownSchedule",
    "Unreachable",
    "Unroutable",
    "WaveTally",
    "Why",
    "WorkstationRow",
    "WrongJobFile",
    "WrongSetting",
    "WrongWaves",
    "abort_rollout",
    "enrol",
    "find_rollout",
    "find_schedule",
    "list_rollouts",
    "list_schedules",
    "next_occurrences",
    "occurrences_sent",
    "occurrences_under_way",
    "pause_rollout",
    "plan_rollout",
    "reach",
    "read_jobs",
    "rerun",
    "resume_rollout",
    "revoke",
    "rotate",
    "seal",
    "send",
    "send_and_wait",
    "start_rollout",
    "why",
]


if not TYPE_CHECKING:  # else type checkers accept any name

    def __getattr__(name: str) -> object:
        # Import on demand: agents need only the topology.
        from importlib import import_module

        for module, names in _MODULES.items():
            if name in names:
                value = globals()[name] = getattr(import_module(module), name)
                return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
