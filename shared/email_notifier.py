"""EmailNotifier: mail through Azure Communication Services, as text and HTML, each with a key of its own.

The client's own retries are off: the service answers 429 with the time to wait, which belongs to the queue and not to a
sleeping function (an Azure-managed domain may send 5 mails a minute and 10 an hour; failed tries count too).
"""

import logging
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.domain import Attempt, DecisionKind, EscalationMail, Json
from shared.errors import (
    AgentError,
    NotAuthorisedError,
    OutcomeUnknownError,
    PermanentError,
    ThrottledError,
    TransientError,
)
from shared.settings import Settings
from shared.triage.redaction import redact

if TYPE_CHECKING:
    from azure.communication.email import EmailClient
    from jinja2 import Environment

logger = logging.getLogger(__name__)

TEMPLATES = Path(__file__).parent / "templates"
KEY_HEADER = "X-Failure-Agent-Key"
OPERATIONS = uuid.UUID("5f0b8f8e-6f1d-4c56-9c39-0a4d0f3f1b7e")
"""Namespace of the operation ids: the same mail key gives the same id, today and after a crash."""

API_VERSION = "2025-09-01"
MAX_MAIL_EXCERPT = 8_000


class EmailNotifier:
    """Sends mail. Raises this app's own errors only."""

    def __init__(self, settings: Settings | None = None) -> None:
        if settings is None:
            from shared.bootstrap import current_settings

            settings = current_settings()
        self._settings = settings
        self._lock = threading.Lock()
        self._client_or_none: EmailClient | None = None

    def send(self, mail: EscalationMail) -> None:
        """Hand a mail over for delivery; it is not waited for. Nothing is sent where there is nobody to tell."""
        if not mail.recipients:
            raise PermanentError(f"nobody to mail about run {mail.run_id}: set ESCALATION_EMAILS or OWNERS")
        message = message_of(mail, sender=self._settings.sender_email)
        with translated(f"mail about run {mail.run_id}", is_write=True):
            self._client().begin_send(message, operation_id=operation_id(mail.key), polling=False)

    def was_accepted(self, key: str) -> bool:
        """Ask the service whether it knows the operation of an earlier send."""
        return self._operation_status(operation_id(key)) is not None

    def check(self) -> None:
        """Raise where the service cannot be reached, refuses the identity, or settings are missing. Sends nothing."""
        self._settings.require(("acs_endpoint",), ("sender_email",))
        self._operation_status(str(uuid.uuid4()))

    def test_connection(self) -> bool:
        """Whether mail could be sent; why not is logged. Sends nothing."""
        try:
            self.check()
        except AgentError as error:
            logger.warning("e-mail connection test failed", extra={"reason": str(error)})
            return False
        return True

    def _operation_status(self, operation: str) -> str | None:
        """The status of a send operation, None where the service knows none (404)."""
        from azure.core.rest import HttpRequest

        url = f"{self._settings.acs_endpoint.rstrip('/')}/emails/operations/{operation}?api-version={API_VERSION}"
        with translated("e-mail operation", is_write=False):
            response = self._client().send_request(HttpRequest("GET", url))
            if response.status_code == 404:
                return None
            response.raise_for_status()
            return str(response.json().get("status", ""))

    def _client(self) -> "EmailClient":
        with self._lock:
            if self._client_or_none is None:
                self._client_or_none = self._new_client()
            return self._client_or_none

    def _new_client(self) -> "EmailClient":
        from azure.communication.email import EmailClient
        from azure.core.credentials import AzureKeyCredential

        self._settings.require(("acs_endpoint",), ("sender_email",))
        credential: Any
        if self._settings.acs_access_key:
            credential = AzureKeyCredential(self._settings.acs_access_key)
        else:
            from azure.identity import DefaultAzureCredential

            credential = DefaultAzureCredential(managed_identity_client_id=self._settings.azure_client_id or None)
        seconds = self._settings.acs_timeout_seconds
        return EmailClient(
            self._settings.acs_endpoint,
            credential,
            retry_total=0,
            connection_timeout=seconds,
            read_timeout=seconds,
        )


def operation_id(key: str) -> str:
    """The Operation-Id of a mail key: a UUID, the same for ever."""
    return str(uuid.uuid5(OPERATIONS, key))


def message_of(mail: EscalationMail, *, sender: str) -> Json:
    """The request body of the service: sender, recipients, subject, text and HTML part, key header."""
    subject, text, html = render(mail)
    return {
        "senderAddress": sender,
        "recipients": {"to": [{"address": address} for address in mail.recipients]},
        "content": {"subject": subject, "plainText": text, "html": html},
        "headers": {
            KEY_HEADER: mail.key,
            "X-Failure-Agent-Run-Id": str(mail.run_id),
            "X-Failure-Agent-Job-Id": str(mail.job_id or ""),
            "X-Failure-Agent-Workspace": mail.workspace,
        },
        "userEngagementTrackingDisabled": True,
    }


def render(mail: EscalationMail) -> tuple[str, str, str]:
    """Subject, text and HTML. Everything that came from a run or a job is escaped in the HTML part, and redacted."""
    decision = mail.decision
    headline = headline_of(mail)
    context: Mapping[str, object] = {
        "mail": mail,
        "headline": headline,
        "job": one_line(mail.job_name) + (f" ({mail.job_id})" if mail.job_id else ""),
        "category": str(decision.category).replace("_", " "),
        "confidence": f"{decision.confidence:.0%}",
        "failed_at": f"{mail.failed_at:%Y-%m-%d %H:%M} UTC" if mail.failed_at else "",
        "link": mail.page_url if mail.page_url.startswith(("https://", "http://")) else "",
        "suggestions": [suggestion_of(word) for word in (decision.suggested_params or {})]
        or (["Repair the run as it is."] if decision.recommended is DecisionKind.RETRY else []),
        "attempts": [attempt_line(attempt) for attempt in mail.attempts],
        "rules": ", ".join(decision.rules),
        "excerpt": redact(decision.excerpt)[:MAX_MAIL_EXCERPT] or "(there was none)",
    }
    environment = templates()
    text = environment.get_template("escalation.txt.j2").render(context)
    html = environment.get_template("escalation.html.j2").render(context)
    return headline, text, html


@cache
def templates() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(enabled_extensions=("html.j2",), default=False),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )


def headline_of(mail: EscalationMail) -> str:
    """The subject: what is wanted of whom, in one line without control characters."""
    what = "Suggestion" if mail.kind == "suggestion" else "Needs a person"
    if mail.kind == "escalation" and mail.attempts:
        what = f"Failed again after {len(mail.attempts)} {'retry' if len(mail.attempts) == 1 else 'retries'}"
    return one_line(f"[Databricks] {what}: {mail.job_name} – {redact(mail.decision.cause)}")[:200]


def one_line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def attempt_line(attempt: Attempt) -> str:
    changes = f" with {', '.join(attempt.changes)}" if attempt.changes else ""
    how = str(attempt.kind).replace("_", " ")
    outcome = str(attempt.outcome).replace("_", " ")
    return f"{attempt.number}. {how}{changes} at {attempt.claimed_at:%Y-%m-%d %H:%M} UTC: {outcome}"


SUGGESTIONS: Mapping[str, str] = {
    "worker_memory_up": "Give the workers more memory (a node type with more memory per core).",
    "driver_memory_up": "Give the driver more memory.",
    "more_disk": "Give the nodes more local disk (autoscaling local storage, or a node type with more disk).",
    "more_workers": "Use more workers, or a higher autoscale maximum.",
    "other_node_type": "Use another node type: this one is not available or does not fit.",
    "availability_on_demand": "Use on-demand instead of spot instances.",
    "timeout_up": "Allow the run more time.",
    "serverless_memory_up": "Use the high-memory setting of serverless compute.",
}


def suggestion_of(word: str) -> str:
    kind, _, name = word.partition(":")
    if kind == "spark_conf":
        return f"Change the Spark setting {name}."
    if kind == "param":
        return f"Change the job parameter {name}."
    return SUGGESTIONS.get(word, word)


@contextmanager
def translated(what: str, *, is_write: bool) -> Iterator[None]:
    """Vendor errors as this app's own. A write without an answer is doubtful: it may have been accepted."""
    from azure.core.exceptions import HttpResponseError, ServiceRequestError, ServiceResponseError

    try:
        yield
    except ServiceRequestError as error:  # nothing was sent
        raise TransientError(f"{what}: the e-mail service cannot be reached") from error
    except ServiceResponseError as error:  # sent, no answer
        if is_write:
            raise OutcomeUnknownError(f"{what}: no answer from the e-mail service") from error
        raise TransientError(f"{what}: no answer from the e-mail service") from error
    except HttpResponseError as error:
        raise from_status(what, error, is_write=is_write) from error


def from_status(what: str, error: Any, *, is_write: bool) -> AgentError:  # noqa: ANN401 - HttpResponseError, lazily imported
    status = error.status_code or 0
    code = getattr(getattr(error, "error", None), "code", "") or ""
    if status == 429:
        return ThrottledError(f"{what}: too many mails", retry_after_seconds=retry_after(error.response))
    if status in (401, 403):
        return NotAuthorisedError(f"{what}: the e-mail service refused the identity ({status} {code})")
    if status == 503:
        return TransientError(f"{what}: the e-mail service is unavailable")
    if status >= 500 or status == 408:
        kind = OutcomeUnknownError if is_write else TransientError
        return kind(f"{what}: the e-mail service answered {status}")
    return PermanentError(f"{what}: the e-mail service answered {status} {code}; check sender and recipients")


def retry_after(response: Any) -> float | None:  # noqa: ANN401 - a vendor response
    try:
        return float(response.headers["Retry-After"])
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
