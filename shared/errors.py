"""What can go wrong, as the rest of the app sees it. Vendor exceptions stop at the adapter that met them.

    AgentError
    ├── TransientError            try the same thing again later
    │   ├── ThrottledError        … not before `retry_after_seconds`
    │   ├── ConflictError         somebody else changed the row first: read again
    │   ├── HeldError             it must wait for its turn: no slot, no budget, a breaker, another lease
    │   │   └── PausedError       … a person has paused all actions
    │   ├── OutcomeUnknownError   a write was sent and no answer came: it may have landed or may still land
    │   └── StoreRefusedError     the agent's own tables or queues refuse: nothing can be done before that is mended
    │       └── StoreNotAuthorisedError … because the identity lacks a role, or the role is still spreading
    ├── PermanentError            the same call will fail again
    │   ├── InvalidMessageError   a queue message that is not understood
    │   ├── RunNotFoundError      the run or its job is gone
    │   ├── NotAuthorisedError    the identity lacks a right
    │   ├── RepairRefusedError    the run changed since the decision: somebody repaired it, or it is running
    │   └── RepairImpossibleError this run cannot be repaired at all; a new run of the job may be possible
    └── ConfigurationError        settings are missing or wrong; names every one of them

Raised in a queue function, TransientError becomes a scheduled copy of the message; anything else abandons the message.
"""

import math
from typing import Any


class AgentError(Exception):
    """Base of everything the agent raises on purpose."""


class TransientError(AgentError):
    """A service did not answer, or answered that it cannot just now."""


class ThrottledError(TransientError):
    """A service asked for fewer calls. `retry_after_seconds` is its own figure, or None where it gave none."""

    def __init__(self, message: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


def retry_after_of(response: Any) -> float | None:  # noqa: ANN401 - a vendor's response, or none
    """The seconds of an answer's Retry-After header; None where there is none, or a date, or nonsense."""
    try:
        seconds = float(response.headers["Retry-After"])
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    return seconds if 0 <= seconds < math.inf else None


class ConflictError(TransientError):
    """A row was changed between our read and our write (HTTP 412), by somebody else."""


class HeldError(TransientError):
    """The action must wait for its turn, `seconds` from now at the earliest. Never given up on."""

    def __init__(self, message: str, *, seconds: float) -> None:
        super().__init__(message)
        self.seconds = seconds


class PausedError(HeldError):
    """A person has paused all actions, or it cannot be read whether one has."""


class OutcomeUnknownError(TransientError):
    """A write was sent and its answer was lost. Read what happened before sending anything again."""


class StoreRefusedError(TransientError):
    """The agent's own tables or queues refuse, however often they are asked: a table is gone, a row is not understood.

    To the steps this is an outage: without them nothing can be done or told, and it is never a refusal of Databricks or
    of the mail service.
    """


class StoreNotAuthorisedError(StoreRefusedError):
    """The identity lacks a role on the tables or the queues. One given just now takes minutes to reach them."""


class PermanentError(AgentError):
    """The same call would fail again; a person or another decision is needed."""


class InvalidMessageError(PermanentError):
    """A queue message that cannot be understood: not JSON, another schema version, missing fields."""


class RunNotFoundError(PermanentError):
    """The run (kept for 60 days by Databricks) or its job no longer exists."""


class NotAuthorisedError(PermanentError):
    """The identity lacks a right on the job, the cluster, the mail service or the model."""


class RepairRefusedError(PermanentError):
    """Databricks refused the repair because the run is no longer what the decision was made for."""


class RepairImpossibleError(PermanentError):
    """This kind of run cannot be repaired."""


class ConfigurationError(AgentError):
    """Settings are missing or wrong."""

    def __init__(self, message: str, *, names: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.names = names
