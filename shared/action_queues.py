"""The queues between the steps, on Azure Service Bus.

Sent through the client and not by an output binding, since a binding can set neither a message id nor a due time.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC
from functools import cached_property
from typing import TYPE_CHECKING
from uuid import UUID

from shared import deadline, telemetry
from shared.errors import (
    AgentError,
    ConfigurationError,
    StoreNotAuthorisedError,
    StoreRefusedError,
    ThrottledError,
    TransientError,
)
from shared.ports import OutgoingMessage
from shared.settings import Settings

if TYPE_CHECKING:
    from azure.core.exceptions import AzureError
    from azure.servicebus import ServiceBusClient, ServiceBusMessageBatch, ServiceBusSender

TRY_SECONDS = 10
SEND_SECONDS = 30
RETRIES = 2
LONGEST_BACKOFF_SECONDS = 5


class ServiceBusActionQueues:
    """Sends to the queues of one namespace. Safe to share between threads; makes no connection before the first send.

    A sender of the client is neither thread-safe nor cheap to open (a connection of its own, so about 0.2 s), hence one
    per queue, kept open, and one send at a time.
    """

    def __init__(self, settings: Settings) -> None:
        """Raises ConfigurationError where neither a connection string nor a namespace is set."""
        settings.require(("service_bus_connection", "service_bus_namespace"))
        self._settings = settings
        self._lock = threading.Lock()
        self._senders: dict[str, ServiceBusSender] = {}

    def send(self, queue: str, messages: Sequence[OutgoingMessage]) -> None:
        """Send all, in as few batches as they fit in (256 KB each in the Standard tier).

        Raises TransientError or ThrottledError where the service cannot take them now; a part may have been accepted.
        StoreRefusedError where a message is too large, StoreNotAuthorisedError, ConfigurationError where there is no
        such queue.
        """
        if not messages:
            return
        ids = [message.message_id for message in messages]
        with telemetry.sending(queue, ids), self._lock, translated_errors(queue):
            deadline.bounded(SEND_SECONDS)  # may it still begin, after waiting for its turn?
            try:
                sender = self._sender(queue)
                for batch in batches(sender, messages):
                    sender.send_messages(batch, timeout=deadline.bounded(SEND_SECONDS))
            except BaseException:
                self._discard(queue)
                raise

    def check(self, names: Sequence[str]) -> None:
        """Open a link to each queue to send by, and look at its first message. Raises what `send` raises.

        So the right to send and the right to receive, which the triggers need, are both tried. Changes nothing.
        """
        for queue in names:
            with self._lock, translated_errors(queue):
                try:
                    self._sender(queue).create_message_batch()
                    with self._client.get_queue_receiver(queue) as receiver:
                        receiver.peek_messages(timeout=deadline.bounded(TRY_SECONDS))
                except BaseException:
                    self._discard(queue)
                    raise

    def close(self) -> None:
        """Close all connections; a later send opens new ones."""
        with self._lock:
            for queue in list(self._senders):
                self._discard(queue)

    def _sender(self, queue: str) -> "ServiceBusSender":
        if queue not in self._senders:
            self._senders[queue] = self._client.get_queue_sender(queue)
        return self._senders[queue]

    def _discard(self, queue: str) -> None:
        """Forget a sender that may be broken; the next send gets a new one."""
        from azure.core.exceptions import AzureError

        if sender := self._senders.pop(queue, None):
            with suppress(AzureError, OSError):  # what is broken need not close well
                sender.close()

    @cached_property
    def _client(self) -> "ServiceBusClient":
        from azure.servicebus import ServiceBusClient

        settings = self._settings
        if not settings.service_bus_connection:
            from azure.identity import DefaultAzureCredential

            credential = DefaultAzureCredential(managed_identity_client_id=settings.azure_client_id or None)
            return ServiceBusClient(
                settings.service_bus_namespace,
                credential,
                retry_total=RETRIES,
                retry_backoff_max=LONGEST_BACKOFF_SECONDS,
                try_timeout=TRY_SECONDS,
            )
        try:
            return ServiceBusClient.from_connection_string(
                settings.service_bus_connection,
                retry_total=RETRIES,
                retry_backoff_max=LONGEST_BACKOFF_SECONDS,
                try_timeout=TRY_SECONDS,
            )
        except ValueError as error:  # it says what is missing, never the key
            raise ConfigurationError(
                f"SERVICE_BUS_CONNECTION is not a connection string: {error}", names=("SERVICE_BUS_CONNECTION",)
            ) from None


def batches(sender: "ServiceBusSender", messages: Sequence[OutgoingMessage]) -> "Iterator[ServiceBusMessageBatch]":
    """All messages in their order, in as few batches as they fit in. StoreRefusedError for one that fits in none."""
    batch = sender.create_message_batch()
    for message in messages:
        if added(batch, message):
            continue
        if len(batch):
            yield batch
            batch = sender.create_message_batch()
        if not added(batch, message):
            raise StoreRefusedError(
                f"message {message.message_id} is larger than a queue takes ({batch.max_size_in_bytes} bytes)"
            )
    yield batch


def added(batch: "ServiceBusMessageBatch", message: OutgoingMessage) -> bool:
    """Add the message, unless the batch has no room for it."""
    from azure.servicebus import ServiceBusMessage
    from azure.servicebus.exceptions import MessageSizeExceededError

    # A copy keeps the trace of its original. Names are bytes, as the client's own tracing has them: it adds what it
    # does not find, and a name that is text would then be in the message twice, which AMQP forbids.
    named = {**telemetry.trace_properties(), **message.properties}
    properties: dict[str | bytes, int | float | bytes | bool | str | UUID] = {}
    properties.update({name.encode(): value for name, value in named.items()})
    content = ServiceBusMessage(
        message.body,
        message_id=message.message_id,
        application_properties=properties,
        content_type="application/json",
        scheduled_enqueue_time_utc=message.due.astimezone(UTC) if message.due else None,
    )
    try:
        batch.add_message(content)
    except MessageSizeExceededError:
        return False
    return True


@contextmanager
def translated_errors(queue: str) -> Iterator[None]:
    """Turn the client's exceptions into ours."""
    from azure.core.exceptions import AzureError

    try:
        yield
    except AzureError as error:
        raise translated(error, queue) from error


def translated(error: "AzureError", queue: str) -> AgentError:
    """Our error for one of the client's."""
    from azure.core.exceptions import ClientAuthenticationError
    from azure.servicebus import exceptions as service_bus

    name = type(error).__name__
    match error:
        case service_bus.MessagingEntityNotFoundError():
            return ConfigurationError(f"queue {queue} does not exist in the Service Bus namespace: create it")
        case (
            service_bus.ServiceBusAuthenticationError()
            | service_bus.ServiceBusAuthorizationError()
            | service_bus.ServiceBusError(inner_exception=ClientAuthenticationError())
            | ClientAuthenticationError()
        ):
            return StoreNotAuthorisedError(
                f"the identity may not use queue {queue} ({name}): it needs the roles Azure Service Bus Data Sender and"
                " Azure Service Bus Data Receiver"
            )
        case service_bus.MessageSizeExceededError():
            return StoreRefusedError(f"queue {queue} refused a message because of its size")
        case service_bus.ServiceBusServerBusyError():
            return ThrottledError(f"Service Bus is too busy to take messages for queue {queue}")
        case _:
            return TransientError(f"Service Bus did not take messages for queue {queue} ({name})")
