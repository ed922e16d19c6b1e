"""The messages: what is asked, of whom, and what happened."""

from schemas.command import Command
from schemas.job import Cancellation, Context, Job, Requirement
from schemas.message import InvalidMessage, Message, explain
from schemas.names import Target, everyone, group, workstation
from schemas.report import Output, Report, Result, State
from schemas.times import WallClock

__all__ = [
    "Cancellation",
    "Command",
    "Context",
    "InvalidMessage",
    "Job",
    "Message",
    "Output",
    "Report",
    "Requirement",
    "Result",
    "State",
    "Target",
    "WallClock",
    "everyone",
    "explain",
    "group",
    "workstation",
]
