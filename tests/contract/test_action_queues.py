"""The real adapter for the queues, against the Service Bus stand-in; what arrives is read with the official client."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from azure.core.exceptions import AzureError, ClientAuthenticationError
from azure.servicebus import (
    ServiceBusClient,
    ServiceBusMessageState,
    ServiceBusReceivedMessage,
    ServiceBusReceiveMode,
    ServiceBusReceiver,
)
from azure.servicebus import exceptions as service_bus

from local.azurite import free_port
from local.service_bus import QueueConfig, running_broker
from local.service_bus.server import connection_string
from shared.action_queues import ServiceBusActionQueues, translated
from shared.errors import (
    ConfigurationError,
    StoreNotAuthorisedError,
    StoreRefusedError,
    ThrottledError,
    TransientError,
)
from shared.ports import OutgoingMessage
from shared.settings import Settings

ROOT = Path(__file__).resolve().parents[2]


class Bus:
    """The adapter under test and the official client to read with, one receiver per queue: opening one takes long."""

    def __init__(self, address: str) -> None:
        self.queues = ServiceBusActionQueues(Settings(service_bus_connection=address))
        self._reader = ServiceBusClient.from_connection_string(address)
        self._receivers: dict[str, ServiceBusReceiver] = {}

    def _receiver(self, queue: str) -> ServiceBusReceiver:
        if queue not in self._receivers:
            at_once = ServiceBusReceiveMode.RECEIVE_AND_DELETE
            self._receivers[queue] = self._reader.get_queue_receiver(queue, receive_mode=at_once)
        return self._receivers[queue]

    def received(self, count: int, queue: str = "work") -> list[ServiceBusReceivedMessage]:
        """`count` messages, or what there is after 10 seconds, and whatever else is there."""
        receiver = self._receiver(queue)
        found: list[ServiceBusReceivedMessage] = []
        deadline = time.monotonic() + 10
        while len(found) < count and time.monotonic() < deadline:
            found += receiver.receive_messages(max_message_count=5000, max_wait_time=0.5)
        return found + receiver.receive_messages(max_message_count=10, max_wait_time=0.1)

    def peeked(self) -> list[ServiceBusReceivedMessage]:
        return self._receiver("work").peek_messages(max_message_count=100, sequence_number=1)

    def close(self) -> None:
        with ThreadPoolExecutor() as pool:  # each takes a second
            pool.submit(self.queues.close)
            pool.map(ServiceBusReceiver.close, self._receivers.values())


@pytest.fixture(scope="module")
def bus() -> Iterator[Bus]:
    with running_broker([QueueConfig(name, duplicate_detection_seconds=600) for name in ("work", "other")]) as address:
        bus = Bus(address)
        yield bus
        bus.close()


def numbered(name: str, count: int, size: int = 2) -> list[OutgoingMessage]:
    return [OutgoingMessage(body="x" * size, message_id=f"{name}-{number}") for number in range(count)]


def text(message: ServiceBusReceivedMessage) -> str:
    return b"".join(message.body).decode()


def test_message_arrives_with_all_its_fields(bus: Bus) -> None:
    body = json.dumps({"name": "ü–🙂"}, ensure_ascii=False)
    properties: dict[str, str | int] = {"deferrals": 2, "first_seen": "2026-11-20T12:00:00Z"}

    bus.queues.send("work", [OutgoingMessage(body=body, message_id="retry:ws1:1:original:1", properties=properties)])
    [message] = bus.received(1)

    assert text(message) == body
    assert message.message_id == "retry:ws1:1:original:1"
    assert message.content_type == "application/json"
    assert message.application_properties == {b"deferrals": 2, b"first_seen": b"2026-11-20T12:00:00Z"}
    assert message.scheduled_enqueue_time_utc is None


def test_message_with_a_due_time_waits_for_it(bus: Bus) -> None:
    in_an_hour = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
    elsewhere = in_an_hour.astimezone(timezone(timedelta(hours=-7)))
    past = datetime.now(UTC) - timedelta(hours=1)

    bus.queues.send(
        "work",
        [OutgoingMessage("later", "1", due=elsewhere), OutgoingMessage("now", "2", due=past)],
    )

    assert [text(message) for message in bus.received(1)] == ["now"]
    [later] = bus.peeked()
    assert later.state is ServiceBusMessageState.SCHEDULED
    assert later.scheduled_enqueue_time_utc == in_an_hour


def test_more_messages_than_fit_in_one_batch_all_arrive_once_in_order(bus: Bus) -> None:
    messages = numbered("many", 600, size=1000)

    bus.queues.send("work", messages)

    assert [message.message_id for message in bus.received(600)] == [one.message_id for one in messages]


def test_repeated_ids_are_dropped(bus: Bus) -> None:
    for _ in range(2):
        bus.queues.send("work", numbered("repeated", 3))
    bus.queues.send("work", [])

    assert [message.message_id for message in bus.received(3)] == ["repeated-0", "repeated-1", "repeated-2"]


def test_threads_may_send_at_the_same_time(bus: Bus) -> None:
    def send(number: int) -> None:
        bus.queues.send(
            "other" if number % 2 else "work", [OutgoingMessage("{}", f"{number}-{part}") for part in range(5)]
        )

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(send, range(40)))

    ids = {message.message_id for queue in ("work", "other") for message in bus.received(100, queue)}
    assert ids == {f"{number}-{part}" for number in range(40) for part in range(5)}


def test_message_that_is_too_large_is_named_and_the_queue_still_works(bus: Bus) -> None:
    too_large = OutgoingMessage("x" * 300_000, "the-large-one")

    with pytest.raises(StoreRefusedError, match="the-large-one"):
        bus.queues.send("work", [*numbered("small", 1), too_large])
    bus.queues.send("work", [OutgoingMessage("{}", "small-after")])

    # What came before the large one was accepted; with the same id, sending it again is harmless.
    assert [message.message_id for message in bus.received(2)] == ["small-0", "small-after"]


def test_sender_that_stays_broken_is_replaced(bus: Bus) -> None:
    bus.queues.send("work", numbered("sound", 1))
    bus.queues._senders["work"].close()  # nothing from outside can break one for good, but clients have had such faults

    with pytest.raises(ValueError, match="shutdown"):
        bus.queues.send("work", numbered("broken", 1))
    bus.queues.send("work", numbered("replaced", 1))

    assert [message.message_id for message in bus.received(2)] == ["sound-0", "replaced-0"]


def test_missing_queue_is_named(bus: Bus) -> None:
    with pytest.raises(ConfigurationError, match="no-such-queue"):
        bus.queues.send("no-such-queue", numbered("missing", 1))


@contextmanager
def broker_process(port: int, queues: Path) -> Iterator[None]:
    """A broker of its own process, which is killed at the end without a goodbye."""
    command = [sys.executable, "-m", "local.service_bus", "--port", str(port), "--queues", str(queues)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline().startswith("READY")
        yield
        process.kill()


def test_service_that_went_down_and_came_back_is_sent_to_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.action_queues.RETRIES", 0)
    config = tmp_path / "queues.json"
    config.write_text('[{"name": "work"}]')
    port = free_port()
    bus = Bus(connection_string(port))

    with broker_process(port, config):
        bus.queues.send("work", [OutgoingMessage("{}", "before")])
    with pytest.raises(TransientError, match="work"):
        bus.queues.send("work", [OutgoingMessage("{}", "during")])
    with broker_process(port, config):
        bus.queues.send("work", [OutgoingMessage("{}", "after")])
        assert [message.message_id for message in bus.received(1)] == ["after"]
        bus.close()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (service_bus.ServiceBusConnectionError(message="reset"), TransientError),
        (service_bus.ServiceBusCommunicationError(message="unreachable"), TransientError),
        (service_bus.OperationTimeoutError(message="slow"), TransientError),
        (service_bus.MessagingEntityDisabledError(message="disabled"), TransientError),
        (service_bus.ServiceBusQuotaExceededError(message="full"), TransientError),
        (service_bus.ServiceBusError("anything"), TransientError),
        (service_bus.ServiceBusServerBusyError(message="busy"), ThrottledError),
        (service_bus.ServiceBusAuthenticationError(message="no token"), StoreNotAuthorisedError),
        (service_bus.ServiceBusAuthorizationError(message="no Send claim"), StoreNotAuthorisedError),
        (
            service_bus.ServiceBusError("wrapped", error=ClientAuthenticationError("no identity")),
            StoreNotAuthorisedError,
        ),
        (service_bus.MessageSizeExceededError(message="large"), StoreRefusedError),
        (service_bus.MessagingEntityNotFoundError(message="gone"), ConfigurationError),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value.__name__,
)
def test_error_of_the_client_becomes_one_of_ours(error: AzureError, expected: type[Exception]) -> None:
    ours = translated(error, "retries")

    assert type(ours) is expected
    assert "queue retries" in str(ours)


def test_missing_settings_are_named() -> None:
    with pytest.raises(ConfigurationError, match="SERVICE_BUS_CONNECTION or SERVICE_BUS_CONNECTION__fully"):
        ServiceBusActionQueues(Settings())


def test_broken_connection_string_is_named_and_not_shown() -> None:
    queues = ServiceBusActionQueues(Settings(service_bus_connection="Endpoint=sb://x;SharedAccessKey=secret"))

    with pytest.raises(ConfigurationError, match="SERVICE_BUS_CONNECTION") as caught:
        queues.send("work", numbered("refused", 1))
    assert "secret" not in str(caught.value)
