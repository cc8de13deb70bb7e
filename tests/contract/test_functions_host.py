"""The local Functions host against a broker: messages as the official library decodes them, settling, locks."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import azure.functions as func
import pytest
from azure.functions.meta import Datum
from azure.functions.servicebus import ServiceBusMessageInConverter
from azure.servicebus import (
    ServiceBusClient,
    ServiceBusMessage,
    ServiceBusReceivedMessage,
    ServiceBusReceiver,
    ServiceBusSender,
    ServiceBusSubQueue,
)

from local.functions_host.encoding import message_metadata, message_value
from local.functions_host.protocol import TypedData
from local.service_bus import QueueConfig, running_broker
from local.service_bus.server import connection_string
from tests.local.running_host import ROOT, RunningHost, running_host

QUEUES = [
    QueueConfig("encoding"),
    QueueConfig("work", lock_seconds=3, max_delivery_count=3),
    QueueConfig("stopping", max_delivery_count=3),
]


@dataclass
class Client:
    """The official client of one broker; links are kept, since it takes half a second to open or close one."""

    connection: str
    client: ServiceBusClient
    senders: dict[str, ServiceBusSender] = field(default_factory=dict)
    receivers: dict[tuple[str, ServiceBusSubQueue | None], ServiceBusReceiver] = field(default_factory=dict)

    def send(self, *messages: ServiceBusMessage, queue: str = "work") -> None:
        sender = self.senders.setdefault(queue, self.client.get_queue_sender(queue))
        sender.send_messages(list(messages))

    def receiver(self, queue: str, sub_queue: ServiceBusSubQueue | None = None) -> ServiceBusReceiver:
        if (queue, sub_queue) not in self.receivers:
            self.receivers[queue, sub_queue] = self.client.get_queue_receiver(queue, sub_queue=sub_queue)
        return self.receivers[queue, sub_queue]

    def close(self) -> None:
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda link: link.close(), [*self.senders.values(), *self.receivers.values()]))


@contextmanager
def connected(connection: str) -> Iterator[Client]:
    with ServiceBusClient.from_connection_string(connection) as client:
        links = Client(connection, client)
        yield links
        links.close()


@pytest.fixture(scope="module")
def broker() -> Iterator[Client]:
    with running_broker(QUEUES) as connection, connected(connection) as client:
        yield client


@pytest.fixture(scope="module")
def host(broker: Client) -> Iterator[RunningHost]:
    with running_host(settings(broker.connection)) as running:
        yield running


def settings(connection: str, queue: str = "work") -> dict[str, str]:
    return {"TICK_SCHEDULE": "0 0 0 1 1 *", "WORK_QUEUE": queue, "SERVICE_BUS": connection}


# --- encoding ---------------------------------------------------------------------------------------------------------


def decode(value: TypedData, metadata: dict[str, TypedData]) -> func.ServiceBusMessage:
    """What the official library makes of an encoded message."""

    def datum(data: TypedData) -> Datum:
        kind = data.WhichOneof("data")
        return Datum(getattr(data, str(kind)), kind)

    fields = {name: datum(data) for name, data in metadata.items()}
    message = ServiceBusMessageInConverter.decode(datum(value), trigger_metadata=fields)
    assert isinstance(message, func.ServiceBusMessage)
    return message


def through_the_broker(broker: Client, message: ServiceBusMessage) -> tuple[ServiceBusReceivedMessage, Any]:
    """The message as the Service Bus client receives it and as a function would get it."""
    broker.send(message, queue="encoding")
    (received,) = broker.receiver("encoding").receive_messages(max_wait_time=5)
    decoded = decode(message_value(received), message_metadata(received))
    assert decoded.lock_token == str(received.lock_token)
    broker.receiver("encoding").complete_message(received)
    return received, decoded


def test_every_field_that_dotnet_sends_arrives(broker: Client) -> None:
    sent = ServiceBusMessage(
        '{"run_id": 7, "text": "é"}',
        message_id="run-7",
        correlation_id="incident-7",
        content_type="application/json",
        subject="decide",
        to="somebody",
        reply_to="answers",
        reply_to_session_id="answer-session",
        partition_key="7",
        application_properties={"text": "é", "number": 7, "share": 0.5, "flag": True},
    )
    received, message = through_the_broker(broker, sent)
    assert message.get_body() == '{"run_id": 7, "text": "é"}'.encode()
    assert message.application_properties == {"text": "é", "number": 7, "share": 0.5, "flag": True}
    assert message.user_properties == message.application_properties
    assert message.message_id == "run-7"
    assert message.correlation_id == "incident-7"
    assert message.content_type == "application/json"
    assert message.subject == message.label == "decide"
    assert message.to == "somebody"
    assert message.reply_to == "answers"
    assert message.reply_to_session_id == "answer-session"
    assert message.partition_key == "7"
    assert message.sequence_number == received.sequence_number
    assert message.delivery_count == 1


def test_times_are_utc_without_a_zone_and_expiry_is_dotnets_maximum(broker: Client) -> None:
    _, message = through_the_broker(broker, ServiceBusMessage("x"))
    assert message.enqueued_time_utc.tzinfo is None
    assert abs((datetime.now(UTC).replace(tzinfo=None) - message.enqueued_time_utc).total_seconds()) < 5
    assert message.expires_at_utc == datetime(9999, 12, 31, 23, 59, 59, 999999)  # noqa: DTZ001 - .NET sends no zone


def test_what_dotnet_does_not_send_is_none(broker: Client) -> None:
    _, message = through_the_broker(broker, ServiceBusMessage("x"))
    for name in (
        "locked_until",
        "time_to_live",
        "state",
        "dead_letter_reason",
        "correlation_id",
        "session_id",
        "subject",
    ):
        assert getattr(message, name) is None, name
    assert message.application_properties == {}


@pytest.mark.parametrize("body", [b"", b"\xff\x00 not UTF-8", "\ufeffwith a mark".encode()])
def test_bodies_arrive_byte_for_byte(broker: Client, body: bytes) -> None:
    _, message = through_the_broker(broker, ServiceBusMessage(body))
    assert message.get_body() == body


# --- a running host ---------------------------------------------------------------------------------------------------


def deliveries(host: RunningHost, message_id: str, count: int = 1) -> list[dict[str, Any]]:
    return host.wait_for(lambda record: record.get("message_id") == message_id and record["logger"] == "sample", count)


def test_a_message_reaches_its_function_and_is_completed(host: RunningHost, broker: Client) -> None:
    broker.send(ServiceBusMessage("hello", message_id="m-1", application_properties={"attempt": 1}))
    (record,) = deliveries(host, "m-1")
    assert record["body"] == "hello"
    assert record["properties"] == {"attempt": 1}
    assert record["delivery_count"] == 1
    assert record["function"] == "work"
    (executed,) = host.wait_for(lambda other: other["message"] == "Executed work" and same_call(other, record))
    assert executed["succeeded"] is True


def same_call(record: dict[str, Any], other: dict[str, Any]) -> bool:
    return bool(record.get("invocation_id") == other["invocation_id"])


@pytest.mark.parametrize(("body", "error"), [("fail", "ValueError: asked to fail"), ("exit", "SystemExit: 3")])
def test_a_failing_function_is_called_again_until_the_message_is_dead(
    host: RunningHost, broker: Client, body: str, error: str
) -> None:
    broker.send(ServiceBusMessage(body, message_id=f"m-{body}"))
    records = deliveries(host, f"m-{body}", count=3)
    assert [record["delivery_count"] for record in records] == [1, 2, 3]
    (executed,) = host.wait_for(lambda other: other["level"] == "ERROR" and same_call(other, records[2]))
    assert executed["error"] == error
    dead_letters = broker.receiver("work", ServiceBusSubQueue.DEAD_LETTER)
    (dead,) = dead_letters.receive_messages(max_wait_time=5)
    dead_letters.complete_message(dead)
    assert dead.message_id == f"m-{body}"


def test_a_call_that_outlasts_the_lock_keeps_it_and_other_messages_go_on(host: RunningHost, broker: Client) -> None:
    broker.send(ServiceBusMessage("sleep 3.5", message_id="m-slow"), ServiceBusMessage("hello", message_id="m-quick"))
    (slow,), (quick,) = deliveries(host, "m-slow"), deliveries(host, "m-quick")
    (executed,) = host.wait_for(lambda other: other["message"] == "Executed work" and same_call(other, slow))
    assert executed["duration_ms"] > 3000
    host.wait_for(lambda other: other["message"].startswith("Passed functionTimeout") and same_call(other, slow))
    assert quick["time"] < executed["time"]
    broker.send(ServiceBusMessage("hello", message_id="m-after"))
    deliveries(host, "m-after")
    about_slow = [record["message"] for record in host.records if record.get("message_id") == "m-slow"]
    assert about_slow == ["message"]  # delivered once, its lock never lost
    assert broker.receiver("work").peek_messages(10) == []


def test_stopping_lets_short_calls_finish_and_gives_long_ones_back(broker: Client) -> None:
    with running_host(settings(broker.connection, queue="stopping")) as host:
        messages = [ServiceBusMessage("sleep 1", message_id="short"), ServiceBusMessage("sleep 60", message_id="long")]
        broker.send(*messages, queue="stopping")
        deliveries(host, "short")
        deliveries(host, "long")
        assert host.stop() == 0
    (left,) = broker.receiver("stopping").peek_messages(10)
    assert (left.message_id, left.delivery_count, left.locked_until_utc) == ("long", 1, None)


@contextmanager
def broker_process(port: int, folder: Path) -> Iterator[int]:
    """A broker in a process of its own, killed at the end; yields its port."""
    queues = folder / "queues.json"
    queues.write_text(json.dumps([{"name": "work"}]))
    command = [sys.executable, "-m", "local.service_bus", "--port", str(port), "--queues", str(queues)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline().split()[1])
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_the_host_outlives_its_broker_and_says_so_once(tmp_path: Path) -> None:
    with ExitStack() as stack:
        with broker_process(0, tmp_path) as port:
            connection = connection_string(port)
            host = stack.enter_context(running_host(settings(connection)))
            with connected(connection) as client:
                client.send(ServiceBusMessage("hello", message_id="before"))
            deliveries(host, "before")
        host.wait_for(lambda record: record["message"].startswith("Lost queue work"))
        with broker_process(port, tmp_path):
            with connected(connection) as client:
                client.send(ServiceBusMessage("hello", message_id="after"))
            deliveries(host, "after")
        about_the_queue = [record["message"] for record in host.records if record.get("queue") == "work"]
    assert about_the_queue[:3] == [
        "Receiving from queue work",
        "Lost queue work, trying again until it is back",
        "Receiving from queue work",
    ]
