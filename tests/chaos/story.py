"""Prints a run's result, and the events of each job that went wrong."""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.chaos.verdict import Figure, Finding

if TYPE_CHECKING:
    from tests.chaos.run import Run


def tell(text: str) -> None:
    """Print a line now."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def table(run: "Run", findings: list[Finding]) -> str:
    """Return a table of the faults and the results."""
    evidence = run.evidence
    ends: Counter[str] = Counter()
    for reports in evidence.reports().values():
        ends.update({str(report.state) for report in reports if report.state.final})
    reported = evidence.reports().keys()
    unseen = sum(
        (sent.job.id, name) not in reported
        for sent in evidence.sent.values()
        for name in sent.workstations
    )
    starts = sum(line.what == "start" for lines in evidence.lines.values() for line in lines)
    forbidden = Counter(finding.figure for finding in findings)
    rows: list[tuple[str, object]] = [
        ("workstations", len({member.ws for member in run.members})),
        ("agents", len(run.members)),
        ("their lives", sum(member.lives for member in run.members)),
        ("jobs", len(evidence.sent)),
        ("jobs x workstations", sum(len(sent.workstations) for sent in evidence.sent.values())),
        ("records read", len(evidence.records)),
        ("poison messages", len(evidence.poison)),
        ("connections cut", sum(proxy.cuts for proxy in run.proxies)),
        *sorted(run.faults.items()),
        ("executions", starts),
        *((f"ended {state}", count) for state, count in sorted(ends.items())),
        ("expired before any agent saw it", unseen),
        *((figure, forbidden[figure]) for figure in Figure),
    ]
    return "\n".join(f"{name:<48}{value:>8}" for name, value in rows)


def story(run: "Run", finding: Finding) -> str:
    """Return the events of a finding's job on its workstation."""
    evidence = run.evidence
    lines = [f"--- {finding.figure}: {finding.text}"]
    sent = evidence.sent.get(finding.job_id)
    if sent:
        asked = sent.job.model_dump_json(exclude={"command"}, exclude_none=True)
        said = "stored" if sent.stored else "not stored"
        lines.append(f"{sent.job.context} {sent.job.requirement}, {said}: {asked}")
    events: list[tuple[float, str]] = [(at, f"fault  {text}") for at, text in run.diary]
    here = {finding.workstation} if finding.workstation else set(run.names)
    for (job_id, name), reports in evidence.reports().items():
        events += [
            (
                report.at.timestamp(),
                f"report {report.state} by {report.agent} of {name}: {report.reason}",
            )
            for report in reports
            if job_id == finding.job_id and name in here
        ]
    for (job_id, name), written in evidence.lines.items():
        events += [
            (
                line.at,
                f"file   {line.what} {line.token[:8]} by {line.agent} of {name}: {line.code}",
            )
            for line in written
            if job_id == finding.job_id and name in here
        ]
    for member in run.members:
        if member.ws.name in here:
            events += [
                (_stamp(event), f"log    {json.dumps(event)}")
                for event in events_of(member.log)
                if event.get("job") in (None, finding.job_id)
            ]
    times = [at for at, text in events if text.startswith(("report", "file"))]
    if sent:
        times.append(sent.job.created_at.timestamp())
    first, last = min(times, default=0) - 5, max(times, default=0) + 15
    lines += [
        f"{datetime.fromtimestamp(at, UTC):%H:%M:%S.%f} {text}"
        for at, text in sorted(events)
        if first <= at <= last or finding.job_id in text
    ]
    return "\n".join(lines)


def events_of(log: Path) -> Iterator[dict[str, Any]]:
    for line in log.read_text(errors="replace").splitlines():
        with suppress(ValueError):  # an agent may be killed while it writes
            event = json.loads(line)
            if isinstance(event, dict):
                yield event


def _stamp(event: dict[str, Any]) -> float:
    return datetime.fromisoformat(event["timestamp"]).timestamp()
