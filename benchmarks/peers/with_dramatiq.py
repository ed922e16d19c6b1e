"""Dramatiq, which has no results without a further server."""

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker

from benchmarks.peers import task

broker = RabbitmqBroker(url=task.URL, confirm_delivery=task.PUBLISHES)
dramatiq.set_broker(broker)
if task.PUBLISHES:
    broker.queues.add(task.QUEUE)  # it exists; Dramatiq cannot declare it with its arguments


@dramatiq.actor(queue_name="dramatiq")  # type: ignore[untyped-decorator]
def run() -> None:
    """Run the command."""
    task.run_without_results()


@dramatiq.actor(queue_name=task.QUEUE or "jobs")  # type: ignore[untyped-decorator]
def job(text: str) -> None:
    """Only published, never run."""


async def commands(count: int) -> None:
    """Run commands, and wait until all have ended."""
    end = task.counted() + count
    for _ in range(count):
        run.send()
    await task.until_counted(end)


async def publish(bodies: list[bytes]) -> None:
    """Publish one by one: Dramatiq waits for each confirm."""
    for body in bodies:
        job.send(body.decode())


if __name__ == "__main__":
    task.start(task.measure(publish, commands))
