"""The service agent: runs unattended with the system's rights, and receives all jobs."""

from agents.agent import Agent
from agents.claims import service_liveness
from agents.jobs.host import this_host
from agents.settings import AgentSettings
from agents.user.handover import ForegroundJobs
from broker.amqp.topology import AgentKind
from schemas.policy import ServiceRules


class ServiceAgent(Agent):
    """Runs background jobs when due, and mandatory foreground jobs that no user ran."""

    kind = AgentKind.SERVICE

    def __init__(self, settings: AgentSettings) -> None:
        rules = ServiceRules(this_host(settings), settings.takeover_grace.total_seconds())
        super().__init__(settings, rules)
        self._liveness_lock = service_liveness.announce(settings.state_dir)
        self._foreground_jobs = ForegroundJobs(
            settings.state_dir,
            self._ledger,
            self._claims,
            self.open_jobs,
            self.changes,
            self._contents,
        )

    async def _serve(self) -> None:
        if (address := self._settings.share_cache) is not None:
            from agents.content.share import Sharing

            self._tasks.start(Sharing(address, self._settings.state_dir).run())
        await self._foreground_jobs.serve()
