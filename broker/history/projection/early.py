"""Reports that are read before their job: they count until it is known who can have the job."""

from collections.abc import Iterator

from sqlalchemy import Connection, delete, select

from broker.history.chunks import chunks
from broker.history.schema import early, outcomes, reports, results
from broker.stream.entry import StreamEntry
from schemas import Report
from schemas.reports.reporters import Reporters


def early_row(report: Report, entry: StreamEntry) -> dict[str, object]:
    """Return the row of a report of an unknown job."""
    return {
        "job_id": report.job_id,
        "workstation": report.workstation,
        "agent": report.agent,
        "id": report.id,
        "offset": entry.offset,
        "login": entry.user_id,
        "routing_key": entry.routing_key,
        "body": report.body().decode(),
    }


def take_back(
    connection: Connection, job_id: str, reporters: Reporters
) -> Iterator[tuple[Report, StreamEntry]]:
    """Take back what counts on workstations of which an agent reported that cannot have the job.

    Yields:
        All reports of these workstations, with their entries, to be taken in again.
    """
    of_job = early.c.job_id == job_id
    found = connection.execute(select(early).where(of_job).order_by(early.c.offset)).all()
    connection.execute(delete(early).where(of_job))
    agents = {(row.workstation, row.agent) for row in found}
    wrong = sorted({name for name, agent in agents if reporters.objection(name, agent)})
    for names in chunks(wrong):
        for table in (reports, results, outcomes):
            of_names = table.c.workstation.in_(names)
            connection.execute(delete(table).where(table.c.job_id == job_id, of_names))
    again = set(wrong)
    for row in found:
        if row.workstation in again:
            entry = StreamEntry(row.offset, "report", "", b"", row.login, row.routing_key)
            yield Report.read(row.body, tolerant=True), entry
