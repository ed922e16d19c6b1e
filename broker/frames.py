"""Takes the frames that have arrived as they lie there.

The library's own way asks for each of them three times, behind a lock: where many come together,
more than all else that is done to read them.
"""

from typing import Any

from aiormq.connection import FrameReceiver
from aiormq.exceptions import InvalidFrameError
from pamqp.exceptions import PAMQPException
from pamqp.frame import unmarshal

_HEAD = 7  # bytes: its kind, its channel, and the size of what follows
_END = 1
_wait_for_frame = FrameReceiver.get_frame


def come_at_once() -> None:
    """Have the library take what is there; what has not come yet, it waits for as ever."""
    FrameReceiver.get_frame = _get_frame  # type: ignore[method-assign]


async def _get_frame(self: FrameReceiver) -> Any:
    arrived: bytearray = self.reader._buffer  # type: ignore[attr-defined] # noqa: SLF001
    size = _HEAD + int.from_bytes(arrived[3:_HEAD], "big") + _END
    # The first frame is looked at more closely: who answers may not speak AMQP at all.
    if len(arrived) < size or not self.started or self.lock.locked():
        return await _wait_for_frame(self)
    frame = bytes(arrived[:size])
    del arrived[:size]
    self.reader._maybe_resume_transport()  # type: ignore[attr-defined] # noqa: SLF001
    try:
        return unmarshal(frame)
    except PAMQPException as error:
        raise InvalidFrameError(str(error)) from error
