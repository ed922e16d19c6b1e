"""The service agent: unattended, bound to every key, with the system's rights."""

from agents.agent import Agent
from agents.claims import service_liveness as neighbour
from agents.jobs.host import here
from agents.settings import AgentSettings
from broker.amqp.topology import AgentKind
from schemas.policy import ServiceRules


class ServiceAgent(Agent):
    """Runs background jobs at their time, and users' mandatory jobs where no user did."""

    kind = AgentKind.SERVICE

    def __init__(self, settings: AgentSettings) -> None:
        rules = ServiceRules(here(settings), settings.takeover_grace.total_seconds())
        super().__init__(settings, rules)
        self._seen = neighbour.announce(settings.state_dir)
