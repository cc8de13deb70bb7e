"""Service Bus queue triggers: receive in peek-lock, invoke, then complete on success or abandon on failure."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Protocol

from azure.servicebus import ServiceBusReceivedMessage

log = logging.getLogger(__name__)

_RECEIVE_SECONDS = 5.0
_RETRY_SECONDS = (0.2, 0.5, 1.0, 2.0, 3.0)  # the last one for ever


class Receiver(Protocol):
    """The part of ``azure.servicebus.aio.ServiceBusReceiver`` that a queue trigger needs."""

    async def __aenter__(self) -> object:
        """Connect, or connect again after a failure."""
        ...

    async def receive_messages(
        self, max_message_count: int | None = 1, max_wait_time: float | None = None
    ) -> list[ServiceBusReceivedMessage]:
        """Wait for messages, at most ``max_wait_time`` seconds."""
        ...

    async def complete_message(self, message: ServiceBusReceivedMessage) -> None:
        """Remove the message from the queue."""
        ...

    async def abandon_message(self, message: ServiceBusReceivedMessage) -> None:
        """Give the message back at once; its delivery count rises."""
        ...


async def listen(
    queue: str,
    receiver: Receiver,
    handle: Callable[[ServiceBusReceivedMessage], Awaitable[bool]],
    spawn: Callable[[Coroutine[None, None, None]], object],
    *,
    on_connected: Callable[[], None],
    max_concurrent_calls: int,
    auto_complete: bool,
) -> None:
    """Receive from one queue until cancelled, with at most ``max_concurrent_calls`` messages in work.

    ``handle`` says whether the function succeeded. ``spawn`` starts the work on one message, which outlives a cancelled
    listener. A broker that goes away is logged once, then tried again for ever with growing pauses (0.2 to 3 s).
    """
    slots = asyncio.Semaphore(max_concurrent_calls)
    connected, failures = False, 0

    async def work(message: ServiceBusReceivedMessage) -> None:
        try:
            succeeded = await handle(message)
            await _settle(queue, receiver, message, succeeded=succeeded, auto_complete=auto_complete)
        finally:
            slots.release()

    while True:
        await slots.acquire()  # first a free slot, then a message: its lock must not run while nobody works on it
        messages: list[ServiceBusReceivedMessage] = []
        try:
            if not connected:
                await receiver.__aenter__()
                connected = True
                on_connected()
                log.info("Receiving from queue %s", queue, extra={"queue": queue, "failures": failures})
            messages = await receiver.receive_messages(max_message_count=1, max_wait_time=_RECEIVE_SECONDS)
            failures = 0
        except Exception as error:  # noqa: BLE001 - top-level guard: no error of a broker or its client may end the host
            if not failures:
                log.warning(
                    "Lost queue %s, trying again until it is back", queue, extra={"queue": queue, "error": str(error)}
                )
            connected, failures = False, failures + 1
        finally:
            if not messages:
                slots.release()
        for message in messages:
            spawn(work(message))
        if failures:
            await asyncio.sleep(_RETRY_SECONDS[min(failures, len(_RETRY_SECONDS)) - 1])


async def _settle(
    queue: str, receiver: Receiver, message: ServiceBusReceivedMessage, *, succeeded: bool, auto_complete: bool
) -> None:
    try:
        if not succeeded:
            await receiver.abandon_message(message)
        elif auto_complete:
            await receiver.complete_message(message)
    except Exception as error:  # noqa: BLE001 - top-level guard: the lock may be lost or the broker away; redelivery heals both
        extra = {"queue": queue, "message_id": message.message_id, "succeeded": succeeded, "error": str(error)}
        log.warning("Could not settle a message of queue %s; it will be delivered again", queue, extra=extra)
