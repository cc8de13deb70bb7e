"""What travels through the queues: small references, never error texts. The history holds the rest.

Message ids are derived from the failure, the attempt and the action, so that a repetition is dropped by duplicate
detection, and a new attempt never is. Azure Service Bus: a message id has at most 128 characters.
"""

import hashlib
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from shared.domain import FailureId
from shared.errors import InvalidMessageError
from shared.queue_names import EMAILS, FAILED_RUNS, QUEUES, RETRIES

__all__ = [
    "EMAILS",
    "FAILED_RUNS",
    "MAX_MESSAGE_ID_LENGTH",
    "QUEUES",
    "RETRIES",
    "EmailMessage",
    "FailedRunMessage",
    "QueueMessage",
    "RetryMessage",
    "bounded_id",
]

MAX_MESSAGE_ID_LENGTH = 128


class QueueMessage(BaseModel):
    """Base of the three messages: parsing, and the fields that name the failure."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    workspace: str
    run_id: int
    failure_id: FailureId

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Raises InvalidMessageError, naming the fields that are wrong; never showing their values."""
        try:
            return cls.model_validate_json(body)
        except ValidationError as error:
            wrong = sorted({f"{'.'.join(map(str, e['loc'])) or 'body'}: {e['type']}" for e in error.errors()})
            raise InvalidMessageError(f"not a {cls.__name__}: {', '.join(wrong)}") from None

    def to_json(self) -> str:
        return self.model_dump_json()


class FailedRunMessage(QueueMessage):
    """A failed run was seen. `run_id` is the run that failed; the failure id holds its latest repair."""

    source: Literal["timer", "sweep", "follow_up", "webhook"]

    @property
    def message_id(self) -> str:
        return bounded_id(f"failed:{self.failure_id}")


class RetryMessage(QueueMessage):
    """The stored decision of this failure is a retry; carry it out as attempt number `attempt`."""

    attempt: int

    @property
    def message_id(self) -> str:
        return bounded_id(f"retry:{self.failure_id}:{self.attempt}")


class EmailMessage(QueueMessage):
    """Tell people about this failure."""

    kind: Literal["escalation", "suggestion"]

    @property
    def message_id(self) -> str:
        return bounded_id(f"email:{self.failure_id}:{self.kind}")


def bounded_id(text: str) -> str:
    """The text itself, or its head and a hash where it is longer than a message id may be."""
    if len(text) <= MAX_MESSAGE_ID_LENGTH:
        return text
    return f"{text[:63]}:{hashlib.sha256(text.encode()).hexdigest()}"
