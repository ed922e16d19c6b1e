"""The messages: what is asked, of whom, and what happened."""

from schemas.command import Command
from schemas.forgery import Forgery
from schemas.job import Cancellation, Context, Job, Requirement
from schemas.message import InvalidMessage, Message, explain
from schemas.names import Target, everyone, group, workstation
from schemas.presence import CheckIn, Departure, Facts, Pause
from schemas.report import Output, Report, Result, State
from schemas.rollout import Rollout, RolloutOrder, WaveEnded, WaveSent
from schemas.schedule import Schedule, ScheduleRemoval
from schemas.secrets import Secrets
from schemas.signature import Signature, SignedJob
from schemas.times import WallClock
from schemas.trusted_key import TrustedKey

__all__ = [
    "Cancellation",
    "CheckIn",
    "Command",
    "Context",
    "Departure",
    "Facts",
    "Forgery",
    "InvalidMessage",
    "Job",
    "Message",
    "Output",
    "Pause",
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
    "everyone",
    "explain",
    "group",
    "workstation",
]
