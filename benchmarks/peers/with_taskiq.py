"""taskiq-aio-pika, which has no results without a further server."""

from taskiq_aio_pika import AioPikaBroker
from taskiq_aio_pika.exchange import Exchange
from taskiq_aio_pika.queue import Queue

from benchmarks.peers import task

if task.PUBLISHES:
    broker = AioPikaBroker(
        task.URL,
        exchange=Exchange(name=task.EXCHANGE, declare=False),
        task_queues=[Queue(name=task.QUEUE, routing_key=task.KEY, declare=False)],
    )
else:
    broker = AioPikaBroker(task.URL)


@broker.task(task_name="run")  # type: ignore[untyped-decorator]
async def run() -> None:
    """Run the command."""
    await task.run_without_results_in_loop()


@broker.task(task_name="job")  # type: ignore[untyped-decorator]
async def job(text: str) -> None:
    """Only published, never run."""


async def commands(count: int) -> None:
    """Run commands, and wait until all have ended."""
    end = task.counted() + count
    await task.pipelined(lambda _: run.kiq(), range(count))
    await task.until_counted(end)


async def publish(bodies: list[bytes]) -> None:
    """Publish many messages at a time."""
    await task.pipelined(lambda body: job.kiq(body.decode()), bodies)


async def main() -> None:
    """Run the measurement."""
    await broker.startup()
    await task.measure(publish, commands)
    await broker.shutdown()


if __name__ == "__main__":
    task.start(main())
