"""The running host: timers, queue receivers and HTTP around one indexed app, from start to a graceful stop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from functools import partial
from typing import Any

from aiohttp import web
from azure.servicebus import ServiceBusReceivedMessage
from azure.servicebus.aio import AutoLockRenewer, ServiceBusClient

from . import worker
from .configuration import HostConfiguration, HostError, resolve_references, setting
from .encoding import message_metadata, message_value, typed_in_metadata
from .functions import Function, QueueTrigger, TimerTrigger
from .http import Endpoints
from .protocol import TypedData
from .queues import listen
from .timers import Schedule, run_timer, timer_value
from .worker import Outcome

log = logging.getLogger(__name__)

_GRACE_SECONDS = 3.0  # for calls in flight when the host is told to stop; what is left then is cancelled, so abandoned
_SETTLE_SECONDS = 2.0


class Host:
    """Serves the functions of one app on the loopback address. The constructor checks everything, ``start`` connects.

    ``function_key`` None asks for no key, as ``func start`` does. Raises HostError for a missing setting, an unreadable
    schedule or route.
    """

    def __init__(
        self, functions: Sequence[Function], configuration: HostConfiguration, function_key: str | None = None
    ) -> None:
        self._configuration = configuration
        self._schedules = {
            function: Schedule.parse(resolve_references(function.trigger.schedule, function.name), function.name)
            for function in functions
            if isinstance(function.trigger, TimerTrigger)
        }
        self._queues = {
            function: (resolve_references(trigger.queue, function.name), setting(trigger.connection, function.name))
            for function in functions
            if isinstance(trigger := function.trigger, QueueTrigger) and not function.disabled
        }
        self._endpoints = Endpoints(
            functions,
            invoke=self._invoke,
            start_by_hand=self._start_by_hand,
            state=lambda: self._state,
            route_prefix=configuration.route_prefix,
            function_key=function_key,
        )
        self._state = "Starting"
        self._loops: list[asyncio.Task[None]] = []  # what makes calls: cancelled first when stopping
        self._calls: set[asyncio.Task[Any]] = set()  # the calls: given time to finish
        self._resources = AsyncExitStack()

    async def start(self, port: int) -> int:
        """Serve HTTP on ``port`` (0 takes a free one), receive, tick. Returns the port when all are connected.

        Raises HostError if the port is taken or a connection string is none.
        """
        runner = web.AppRunner(self._endpoints.application(), access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        self._resources.push_async_callback(runner.cleanup)
        try:
            await web.TCPSite(runner, "127.0.0.1", port).start()
        except OSError as error:
            raise HostError(f"Cannot listen on port {port}: {error.strerror}. Choose another with --port.") from error
        await asyncio.gather(*[event.wait() for event in await self._start_receivers()])
        for function, schedule in self._schedules.items():
            if not function.disabled:
                self._loops.append(asyncio.create_task(self._run_timer(function, schedule)))
        self._state = "Running"
        bound: int = runner.addresses[0][1]
        return bound

    async def stop(self) -> int:
        """Take no new work, let calls in flight finish for a few seconds, abandon the rest. Returns how many."""
        self._state = "Stopping"
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        cut_off: set[asyncio.Task[Any]] = set()
        if self._calls:
            _, cut_off = await asyncio.wait(self._calls, timeout=_GRACE_SECONDS)
        if cut_off:
            log.warning("Stopping with %d calls unfinished; their messages are abandoned", len(cut_off))
            for call in cut_off:
                call.cancel()
            await asyncio.wait(cut_off, timeout=_SETTLE_SECONDS)
        await self._resources.aclose()
        return len(cut_off)

    def _spawn(self, call: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(call)
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        return task

    async def _call(self, function: Function, value: TypedData, metadata: Mapping[str, TypedData]) -> Outcome:
        return await worker.invoke(function, value, metadata, self._configuration.function_timeout)

    async def _invoke(self, function: Function, value: TypedData, metadata: Mapping[str, TypedData]) -> Outcome:
        if self._state == "Stopping":
            return Outcome("the host is stopping", None)
        call = self._spawn(self._call(function, value, metadata))
        outcome: Outcome = await asyncio.shield(call)  # a caller that is cancelled leaves the call to the grace period
        return outcome

    def _start_by_hand(self, function: Function, text: str) -> None:
        if schedule := self._schedules.get(function):
            value = timer_value(last=None, following=schedule.next_after(datetime.now(UTC)), past_due=False)
            self._spawn(self._call(function, value, {}))
        else:
            self._spawn(self._call(function, TypedData(string=text), typed_in_metadata()))

    async def _run_timer(self, function: Function, schedule: Schedule) -> None:
        assert isinstance(function.trigger, TimerTrigger)
        await run_timer(
            schedule, lambda value: self._invoke(function, value, {}), run_on_startup=function.trigger.run_on_startup
        )

    async def _start_receivers(self) -> list[asyncio.Event]:
        renewer = self._lock_renewer()
        clients: dict[str, ServiceBusClient] = {}
        events = []
        for function, (queue, connection) in self._queues.items():
            if connection not in clients:
                clients[connection] = await self._resources.enter_async_context(_client(function, connection))
            receiver = clients[connection].get_queue_receiver(
                queue, prefetch_count=self._configuration.prefetch_count, auto_lock_renewer=renewer
            )
            self._resources.push_async_callback(receiver.close)
            events.append(asyncio.Event())
            assert isinstance(function.trigger, QueueTrigger)
            listener = listen(
                queue,
                receiver,
                partial(self._handle, function),
                self._spawn,
                on_connected=events[-1].set,
                max_concurrent_calls=self._configuration.max_concurrent_calls,
                auto_complete=self._configuration.auto_complete
                if function.trigger.auto_complete is None
                else function.trigger.auto_complete,
            )
            self._loops.append(asyncio.create_task(listener))
        if renewer:
            self._resources.push_async_callback(renewer.close)  # pushed last, so closed before what it renews through
        return events

    def _lock_renewer(self) -> AutoLockRenewer | None:
        seconds = self._configuration.lock_renewal.total_seconds()
        if not seconds:
            return None
        return AutoLockRenewer(max_lock_renewal_duration=seconds, on_lock_renew_failure=_log_lost_lock)

    async def _handle(self, function: Function, message: ServiceBusReceivedMessage) -> bool:
        try:
            value, metadata = message_value(message), message_metadata(message)
        except ValueError:
            extra = {"message_id": message.message_id}
            log.exception("A message for %s cannot be read", function.name, extra=extra)
            return False
        return (await self._call(function, value, metadata)).succeeded


def _client(function: Function, connection: str) -> ServiceBusClient:
    assert isinstance(function.trigger, QueueTrigger)
    try:
        return ServiceBusClient.from_connection_string(connection, retry_total=1, retry_backoff_max=1)
    except ValueError as error:
        name = function.trigger.connection
        raise HostError(
            f"{function.name}: the setting {name} holds no Service Bus connection string: {error}"
        ) from error


async def _log_lost_lock(message: object, error: Exception | None) -> None:
    message_id = getattr(message, "message_id", None)
    log.warning(
        "Lost the lock of a message; it will be delivered again", extra={"message_id": message_id, "error": str(error)}
    )
