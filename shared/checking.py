"""What `agent check` and the function `check` say of a connection: whether it works, and what mends it."""

import contextvars
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from enum import StrEnum
from threading import Thread

from shared import deadline, telemetry
from shared.databricks_rights import MissingRightsError, UnknownIdentityError
from shared.errors import AgentError, ConfigurationError, NotAuthorisedError, StoreNotAuthorisedError, TransientError
from shared.role_commands import permission_commands, service_principal_command, where_to_set

logger = telemetry.logger(__name__)


class Failure(StrEnum):
    """Why a connection does not work."""

    REFUSED = "refused"  # settings or rights, which whoever asked can mend
    UNREACHABLE = "unreachable"
    UNEXPECTED = "unexpected"


@dataclass(frozen=True, slots=True)
class Connection:
    """One connection of the function app.

    `attempt` says what it found, or raises. What to do where it was refused, and where it does not answer as it should.
    """

    name: str
    attempt: Callable[[], str]
    where_refused: str
    where_unreachable: str


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One line of the report; `failure` is None where it works."""

    name: str
    ok: bool
    detail: str
    fix: str
    failure: Failure | None = None

    def shown(self) -> dict[str, object]:
        """What a program gets to read, of `agent check --json` and of the function `check`."""
        return asdict(self)


def result_of(connection: Connection) -> CheckResult:
    """Make the attempt."""
    try:
        return CheckResult(connection.name, True, connection.attempt(), "")
    except AgentError as error:
        return CheckResult(connection.name, False, str(error), fix_of(error, connection), failure_of(error))


def failure_of(error: AgentError) -> Failure:
    """Settings and rights are the caller's to mend; a service that does not answer is not."""
    if isinstance(error, ConfigurationError | NotAuthorisedError | StoreNotAuthorisedError):
        return Failure.REFUSED
    return Failure.UNREACHABLE if isinstance(error, TransientError) else Failure.UNEXPECTED


def fix_of(error: AgentError, connection: Connection) -> str:
    """What to type, or to look at, after an attempt that failed."""
    match error:
        case ConfigurationError() if error.names:
            return where_to_set(error.names)
        case MissingRightsError():
            return permission_commands(error.principal, error.missing, host=error.host)
        case UnknownIdentityError():
            return service_principal_command(error.application_id, host=error.host)
        case NotAuthorisedError() | StoreNotAuthorisedError():
            return connection.where_refused
        case _:
            return connection.where_unreachable


def results_within(seconds: float, connections: Iterable[Connection]) -> list[CheckResult]:
    """The results of all, tried at the same time; what has no result after so many seconds counts as unreachable.

    An attempt that goes on all the same (a library that waits longer than it was told to) is left to end by itself.
    """
    with deadline.within(seconds):
        attempts = [(connection, begin(connection)) for connection in connections]
        return [result_in_time(connection, attempt, seconds) for connection, attempt in attempts]


def begin(connection: Connection) -> Future[CheckResult]:
    """Make the attempt under the present deadline, in a thread that does not hold up the end of the process."""
    attempt, run = Future[CheckResult](), contextvars.copy_context().run
    name = f"check {connection.name}"
    Thread(target=lambda: attempt.set_result(run(result_despite_bugs, connection)), name=name, daemon=True).start()
    return attempt


def result_despite_bugs(connection: Connection) -> CheckResult:
    """Make the attempt; a bug in it must not hide what the others find."""
    try:
        return result_of(connection)
    except Exception as error:  # a top-level guard, since this is where a thread begins
        logger.exception("connection could not be checked", extra={"connection": connection.name})
        text = f"failed with {type(error).__name__}: the log says more"
        return CheckResult(connection.name, False, text, connection.where_unreachable, Failure.UNEXPECTED)


def result_in_time(connection: Connection, attempt: Future[CheckResult], seconds: float) -> CheckResult:
    """The result, or that there was none by the present deadline, which was `seconds` away at first."""
    try:
        return attempt.result(timeout=max(0, deadline.left()))
    except TimeoutError:
        text = f"no answer within {seconds:g} seconds"
        return CheckResult(connection.name, False, text, connection.where_unreachable, Failure.UNREACHABLE)
