"""What travels through the queues: what is understood, what is refused, and how messages are named."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.domain import FailureId
from shared.errors import InvalidMessageError
from shared.messages import (
    MAX_MESSAGE_ID_LENGTH,
    EmailMessage,
    FailedRunMessage,
    QueueMessage,
    RetryMessage,
    bounded_id,
)

FAILED: dict[str, Any] = {
    "schema_version": 1,
    "workspace": "ws1",
    "run_id": 1001,
    "failure_id": "ws1:1001:original",
    "source": "timer",
}


def body_with(**changes: Any) -> bytes:
    return json.dumps({name: value for name, value in (FAILED | changes).items() if value is not ...}).encode()


def test_messages_survive_their_own_json() -> None:
    failure = FailureId("ws1:1001:9001")
    messages: list[QueueMessage] = [
        FailedRunMessage(workspace="ws1", run_id=1001, failure_id=failure, source="sweep"),
        RetryMessage(workspace="ws1", run_id=1001, failure_id=failure, attempt=2),
        EmailMessage(workspace="ws1", run_id=1001, failure_id=failure, kind="suggestion"),
    ]

    assert [type(m).parse(m.to_json().encode()) for m in messages] == messages


def test_message_ids_name_the_failure_the_action_and_the_attempt() -> None:
    failure = FailureId("ws1:1001:9001")

    ids = [
        FailedRunMessage(workspace="ws1", run_id=1001, failure_id=failure, source="timer").message_id,
        FailedRunMessage(workspace="ws1", run_id=1001, failure_id=failure, source="sweep").message_id,
        RetryMessage(workspace="ws1", run_id=1001, failure_id=failure, attempt=1).message_id,
        RetryMessage(workspace="ws1", run_id=1001, failure_id=failure, attempt=2).message_id,
        EmailMessage(workspace="ws1", run_id=1001, failure_id=failure, kind="escalation").message_id,
        EmailMessage(workspace="ws1", run_id=1001, failure_id=failure, kind="suggestion").message_id,
    ]

    assert ids[0] == ids[1], "the same failure, whoever found it"
    assert len(set(ids)) == 5


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"", "body"),
        (b"{", "body"),
        (b"null", "body"),
        (b"[]", "body"),
        (b'"text"', "body"),
        (b"\x00\xff\xfe", "body"),
        (b"[" * 10_000, "body"),
        (body_with(schema_version=2), "schema_version"),
        (body_with(schema_version="1"), "schema_version"),
        (body_with(workspace=...), "workspace"),
        (body_with(run_id=...), "run_id"),
        (body_with(run_id="many"), "run_id"),
        (body_with(run_id=None), "run_id"),
        (body_with(failure_id=5), "failure_id"),
        (body_with(source="nowhere"), "source"),
        (body_with(password="s3cret-value"), "password"),
        (b'{"run_id": ' + b"9" * 5000 + b"}", "body"),
    ],
    ids=range(17),
)
def test_what_is_not_understood_is_refused_by_name_and_never_shown(body: bytes, named: str) -> None:
    with pytest.raises(InvalidMessageError, match=named) as refusal:
        FailedRunMessage.parse(body)

    assert "s3cret-value" not in str(refusal.value)
    assert "many" not in str(refusal.value)
    assert refusal.value.__cause__ is None, "the cause would show the values"


def test_a_message_of_another_queue_is_refused() -> None:
    retry = RetryMessage(workspace="ws1", run_id=1, failure_id=FailureId("ws1:1:original"), attempt=1)

    with pytest.raises(InvalidMessageError):
        EmailMessage.parse(retry.to_json().encode())


@given(st.binary(max_size=200))
def test_no_body_does_anything_but_parse_or_be_refused(body: bytes) -> None:
    try:
        message = FailedRunMessage.parse(body)
    except InvalidMessageError:
        return
    assert message.schema_version == 1


@given(st.text(max_size=300), st.text(max_size=300))
def test_ids_are_short_enough_and_stay_distinct(one: str, other: str) -> None:
    assert len(bounded_id(one)) <= MAX_MESSAGE_ID_LENGTH
    assert (bounded_id(one) == bounded_id(other)) == (one == other)
    assert bounded_id(one) == one or len(one) > MAX_MESSAGE_ID_LENGTH
