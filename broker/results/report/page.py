"""A report as a page: one file that needs nothing else, and no script for what it says."""

import base64
import hashlib
from collections.abc import Iterable, Iterator
from html import escape

from broker.cli.terminal import printable
from broker.cli.time_formats import local, span
from broker.history.queries import FailureGroup, Pair
from broker.results.query_session import exit_text, ordered, shares, state_words, told, words
from broker.results.report.charts import Bar, bars, progress
from broker.results.report.content import KINDS, ReportContent, kind
from broker.results.report.style import SCRIPT, STYLE

_SLOWEST = 10
_GROUPS = 10
_KIND_WORDS = {
    "succeeded": "succeeded",
    "failed": "failures",
    "other": "otherwise",
    "running": "running",
    "waiting": "waiting",
}


def report_html(account: ReportContent) -> str:
    """Return a job's report as an HTML page that needs no other file."""
    job = account.job
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_policy()}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{_text(job.name or job.id)}: what came of it</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{_text(job.name or job.id)}</h1>
<p class="id">{_text(job.id)}</p>
{_lines(f'<p class="gap">The history is not whole: {_text(gap)}</p>' for gap in account.gaps)}
{_tiles(account)}
{_share_bar(account)}
<div class="panels">
{_panel("The job", _head(account), wide=True)}
{_panel("States", _states(account))}
{_panel("Ends over time", _progress(account))}
{_panel("Failures", _failures(account))}
{_panel("Slowest workstations", _slowest(account))}
{_panel("What failed alike", _groups(account), wide=True)}
</div>
<h2>Workstations</h2>
{_table(account)}
<footer>As of {_text(local(account.now))}. Times are on the clock of the machine that made this
page.</footer>
<script>{SCRIPT}</script>
</body>
</html>
"""


def _policy() -> str:
    """Return what the page may do: nothing of the network, and no script but its own."""
    print_of = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{print_of}'"


def _text(text: object) -> str:
    return escape(printable(str(text)))


def _lines(parts: Iterable[str]) -> str:
    return "\n".join(parts)


def _panel(title: str, content: str, *, wide: bool = False) -> str:
    of = "panel wide" if wide else "panel"
    return f'<section class="{of}"><h2>{title}</h2>{content}</section>' if content else ""


def _tiles(account: ReportContent) -> str:
    """Return the figures, of which all but the first add up to the first."""
    tiles = [f"<div><dt>workstations</dt><dd>{account.job.counts.total():,}</dd></div>"]
    tiles += [
        f"<div><dt>{_dot(of)}{_KIND_WORDS[of]}</dt><dd>{count:,}</dd></div>"
        for of, count in account.kinds.items()
    ]
    return f'<dl class="tiles">{"".join(tiles)}</dl>'


def _share_bar(account: ReportContent) -> str:
    """Return how the workstations are shared out, in one bar."""
    total = max(account.job.counts.total(), 1)
    parts, left = [], 0.0
    for of, count in account.kinds.items():
        width = 1000 * count / total
        parts.append(f'<rect class="{of}" x="{left:.2f}" width="{width:.2f}" height="10"/>')
        left += width
    return (
        '<div class="bar"><svg viewBox="0 0 1000 10" preserveAspectRatio="none"'
        f' aria-hidden="true">{"".join(parts)}</svg></div>'
    )


def _states(account: ReportContent) -> str:
    counted = ordered(account.job.counts)
    percents = shares([count for _, count in counted])
    rows = [
        Bar(words(state), count, f"{count:,}  ({share} %)", kind(state))
        for (state, count), share in zip(counted, percents, strict=True)
    ]
    return bars("States", rows) or "<p>No workstation is known that it is for.</p>"


def _progress(account: ReportContent) -> str:
    chart = progress(account)
    if not chart:
        return "<p>It has ended nowhere yet.</p>"
    keys = (f"<span>{_dot(of)}{_KIND_WORDS[of]}</span>" for of in KINDS if account.kinds[of])
    return f'{chart}<p class="keys">{"".join(keys)}</p>'


def _dot(of: str) -> str:
    circle = f'<circle class="{of}" cx="5" cy="5" r="5"/>'
    return f'<svg viewBox="0 0 10 10" aria-hidden="true">{circle}</svg>'


def _failures(account: ReportContent) -> str:
    rows = [
        Bar(printable(group.line) or _exit(group), group.count, f"{group.count:,}", "failed")
        for group in account.failures[:_GROUPS]
    ]
    return bars("Failures", rows)


def _groups(account: ReportContent) -> str:
    if not account.failures:
        return ""
    others = account.job.failures - sum(group.count for group in account.failures)
    more = f'<p class="note">{others:,} more failed in other ways.</p>' if others > 0 else ""
    return (
        '<div class="scroll"><table><thead><tr><th class="n">count</th><th>state</th><th>exit</th>'
        "<th>first line of error, or reason</th><th>such as</th></tr></thead>"
        f"<tbody>{''.join(map(_group, account.failures))}</tbody></table></div>{more}"
    )


def _group(group: FailureGroup) -> str:
    code = exit_text(group.exit_code, group.signal)
    return (
        f'<tr><td class="n">{group.count:,}</td><td class="t">{words(group.state)}</td>'
        f'<td class="t">{code}</td><td class="w">{_text(group.line)}</td>'
        f'<td class="t">{_text(group.example)}</td></tr>'
    )


def _exit(group: FailureGroup) -> str:
    code = exit_text(group.exit_code, group.signal)
    return f"{words(group.state)} {code}".strip()


def _slowest(account: ReportContent) -> str:
    timed = [(pair.duration, pair) for pair in account.pairs if pair.duration is not None]
    timed.sort(key=lambda one: (-one[0], one[1].workstation))
    return bars(
        "Slowest workstations",
        [
            Bar(pair.workstation, duration, _took(duration), kind(pair.state))
            for duration, pair in timed[:_SLOWEST]
        ],
    )


def _took(duration: float) -> str:
    return f"{duration:.1f} s" if duration < 60 else span(duration)  # noqa: PLR2004 - seconds


def _head(account: ReportContent) -> str:
    lines = (f"<div><dt>{name}</dt><dd>{_text(text)}</dd></div>" for name, text in account.head)
    return f'<dl class="head">{"".join(lines)}</dl>'


def _table(account: ReportContent) -> str:
    if not account.pairs:
        return "<p>None is known that it is for.</p>"
    return (
        '<div class="scroll"><table class="sorted"><thead><tr><th>workstation</th><th>state</th>'
        '<th>at</th><th>agent</th><th class="n">exit</th><th class="n">took</th>'
        f"<th>told</th></tr></thead><tbody>\n{_lines(_rows(account))}\n</tbody></table></div>"
    )


def _rows(account: ReportContent) -> Iterator[str]:
    return map(_row, account.pairs)


def _row(pair: Pair) -> str:
    took = "" if pair.duration is None else _took(pair.duration)
    key = "" if pair.duration is None else f"{pair.duration:.3f}"
    state = state_words(pair.state, restart_required=pair.restart_required)
    return (
        f'<tr><td class="t">{_text(pair.workstation)}</td>'
        f'<td class="t">{_dot(kind(pair.state))}{state}</td>'
        f'<td class="t">{local(pair.at)}</td><td>{_text(pair.agent)}</td>'
        f'<td class="n">{exit_text(pair.exit_code, pair.signal)}</td>'
        f'<td class="n" data-key="{key}">{took}</td><td class="w">{_text(told(pair))}</td></tr>'
    )
