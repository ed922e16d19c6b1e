"""`pcm topology` and `pcm schema`: show the routing table and the message formats."""

import argparse
import json

from broker.amqp import topology
from broker.cli.command_line import DONE, Parser
from broker.cli.session import run_async
from schemas.json_schema import message_schema


def add_to(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add the commands to a program's commands."""
    topology = commands.add_parser(
        "topology",
        description="Shows which agents the jobs of each routing key reach, or declares the"
        " exchanges and the queues that belong to no agent.",
    )
    topology.add_argument("what", metavar="show|apply", choices=["show", "apply"])
    topology.add_argument("--json", action="store_true", help="print JSON")
    topology.set_defaults(run=_topology)
    schema = commands.add_parser(
        "schema",
        description="Prints the JSON Schema of every message.",
    )
    schema.set_defaults(run=_schema)


def _topology(arguments: argparse.Namespace) -> int:
    if arguments.what == "apply":
        return run_async(_apply(as_json=arguments.json))
    rows = [(route.words, sorted(map(str, route.bound))) for route in topology.ROUTES]
    if arguments.json:
        print(json.dumps([{"routing_key": f"{words}.*", "bound": bound} for words, bound in rows]))
    else:
        print(f"{'ROUTING KEY':<24}BOUND")
        for words, bound in rows:
            print(f"{words + '.*':<24}{', '.join(bound)}")
    return DONE


async def _apply(*, as_json: bool) -> int:
    await topology.apply_topology()
    names = [exchange.name for exchange in topology.EXCHANGES]
    queues = [queue.name for queue in topology.central_queues()]
    if as_json:
        print(json.dumps({"exchanges": names, "queues": queues}))
    else:
        print(f"exchanges {', '.join(names)} and queues {', '.join(queues)} exist")
    return DONE


def _schema(_arguments: argparse.Namespace) -> int:
    print(json.dumps(message_schema(), indent=2))
    return DONE
