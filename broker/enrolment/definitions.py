"""RabbitMQ definitions: users, permissions, queues and bindings in one document.

An import changes no existing queue or exchange, and removes nothing.
"""

import base64
import hashlib
import secrets
from collections.abc import Iterable, Mapping
from typing import Any

from broker.amqp import topology
from broker.amqp.topology import Queue, QueueType
from broker.enrolment.rights import AgentLogin, permissions, topic_permissions

Definitions = dict[str, list[dict[str, Any]]]

SECTIONS = {
    "vhosts": ("name",),
    "users": ("name",),
    "permissions": ("vhost", "user"),
    "topic_permissions": ("vhost", "user", "exchange"),
    "exchanges": ("vhost", "name"),
    "queues": ("vhost", "name"),
    "bindings": ("vhost", "source", "destination", "routing_key", "arguments"),
}
"""The sections that we write, with the fields that identify an entry."""


def hashed(password: str) -> dict[str, str]:
    """Return the hash of a password as RabbitMQ stores it; the password is long and random."""
    salt = secrets.token_bytes(4)
    digest = hashlib.sha256(salt + password.encode()).digest()
    return {
        "password_hash": base64.b64encode(salt + digest).decode(),
        "hashing_algorithm": "rabbit_password_hashing_sha256",
    }


def central(virtual_host: str) -> Definitions:
    """Return the definitions of the exchanges and the central queues."""
    exchanges = [
        {
            "name": exchange.name,
            "vhost": virtual_host,
            "type": str(exchange.type.value),
            "durable": True,
            "auto_delete": False,
            "internal": False,
            "arguments": {},
        }
        for exchange in topology.EXCHANGES
    ]
    queues = topology.central_queues()
    return {
        "exchanges": exchanges,
        "queues": [_queue(queue, virtual_host) for queue in queues],
        "bindings": [binding for queue in queues for binding in _bindings(queue, virtual_host)],
    }


def of_agents(
    virtual_host: str,
    agents: Iterable[AgentLogin],
    groups: Iterable[str],
    passwords: Mapping[str, str],
    queue_type: QueueType,
) -> Definitions:
    """Return the definitions of the agents of one workstation.

    Args:
        virtual_host: the virtual host.
        agents: the agents.
        groups: the groups of the workstation.
        passwords: new passwords, by login; the other agents' users are left out.
        queue_type: the type of their queues.
    """
    agents, groups = list(agents), list(groups)
    # Without expiry: an enrolled agent cannot declare its queue again.
    queues = [
        topology.agent_queue(agent.kind, agent.workstation, agent.user, groups, queue_type, None)
        for agent in agents
    ]
    return {
        "users": [
            {"name": agent.login, "tags": "", **hashed(passwords[agent.login])}
            for agent in agents
            if agent.login in passwords
        ],
        "permissions": [
            {"user": agent.login, "vhost": virtual_host, **permissions(agent)} for agent in agents
        ],
        "topic_permissions": [
            {"user": agent.login, "vhost": virtual_host, "exchange": exchange, **allowed}
            for agent in agents
            for exchange, allowed in topic_permissions(agent, groups).items()
        ],
        "queues": [_queue(queue, virtual_host) for queue in queues],
        "bindings": [binding for queue in queues for binding in _bindings(queue, virtual_host)],
    }


def merged(*parts: Definitions) -> Definitions:
    """Return definitions merged into one; a later entry replaces an earlier one in its place."""
    result: Definitions = {}
    for definitions in parts:
        for section, entries in definitions.items():
            identity = SECTIONS.get(section)
            if identity is None:
                result[section] = entries
                continue
            by_identity = {
                repr([entry.get(field) for field in identity]): entry
                for entry in [*result.get(section, []), *entries]
            }
            result[section] = list(by_identity.values())
    return result


def without_bindings(
    definitions: Definitions, virtual_host: str, agents: Iterable[AgentLogin]
) -> Definitions:
    """Return definitions without the bindings of agents' queues."""
    queues = {agent.queue for agent in agents}
    bindings = [
        binding
        for binding in definitions.get("bindings", [])
        if binding.get("vhost") != virtual_host or binding.get("destination") not in queues
    ]
    return {**definitions, "bindings": bindings}


def _queue(queue: Queue, virtual_host: str) -> dict[str, Any]:
    return {
        "name": queue.name,
        "vhost": virtual_host,
        "durable": True,
        "auto_delete": False,
        "arguments": queue.arguments,
    }


def _bindings(queue: Queue, virtual_host: str) -> list[dict[str, Any]]:
    bound: list[tuple[str, str, dict[str, Any]]]
    bound = [(exchange, key, {}) for exchange, key in queue.bindings]
    bound += [(topology.DEAD, "", dict(match)) for match in queue.matches]
    return [
        {
            "source": source,
            "vhost": virtual_host,
            "destination": queue.name,
            "destination_type": "queue",
            "routing_key": key,
            "arguments": arguments,
        }
        for source, key, arguments in bound
    ]
