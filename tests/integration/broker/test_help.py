"""Help texts of both programs, and the messages for wrong command lines."""

import json

from tests.support.programs import pcm
from tests.support.rabbitmq import Broker


def test_topology_is_applied_in_json(node: Broker) -> None:
    found = json.loads(pcm("topology", "apply", "--json", url=node.url).stdout)
    assert "pcm.dead" in found["queues"]
    assert found["exchanges"]
