"""A private cluster of three RabbitMQ nodes, whose nodes can be killed, cut off and frozen."""

import json
import os
import secrets
import signal
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, Self

from tests.support.rabbitmq import Node

# A node that is silent for 8 to 10 seconds is taken for lost, not only after a minute.
_CONFIG = """
cluster_partition_handling = pause_minority
cluster_formation.peer_discovery_backend = classic_config
net_ticktime = 8
"""
_PAUSED = "awaiting recovery"


class Member(Node):
    """One of a cluster's nodes."""

    def join(self, members: Sequence["Member"], cookie: str) -> None:
        """Become one of these; before its first start."""
        self._peers = [member.name for member in members if member is not self]
        self._cookie = cookie
        file = self._folder / ".erlang.cookie"
        file.write_text(cookie)
        file.chmod(0o400)
        # The first starts alone: RabbitMQ 4.0 waits for a second one of those that it knows.
        known = members[:1] if self is members[0] else members
        lines = [
            f"cluster_formation.classic_config.nodes.{number} = {member.name}"
            for number, member in enumerate(known, start=1)
        ]
        with (self._folder / "rabbitmq.conf").open("a") as config:
            config.write(_CONFIG + "\n".join(lines) + "\n")
        # One epmd for all: that of the first; those of the others find the port taken, and end.
        self._epmd_port = members[0].epmd_port
        self._environment["ERL_EPMD_PORT"] = str(self._epmd_port)

    @property
    def name(self) -> str:
        """The node's name."""
        return self._name

    @property
    def epmd_port(self) -> int:
        """Where nodes ask for each other."""
        return self._epmd_port

    def pauses(self) -> bool:
        """Whether it pauses in a minority; with Khepri it continues without accepting changes."""
        return "khepri_db\tenabled" not in self.ctl("list_feature_flags", "name", "state")

    @property
    def paused(self) -> bool:
        """Whether it ever found itself in a minority, and paused."""
        return _PAUSED in self.log

    def status(self) -> dict[str, Any]:
        """Return the cluster's status as this node knows it; it blocks while a node is frozen."""
        found: dict[str, Any] = json.loads(self.ctl("cluster_status", "--formatter", "json"))
        return found

    def sees(self) -> set[str]:
        """Return the names of the nodes that it is connected with."""
        # Not by the status: that asks all nodes, and waits for one that is frozen.
        return {peer for peer in self._peers if f"'{peer}'" in self.ctl("eval", "nodes().")}

    def cut_off(self) -> None:
        """Part it from all others: it no longer has their cookie, so neither side gets in."""
        self._for_peers("erlang:set_cookie(Peer, wrong)")
        self._for_peers("erlang:disconnect_node(Peer)")

    def heal(self) -> None:
        """Let it reach the others again."""
        self._for_peers(f"erlang:set_cookie(Peer, '{self._cookie}')")

    def freeze(self) -> None:
        """Stop it where it stands; its connections stay open, and silent."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGSTOP)

    def _for_peers(self, expression: str) -> None:
        peers = ", ".join(f"'{peer}'" for peer in self._peers)
        self.ctl("eval", f"[{expression} || Peer <- [{peers}]].")


class Cluster:
    """Three nodes that are one broker, from `with` to its end."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self.members = [Member() for _ in range(3)]
        cookie = secrets.token_hex(16)
        for member in self.members:
            member.join(self.members, cookie)

    def __enter__(self) -> Self:
        first, *others = self.members
        with ExitStack() as stack:
            for member in others:
                stack.callback(member.stop)
            # Alone: the others find a cluster to join.
            stack.enter_context(first)
            with ThreadPoolExecutor() as pool:
                list(pool.map(Member.start, others))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def whole(self) -> bool:
        """Whether all nodes accept AMQP, and each sees all running without partitions."""
        return all(member.answers() and self._is_whole(member.status()) for member in self.members)

    def _is_whole(self, status: dict[str, Any]) -> bool:
        running = set(status["running_nodes"])
        return running == {member.name for member in self.members} and not status["partitions"]

    def without(self, lost: Member) -> bool:
        """Whether all other nodes consider one as down."""
        return all(lost.name not in member.sees() for member in self.members if member is not lost)

    def urls(self, first: int) -> tuple[str, ...]:
        """Return the nodes' addresses, beginning with that of one of them."""
        return tuple(member.url for member in self.members[first:] + self.members[:first])
