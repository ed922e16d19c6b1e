"""Celery, with results by its rpc backend."""

import os

from celery import Celery
from kombu import Exchange, Queue

from benchmarks.peers import task

CAREFUL = "PEER_CAREFUL" in os.environ

app = Celery("peer", broker=task.URL, backend="rpc://")
app.conf.update(task_acks_late=CAREFUL, broker_transport_options={"confirm_publish": CAREFUL})

publishing = Celery("publishing", broker=task.URL)
publishing.conf.update(
    task_queues=[Queue(task.QUEUE, Exchange(task.EXCHANGE, "topic"), task.KEY, no_declare=True)],
    task_default_queue=task.QUEUE,
    broker_transport_options={"confirm_publish": True},
)


@app.task(name="run")  # type: ignore[untyped-decorator]
def run() -> task.Result:
    """Run the command."""
    return task.run()


async def commands(count: int) -> None:
    """Run commands, and get all results."""
    for result in [run.delay() for _ in range(count)]:
        result.get()


async def publish(bodies: list[bytes]) -> None:
    """Publish one by one: Celery waits for each confirm."""
    for body in bodies:
        publishing.send_task("job", (body.decode(),))


if __name__ == "__main__":
    task.start(task.measure(publish, commands))
