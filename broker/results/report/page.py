"""Format a report as an HTML page in one file; only sorting its table needs a script."""

import base64
import hashlib
from collections.abc import Iterable, Iterator
from html import escape

from broker.cli.terminal import printable
from broker.cli.time_formats import local, span
from broker.history.queries.rows import FailureGroup, OutcomeRow
from broker.results.query_session import (
    exit_text,
    ordered,
    outcome_state,
    reason_text,
    shares,
    state_text,
)
from broker.results.report.charts import Bar, bars, progress
from broker.results.report.content import END_GROUPS, ReportContent, state_group
from broker.results.report.style import SCRIPT, STYLE

_MAX_SLOWEST = 10
_MAX_GROUPS = 10


def report_html(content: ReportContent) -> str:
    """Format a job's results as an HTML page that needs no other file."""
    job = content.job
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_policy()}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{_text(job.name or job.id)}: results</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{_text(job.name or job.id)}</h1>
<p class="id">{_text(job.id)}</p>
{_lines(f'<p class="gap">The history is incomplete: {_text(gap)}</p>' for gap in content.gaps)}
{_tiles(content)}
{_share_bar(content)}
<div class="panels">
{_panel("Job", _job_header(content), wide=True)}
{_panel("States", _states(content))}
{_panel("Ends over time", _progress(content))}
{_panel("Failures", _failures(content))}
{_panel("Slowest workstations", _slowest(content))}
{_panel("Failures in detail", _groups(content), wide=True)}
</div>
<h2>Workstations</h2>
{_table(content)}
<footer>As of {_text(local(content.now))}. Times are in the time zone of the machine that wrote
this page.</footer>
<script>{SCRIPT}</script>
</body>
</html>
"""


def _policy() -> str:
    """Return the page's security policy: no network, no script but its own."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def _text(text: object) -> str:
    return escape(printable(str(text)))


def _lines(parts: Iterable[str]) -> str:
    return "\n".join(parts)


def _panel(title: str, content: str, *, wide: bool = False) -> str:
    class_ = "panel wide" if wide else "panel"
    return f'<section class="{class_}"><h2>{title}</h2>{content}</section>' if content else ""


def _tiles(content: ReportContent) -> str:
    """Return the total, and the count of each group of states."""
    tiles = [f"<div><dt>total</dt><dd>{content.job.counts.total():,}</dd></div>"]
    tiles += [
        f"<div><dt>{_dot(group)}{group}</dt><dd>{count:,}</dd></div>"
        for group, count in content.groups.items()
    ]
    return f'<dl class="tiles">{"".join(tiles)}</dl>'


def _share_bar(content: ReportContent) -> str:
    """Return the shares of the groups of states, in one bar."""
    total = max(content.job.counts.total(), 1)
    parts, x = [], 0.0
    for group, count in content.groups.items():
        width = 1000 * count / total
        parts.append(f'<rect class="{group}" x="{x:.2f}" width="{width:.2f}" height="10"/>')
        x += width
    return (
        '<div class="bar"><svg viewBox="0 0 1000 10" preserveAspectRatio="none"'
        f' aria-hidden="true">{"".join(parts)}</svg></div>'
    )


def _states(content: ReportContent) -> str:
    counted = ordered(content.job.counts)
    percents = shares([count for _, count in counted])
    rows = [
        Bar(state_text(state), count, f"{count:,}  ({share} %)", state_group(state))
        for (state, count), share in zip(counted, percents, strict=True)
    ]
    return bars("States", rows) or "<p>The history has no workstation of this job.</p>"


def _progress(content: ReportContent) -> str:
    chart = progress(content)
    if not chart:
        return "<p>The job has not ended anywhere yet.</p>"
    keys = (f"<span>{_dot(name)}{name}</span>" for name in END_GROUPS if content.groups[name])
    return f'{chart}<p class="keys">{"".join(keys)}</p>'


def _dot(group: str) -> str:
    circle = f'<circle class="{group}" cx="5" cy="5" r="5"/>'
    return f'<svg viewBox="0 0 10 10" aria-hidden="true">{circle}</svg>'


def _failures(content: ReportContent) -> str:
    rows = [
        Bar(printable(group.line) or _exit(group), group.count, f"{group.count:,}", "failures")
        for group in content.failures[:_MAX_GROUPS]
    ]
    return bars("Failures", rows)


def _groups(content: ReportContent) -> str:
    if not content.failures:
        return ""
    others = content.job.failures - sum(group.count for group in content.failures)
    more = f'<p class="note">{others:,} more failed in other ways.</p>' if others > 0 else ""
    return (
        '<div class="scroll"><table><thead><tr><th class="n">count</th><th>state</th>'
        "<th>exit code</th><th>line</th><th>example</th></tr></thead>"
        f"<tbody>{''.join(map(_group, content.failures))}</tbody></table></div>{more}"
    )


def _group(group: FailureGroup) -> str:
    code = exit_text(group.exit_code, group.signal)
    return (
        f'<tr><td class="n">{group.count:,}</td><td class="t">{state_text(group.state)}</td>'
        f'<td class="t">{code}</td><td class="w">{_text(group.line)}</td>'
        f'<td class="t">{_text(group.example)}</td></tr>'
    )


def _exit(group: FailureGroup) -> str:
    code = exit_text(group.exit_code, group.signal)
    return f"{state_text(group.state)} {code}".strip()


def _slowest(content: ReportContent) -> str:
    timed = [
        (outcome.duration, outcome) for outcome in content.outcomes if outcome.duration is not None
    ]
    timed.sort(key=lambda item: (-item[0], item[1].workstation))
    return bars(
        "Slowest workstations",
        [
            Bar(outcome.workstation, duration, _duration_text(duration), state_group(outcome.state))
            for duration, outcome in timed[:_MAX_SLOWEST]
        ],
    )


def _duration_text(duration: float) -> str:
    return f"{duration:.1f} s" if duration < 60 else span(duration)  # noqa: PLR2004 - seconds


def _job_header(content: ReportContent) -> str:
    lines = (f"<div><dt>{name}</dt><dd>{_text(text)}</dd></div>" for name, text in content.header)
    return f'<dl class="header">{"".join(lines)}</dl>'


def _table(content: ReportContent) -> str:
    if not content.outcomes:
        return "<p>The history has no workstation of this job.</p>"
    return (
        '<div class="scroll"><table class="sorted"><thead><tr><th>workstation</th><th>state</th>'
        '<th>at</th><th>agent</th><th class="n">exit code</th><th class="n">duration</th>'
        f"<th>reason</th></tr></thead><tbody>\n{_lines(_rows(content))}\n</tbody></table></div>"
    )


def _rows(content: ReportContent) -> Iterator[str]:
    return map(_row, content.outcomes)


def _row(outcome: OutcomeRow) -> str:
    duration = "" if outcome.duration is None else _duration_text(outcome.duration)
    key = "" if outcome.duration is None else f"{outcome.duration:.3f}"
    state = outcome_state(outcome)
    return (
        f'<tr><td class="t">{_text(outcome.workstation)}</td>'
        f'<td class="t">{_dot(state_group(outcome.state))}{state}</td>'
        f'<td class="t">{local(outcome.at)}</td><td>{_text(outcome.agent)}</td>'
        f'<td class="n">{exit_text(outcome.exit_code, outcome.signal)}</td>'
        f'<td class="n" data-key="{key}">{duration}</td>'
        f'<td class="w">{_text(reason_text(outcome))}</td></tr>'
    )
