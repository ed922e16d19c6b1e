"""`pcm topology` and `pcm schema`: what goes over the broker, and in which words."""

import argparse
import json

from broker.cli.command_line import DONE, Parser
from broker.cli.session import finish


def add_to(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add the commands to a program's commands."""
    topology = commands.add_parser(
        "topology",
        help="the table of keys, and who is bound",
        description="Shows which agents each kind of job reaches, or declares the exchanges and"
        " queues that are not an agent's.",
    )
    topology.add_argument("what", metavar="show|apply", choices=["show", "apply"])
    topology.add_argument("--json", action="store_true", help="print JSON")
    topology.set_defaults(run=_topology)
    schema = commands.add_parser(
        "schema", help="JSON Schema of every message", description="Prints JSON Schema."
    )
    schema.set_defaults(run=_schema)


def _topology(arguments: argparse.Namespace) -> int:
    from broker.amqp import topology

    if arguments.what == "apply":
        return finish(_apply(as_json=arguments.json))
    rows = [(route.words, sorted(map(str, route.bound))) for route in topology.ROUTES]
    if arguments.json:
        print(json.dumps([{"routing_key": f"{words}.*", "bound": bound} for words, bound in rows]))
    else:
        print(f"{'ROUTING KEY':<24}BOUND AGENTS")
        for words, bound in rows:
            print(f"{words + '.*':<24}{', '.join(bound)}")
    return DONE


async def _apply(*, as_json: bool) -> int:
    from broker.amqp import topology

    await topology.apply_topology()
    names = [exchange.name for exchange in topology.EXCHANGES]
    queues = [queue.name for queue in topology.central_queues()]
    if as_json:
        print(json.dumps({"exchanges": names, "queues": queues}))
    else:
        print(f"exchanges {', '.join(names)} and queues {', '.join(queues)} are there")
    return DONE


def _schema(_arguments: argparse.Namespace) -> int:
    from schemas.json_schema import message_schema

    print(json.dumps(message_schema(), indent=2))
    return DONE
