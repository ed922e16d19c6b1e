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
    from broker.amqp.topology import ROUTES, AgentKind, Route, apply_topology
    from broker.client.batch import Sent
    from broker.client.dispatcher import Dispatcher
    from broker.client.fleet_orders import NotForgettable
    from broker.client.follow import UnknownJob
    from broker.client.progress import Progress
    from broker.client.publishing import BoundJob, NotSendable
    from broker.client.sync import SyncDispatcher, send, send_and_wait
    from broker.collect.rebuild import JobsWouldBeLost, rebuild_history
    from broker.collect.service import run_collector
    from broker.content.archive import WrongContent
    from broker.dead_letters.letter import Letter
    from broker.dead_letters.letters import Busy, DeadLetters, Requeued, UnknownLetter
    from broker.dead_letters.resending import NotRequeued
    from broker.doctor.checks import diagnose
    from broker.doctor.finding import Finding, Severity
    from broker.doctor.gather import DoctorSettings
    from broker.enrolment.definitions_file import WrongDefinitions
    from broker.enrolment.rights import AgentLogin
    from broker.enrolment.workstation import Credentials, NotEnrolled, enrol, revoke, rotate
    from broker.history.engine import HistoryError
    from broker.history.history import History
    from broker.history.queries.jobs import JobQueries
    from broker.history.queries.packages import ContentRow, PackageCount, PackageQueries, PackageRow
    from broker.history.queries.rows import Event, FailureGroup, JobRow, OutcomeRow, UnknownId
    from broker.history.queries.status import HistoryStatus, history_status
    from broker.history.queries.workstations import AgentRow, Fleet, WorkstationRow
    from broker.inventory.uninstall_jobs import NotUninstallable, uninstall_jobs
    from broker.jobs.cancel import NotCancellable, check_cancellable
    from broker.jobs.dry_run import Reach, reach
    from broker.jobs.files.job_file import WrongJobFile, read_jobs
    from broker.jobs.files.signed_file import (
        SignedAlready,
        approve_job,
        read_signed,
        sign_job,
        write_signed,
    )
    from broker.jobs.rerun_jobs import NothingToRerun, NotItsWorkstation, Rerun, rerun
    from broker.packages.building.definition import SourceFolder, WrongPackage, read_source
    from broker.packages.building.package_file import (
        BuiltPackage,
        build_package,
        check_package,
        read_package,
    )
    from broker.packages.building.template import new_package
    from broker.packages.channels import (
        Promotion,
        WrongChannel,
        promote_package,
        read_channel,
        read_channels,
    )
    from broker.packages.points.point import CannotList, NotThere, Point, PointError, open_point
    from broker.packages.publishing import (
        CheckedFile,
        NotPublished,
        PublishedPackage,
        collect_garbage,
        publish_package,
        published_versions,
        read_published,
        remove_package,
        verify_point,
    )
    from broker.packages.resolve import CannotResolve, ResolvedPackage, package_job, resolve_package
    from broker.packages.trust import NotTrusted
    from broker.results.report.content import ReportContent, read_report
    from broker.results.report.csv_table import report_csv
    from broker.results.report.files import write_report
    from broker.results.report.page import report_html
    from broker.results.why.why import Why, why
    from broker.rollouts.control import (
        BoundWorkstations,
        RolloutError,
        abort_rollout,
        bound_workstations,
        follow_rollout,
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
        ScheduleExists,
        UnknownSchedule,
        check_new_schedule,
        find_schedule,
        list_schedules,
        next_occurrences,
        occurrences_sent,
        occurrences_under_way,
    )
    from broker.schedules.scheduler import run_scheduler
    from broker.settings import (
        BrokerSettings,
        DispatcherSettings,
        HistorySettings,
        ManagementSettings,
        WrongSetting,
    )
    from broker.signing.key_files import UnsafeFile
    from broker.signing.key_pair import KeyPair, WrongKey, create_key_pair
    from broker.signing.resign_policy import SigningRefused
    from broker.signing.sealing import CannotSeal, seal
    from broker.signing.signer import Signer
    from broker.watch.tally import WatchTally
    from schemas.errors import PcmError
    from schemas.json_schema import message_schema

_MODULES = {
    "broker.content.archive": ("WrongContent",),
    "broker.history.queries.packages": (
        "ContentRow",
        "PackageCount",
        "PackageQueries",
        "PackageRow",
    ),
    "broker.inventory.uninstall_jobs": ("NotUninstallable", "uninstall_jobs"),
    "broker.packages.building.definition": ("SourceFolder", "WrongPackage", "read_source"),
    "broker.packages.building.package_file": (
        "BuiltPackage",
        "build_package",
        "check_package",
        "read_package",
    ),
    "broker.packages.building.template": ("new_package",),
    "broker.packages.channels": (
        "Promotion",
        "WrongChannel",
        "promote_package",
        "read_channel",
        "read_channels",
    ),
    "broker.packages.points.point": ("CannotList", "NotThere", "Point", "PointError", "open_point"),
    "broker.packages.publishing": (
        "CheckedFile",
        "NotPublished",
        "PublishedPackage",
        "collect_garbage",
        "publish_package",
        "published_versions",
        "read_published",
        "remove_package",
        "verify_point",
    ),
    "broker.packages.resolve": (
        "CannotResolve",
        "ResolvedPackage",
        "package_job",
        "resolve_package",
    ),
    "broker.packages.trust": ("NotTrusted",),
    "broker.amqp.connection": (
        "Blocked",
        "BrokerError",
        "LoginRefused",
        "Refused",
        "Unreachable",
        "Unroutable",
    ),
    "broker.amqp.topology": ("ROUTES", "AgentKind", "Route", "apply_topology"),
    "broker.client.batch": ("Sent",),
    "broker.client.dispatcher": ("Dispatcher",),
    "broker.client.fleet_orders": ("NotForgettable",),
    "broker.client.follow": ("UnknownJob",),
    "broker.client.progress": ("Progress",),
    "broker.client.publishing": ("BoundJob", "NotSendable"),
    "broker.client.sync": ("SyncDispatcher", "send", "send_and_wait"),
    "broker.collect.rebuild": ("JobsWouldBeLost", "rebuild_history"),
    "broker.collect.service": ("run_collector",),
    "broker.dead_letters.letter": ("Letter",),
    "broker.dead_letters.letters": ("Busy", "DeadLetters", "Requeued", "UnknownLetter"),
    "broker.dead_letters.resending": ("NotRequeued",),
    "broker.doctor.checks": ("diagnose",),
    "broker.doctor.finding": ("Finding", "Severity"),
    "broker.doctor.gather": ("DoctorSettings",),
    "broker.enrolment.definitions_file": ("WrongDefinitions",),
    "broker.enrolment.rights": ("AgentLogin",),
    "broker.enrolment.workstation": ("Credentials", "NotEnrolled", "enrol", "revoke", "rotate"),
    "broker.history.engine": ("HistoryError",),
    "broker.history.history": ("History",),
    "broker.history.queries.jobs": ("JobQueries",),
    "broker.history.queries.rows": ("Event", "FailureGroup", "JobRow", "OutcomeRow", "UnknownId"),
    "broker.history.queries.status": ("HistoryStatus", "history_status"),
    "broker.history.queries.workstations": ("AgentRow", "Fleet", "WorkstationRow"),
    "broker.jobs.cancel": ("NotCancellable", "check_cancellable"),
    "broker.jobs.dry_run": ("Reach", "reach"),
    "broker.jobs.files.job_file": ("WrongJobFile", "read_jobs"),
    "broker.jobs.rerun_jobs": ("NotItsWorkstation", "NothingToRerun", "Rerun", "rerun"),
    "broker.jobs.files.signed_file": (
        "SignedAlready",
        "approve_job",
        "read_signed",
        "sign_job",
        "write_signed",
    ),
    "broker.results.report.content": ("ReportContent", "read_report"),
    "broker.results.report.files": ("write_report",),
    "broker.results.report.page": ("report_html",),
    "broker.results.report.csv_table": ("report_csv",),
    "broker.results.why.why": ("Why", "why"),
    "broker.rollouts.control": (
        "BoundWorkstations",
        "RolloutError",
        "abort_rollout",
        "bound_workstations",
        "follow_rollout",
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
        "ScheduleExists",
        "UnknownSchedule",
        "check_new_schedule",
        "find_schedule",
        "list_schedules",
        "next_occurrences",
        "occurrences_sent",
        "occurrences_under_way",
    ),
    "broker.schedules.scheduler": ("run_scheduler",),
    "broker.settings": (
        "BrokerSettings",
        "DispatcherSettings",
        "HistorySettings",
        "ManagementSettings",
        "WrongSetting",
    ),
    "broker.signing.key_files": ("UnsafeFile",),
    "broker.signing.key_pair": ("KeyPair", "WrongKey", "create_key_pair"),
    "broker.signing.resign_policy": ("SigningRefused",),
    "broker.signing.signer": ("Signer",),
    "broker.signing.sealing": ("CannotSeal", "seal"),
    "broker.watch.tally": ("WatchTally",),
    "schemas.errors": ("PcmError",),
    "schemas.json_schema": ("message_schema",),
}

__all__ = [
    "ROUTES",
    "AgentKind",
    "AgentLogin",
    "AgentRow",
    "Blocked",
    "BoundJob",
    "BoundWorkstations",
    "BrokerError",
    "BrokerSettings",
    "BuiltPackage",
    "Busy",
    "CannotList",
    "CannotResolve",
    "CannotSeal",
    "CheckedFile",
    "ContentRow",
    "Credentials",
    "DeadLetters",
    "Dispatcher",
    "DispatcherSettings",
    "DoctorSettings",
    "Event",
    "FailureGroup",
    "Finding",
    "Fleet",
    "History",
    "HistoryError",
    "HistorySettings",
    "HistoryStatus",
    "JobQueries",
    "JobRow",
    "JobsWouldBeLost",
    "KeyPair",
    "Letter",
    "LoginRefused",
    "ManagementSettings",
    "NotCancellable",
    "NotEnrolled",
    "NotForgettable",
    "NotItsWorkstation",
    "NotPublished",
    "NotRequeued",
    "NotSendable",
    "NotThere",
    "NotTrusted",
    "NotUninstallable",
    "NothingToRerun",
    "OutcomeRow",
    "PackageCount",
    "PackageQueries",
    "PackageRow",
    "PcmError",
    "Point",
    "PointError",
    "Progress",
    "Promotion",
    "PublishedPackage",
    "Reach",
    "Refused",
    "ReportContent",
    "Requeued",
    "Rerun",
    "ResolvedPackage",
    "RolloutError",
    "RolloutProgress",
    "RolloutState",
    "Route",
    "ScheduleExists",
    "Sent",
    "Severity",
    "SignedAlready",
    "Signer",
    "SigningRefused",
    "SourceFolder",
    "SyncDispatcher",
    "UnknownId",
    "UnknownJob",
    "UnknownLetter",
    "UnknownRollout",
    "UnknownSchedule",
    "Unreachable",
    "Unroutable",
    "UnsafeFile",
    "WatchTally",
    "WaveTally",
    "Why",
    "WorkstationRow",
    "WrongChannel",
    "WrongContent",
    "WrongDefinitions",
    "WrongJobFile",
    "WrongKey",
    "WrongPackage",
    "WrongSetting",
    "WrongWaves",
    "abort_rollout",
    "apply_topology",
    "approve_job",
    "bound_workstations",
    "build_package",
    "check_cancellable",
    "check_new_schedule",
    "check_package",
    "collect_garbage",
    "create_key_pair",
    "diagnose",
    "enrol",
    "find_rollout",
    "find_schedule",
    "follow_rollout",
    "history_status",
    "list_rollouts",
    "list_schedules",
    "message_schema",
    "new_package",
    "next_occurrences",
    "occurrences_sent",
    "occurrences_under_way",
    "open_point",
    "package_job",
    "pause_rollout",
    "plan_rollout",
    "promote_package",
    "publish_package",
    "published_versions",
    "reach",
    "read_channel",
    "read_channels",
    "read_jobs",
    "read_package",
    "read_published",
    "read_report",
    "read_signed",
    "read_source",
    "rebuild_history",
    "remove_package",
    "report_csv",
    "report_html",
    "rerun",
    "resolve_package",
    "resume_rollout",
    "revoke",
    "rotate",
    "run_collector",
    "run_scheduler",
    "seal",
    "send",
    "send_and_wait",
    "sign_job",
    "start_rollout",
    "uninstall_jobs",
    "verify_point",
    "why",
    "write_report",
    "write_signed",
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
