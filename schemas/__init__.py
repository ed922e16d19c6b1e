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
from schemas.times import WallClock

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
    "State",
    "Target",
    "WallClock",
    "WaveEnded",
    "WaveSent",
    "everyone",
    "explain",
    "group",
    "workstation",
]
