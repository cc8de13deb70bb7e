"""The deadline of the present invocation: set at its entry, read by every adapter before and for each call.

Azure Functions ends the worker, and every call in flight with it, at `functionTimeout` (host.json: ten minutes). An
invocation that stops by itself before that can still say what is to become of its message.
"""

import contextvars
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from shared.errors import TransientError

LEAST_SECONDS = 1.0
"""With less left than this no call is started: it would hardly be answered."""

_end: ContextVar[float | None] = ContextVar("deadline", default=None)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Whatever is called inside must be done so many seconds from now; a nearer deadline outside stays in force."""
    end = time.monotonic() + seconds
    outer = _end.get()
    token = _end.set(end if outer is None else min(end, outer))
    try:
        yield
    finally:
        _end.reset(token)


def left() -> float:
    """Seconds until the deadline, infinite where there is none."""
    end = _end.get()
    return math.inf if end is None else end - time.monotonic()


def bounded(seconds: float, *, tries: int = 1) -> float:
    """How long the next call may take: so many seconds, or what is left of the deadline, shared by all its tries.

    Raises TransientError where less than a second is left. Without a deadline it is what was asked for.
    """
    end = _end.get()
    if end is None:
        return seconds
    left = end - time.monotonic()
    if left < LEAST_SECONDS:
        raise TransientError("no time is left in this invocation: the call was not started")
    return min(seconds, left / tries)


def bound_azure_requests(seconds: float) -> Callable[[Any], None]:
    """For `raw_request_hook` of a client on azure-core: each try may take so many seconds, or what is left.

    The hook gets a PipelineRequest; its context's options are those of the transport.
    """

    def bound(request: Any) -> None:  # noqa: ANN401 - azure-core is imported by the adapters alone
        left = bounded(seconds)
        request.context.options |= {"connection_timeout": left, "read_timeout": left}

    return bound


class InheritingThreadPool(ThreadPoolExecutor):
    """Threads that work under the deadline, the trace and the log fields of whoever gave them the work."""

    def submit[**P, T](self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        context = contextvars.copy_context()
        return super().submit(lambda: context.run(fn, *args, **kwargs))
