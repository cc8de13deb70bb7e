"""EmailNotifier: mail through Azure Communication Services, as text and HTML, each with a key of its own.

The client's own retries are off: the service answers 429 with the time to wait, which belongs to the queue and not to a
sleeping function (an Azure-managed domain may send 5 mails a minute and 10 an hour; failed tries count too).
"""

import re
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared import deadline, telemetry
from shared.domain import Attempt, ChangeKind, Decision, DecisionKind, DigestMail, EscalationMail, Json, Mode
from shared.errors import (
    AgentError,
    ConfigurationError,
    NotAuthorisedError,
    OutcomeUnknownError,
    PermanentError,
    ThrottledError,
    TransientError,
    retry_after_of,
)
from shared.setting_values import mail_clash
from shared.settings import Settings
from shared.triage.redaction import redact

if TYPE_CHECKING:
    from azure.communication.email import EmailClient
    from azure.core.credentials import TokenCredential
    from azure.core.exceptions import AzureError
    from jinja2 import Environment

logger = telemetry.logger(__name__)

TEMPLATES = Path(__file__).parent / "templates"
KEY_HEADER = "X-Failure-Agent-Key"
OPERATIONS = uuid.UUID("5f0b8f8e-6f1d-4c56-9c39-0a4d0f3f1b7e")
"""Namespace of the operation ids: the same mail key gives the same id, today and after a crash."""

API_VERSION = "2025-09-01"
MAX_MAIL_EXCERPT = 8_000
MAX_SUBJECT = 200
WEB_ADDRESS = re.compile(r"https?://[^\s<>\"'`\\]+")


class EmailNotifier:
    """Sends mail. Raises this app's own errors only.

    `credential` is the Entra credential where there is no access key; by default the app's managed identity.
    """

    def __init__(self, settings: Settings | None = None, *, credential: "TokenCredential | None" = None) -> None:
        if settings is None:
            from shared.bootstrap import current_settings

            settings = current_settings()
        self._settings = settings
        self._credential = credential
        self._lock = threading.Lock()
        self._client_or_none: EmailClient | None = None

    def send(self, mail: EscalationMail | DigestMail) -> None:
        """Hand a mail over for delivery; it is not waited for. Nothing is sent where there is nobody to tell."""
        about = f"run {mail.run_id}" if isinstance(mail, EscalationMail) else f"{mail.total} runs"
        if not mail.recipients:
            raise PermanentError(f"nobody to mail about {about}: set ESCALATION_EMAILS or OWNERS")
        message = message_of(mail, sender=self._settings.sender_email)
        with translated(f"mail about {about}", is_write=True):
            self._client().begin_send(message, operation_id=operation_id(mail.key), polling=False)
        telemetry.mail_sent(mail.kind if isinstance(mail, EscalationMail) else "digest")

    def was_accepted(self, key: str) -> bool:
        """Ask the service whether it knows the operation of an earlier send."""
        return self._is_known(operation_id(key))

    def check(self) -> None:
        """Raise where the service cannot be reached, refuses the identity, or settings are missing. Sends nothing."""
        self._settings.require(("acs_endpoint",), ("sender_email",))
        self._is_known(str(uuid.uuid4()))

    def test_connection(self) -> bool:
        """Whether mail could be sent; why not is logged. Sends nothing."""
        try:
            self.check()
        except AgentError as error:
            logger.warning("e-mail connection test failed", extra={"reason": redact(str(error))})
            return False
        return True

    def _is_known(self, operation: str) -> bool:
        """Whether the service knows a send operation: 200, or 404 where it does not."""
        from azure.core.rest import HttpRequest

        request = HttpRequest("GET", f"/emails/operations/{operation}", params={"api-version": API_VERSION})
        with translated("e-mail operation", is_write=False):
            response = self._client().send_request(request)
            if response.status_code == 404:
                return False
            response.raise_for_status()
            return True

    def _client(self) -> "EmailClient":
        with self._lock:
            if self._client_or_none is None:
                self._client_or_none = self._new_client()
            return self._client_or_none

    def _new_client(self) -> "EmailClient":
        from azure.communication.email import EmailClient
        from azure.core.credentials import AzureKeyCredential

        self._settings.require(("acs_endpoint",), ("sender_email",))
        key, endpoint = self._settings.acs_access_key, self._settings.acs_endpoint
        credential: Any
        if key:
            credential = AzureKeyCredential(key)
        else:
            check_is_encrypted(endpoint)
            credential = self._credential or self._identity()
        seconds = self._settings.acs_timeout_seconds
        return EmailClient(
            endpoint,
            credential,
            retry_total=0,
            connection_timeout=seconds,
            read_timeout=seconds,
            raw_request_hook=deadline.bound_azure_requests(seconds),
        )

    def _identity(self) -> "TokenCredential":
        from azure.identity import DefaultAzureCredential

        return DefaultAzureCredential(managed_identity_client_id=self._settings.azure_client_id or None)


def check_is_encrypted(endpoint: str) -> None:
    """Raise ConfigurationError for plain http, over which no identity can sign in."""
    if clash := mail_clash(endpoint, access_key=""):
        raise ConfigurationError(clash.text, names=clash.names)


def operation_id(key: str) -> str:
    """The Operation-Id of a mail key: a UUID, the same for ever."""
    return str(uuid.uuid5(OPERATIONS, key))


def message_of(mail: EscalationMail | DigestMail, *, sender: str) -> Json:
    """The request body of the service: sender, recipients, subject, text and HTML part, key header."""
    if isinstance(mail, DigestMail):
        subject, text, html = render_digest(mail)
        run_id, job_id = "", ""
    else:
        subject, text, html = render(mail)
        run_id, job_id = str(mail.run_id), str(mail.job_id or "")
    return {
        "senderAddress": sender,
        "recipients": {"to": [{"address": address} for address in dict.fromkeys(mail.recipients)]},
        "content": {"subject": subject, "plainText": text, "html": html},
        "headers": {
            KEY_HEADER: mail.key,
            "X-Failure-Agent-Run-Id": run_id,
            "X-Failure-Agent-Job-Id": job_id,
            "X-Failure-Agent-Workspace": mail.workspace,
        },
        "userEngagementTrackingDisabled": True,
    }


def render(mail: EscalationMail) -> tuple[str, str, str]:
    """Subject, text and HTML. What came from a run or a job is redacted, made printable, and escaped in the HTML."""
    decision = mail.decision
    headline = headline_of(mail)
    needed_mode = Mode.FULL if decision.decision is DecisionKind.RETRY_WITH_PARAMS else Mode.RETRY
    context: Mapping[str, object] = {
        "headline": headline,
        "reason": one_line(decision.reason),
        "job": one_line(mail.job_name) + (f" ({mail.job_id})" if mail.job_id else ""),
        "run_id": mail.run_id,
        "workspace": one_line(mail.workspace),
        "cause": one_line(decision.cause),
        "category": str(decision.category).replace("_", " "),
        "confidence": f"{decision.confidence:.0%}",
        "failed_at": f"{mail.failed_at:%Y-%m-%d %H:%M} UTC" if mail.failed_at else "",
        "link": link_of(mail.page_url),
        "suggestions": suggestions_of(decision),
        "not_carried_out_why": one_line(decision.not_carried_out_why),
        "needed_mode": str(needed_mode) if mail.kind == "suggestion" else "",
        "attempts": [attempt_line(attempt) for attempt in mail.attempts],
        "rules": ", ".join(decision.rules),
        "fingerprint": decision.fingerprint,
        "excerpt": excerpt_of(decision),
    }
    return headline, *both_parts("escalation", context)


def render_digest(mail: DigestMail) -> tuple[str, str, str]:
    """Subject, text and HTML of a digest: one section per cause, the counts adding up to the total."""
    causes = "one cause" if len(mail.groups) == 1 else f"{len(mail.groups)} causes"
    headline = one_line(f"[Databricks] {mail.total} failed runs, {causes}, in workspace {mail.workspace}")[:MAX_SUBJECT]
    groups = [
        {
            "count": group.count,
            "cause": one_line(group.cause),
            "reason": one_line(group.reason),
            "category": group.category.replace("_", " "),
            "fingerprint": group.fingerprint,
            "jobs": one_line(", ".join(group.jobs)),
            "examples": [
                {"run_id": i.watched_run_id, "job": one_line(i.job_name), "link": link_of(i.page_url)}
                for i in group.examples
            ],
        }
        for group in mail.groups
    ]
    context = {"headline": headline, "total": mail.total, "recovered": mail.recovered, "groups": groups}
    return headline, *both_parts("digest", context)


def both_parts(template: str, context: Mapping[str, object]) -> tuple[str, str]:
    environment = templates()
    return (
        environment.get_template(f"{template}.txt.j2").render(context),
        environment.get_template(f"{template}.html.j2").render(context),
    )


def link_of(page_url: str) -> str:
    """The address of the run's page, or nothing where it is not a web address."""
    return page_url if WEB_ADDRESS.fullmatch(page_url) else ""


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
    return one_line(f"[Databricks] {what}: {mail.job_name} – {mail.decision.cause}")[:MAX_SUBJECT]


def one_line(text: str) -> str:
    """The text without secrets, line breaks and control characters: fit for a subject or one row of a table."""
    return " ".join(printable(redact(text)).split())


def excerpt_of(decision: Decision) -> str:
    """The error as it is shown: without secrets and control characters, cut at the end of a line."""
    lines = printable(redact(decision.excerpt)).strip()
    if len(lines) > MAX_MAIL_EXCERPT:
        kept = lines[:MAX_MAIL_EXCERPT]
        lines = f"{kept.rpartition('\n')[0] or kept}\n…"
    return lines or "(there was none)"


def printable(text: str) -> str:
    """Spaces for control characters, characters that reorder text, and lone surrogates, which no mail can carry."""
    lines = ("".join(c if c.isprintable() or c == "\t" else " " for c in line) for line in text.splitlines())
    return "\n".join(lines)


def attempt_line(attempt: Attempt) -> str:
    changes = f" with {one_line(', '.join(attempt.changes))}" if attempt.changes else ""
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


def suggestions_of(decision: Decision) -> list[str]:
    """What would probably help, one sentence each."""
    changes = decision.suggested_params or {}
    if not changes and decision.recommended is DecisionKind.RETRY:
        return ["Repair the run as it is."]
    return [suggestion_of(word, value) for word, value in changes.items()]


def suggestion_of(word: str, value: str) -> str:
    """A change (`Change.word` and its value, "" where it is left open) as a sentence."""
    kind, _, name = one_line(word).partition(":")
    to_value = f" to {one_line(value)}" if value else ""
    if kind == ChangeKind.SPARK_CONF:
        return f"Change the Spark setting {name}{to_value}."
    if kind == ChangeKind.PARAM:
        return f"Change the job parameter {name}{to_value}."
    return SUGGESTIONS.get(kind, kind)


@contextmanager
def translated(what: str, *, is_write: bool) -> Iterator[None]:
    """Vendor errors as this app's own."""
    from azure.core.exceptions import AzureError

    try:
        yield
    except AzureError as error:
        raise from_vendor(what, error, is_write=is_write) from error


def from_vendor(what: str, error: "AzureError", *, is_write: bool) -> AgentError:
    """This app's error for one of azure-core's. A write without a clear answer may have been accepted all the same."""
    from azure.core.exceptions import (
        ClientAuthenticationError,
        DecodeError,
        HttpResponseError,
        ServiceRequestError,
        ServiceResponseError,
    )

    unanswered = OutcomeUnknownError if is_write else TransientError
    match error:
        case ClientAuthenticationError():
            return NotAuthorisedError(f"{what}: the e-mail service refused the identity, or there is none")
        case ServiceRequestError():  # nothing was sent
            return TransientError(f"{what}: the e-mail service cannot be reached")
        case ServiceResponseError() | DecodeError():  # sent; no answer, or half of one
            return unanswered(f"{what}: no answer from the e-mail service")
        case HttpResponseError(status_code=429):
            return ThrottledError(f"{what}: too many mails", retry_after_seconds=retry_after_of(error.response))
        case HttpResponseError(status_code=401 | 403 as status):
            return NotAuthorisedError(f"{what}: the e-mail service refused the identity ({status})")
        case HttpResponseError(status_code=503):
            return TransientError(f"{what}: the e-mail service is unavailable")
        case HttpResponseError(status_code=int(status)) if 400 <= status < 500 and status != 408:
            code = error.error.code if error.error else "no code"
            return PermanentError(f"{what}: the e-mail service answered {status} ({code}); check sender and recipients")
        case HttpResponseError(status_code=status):
            return unanswered(f"{what}: the e-mail service answered {status}")
        case _:
            return PermanentError(f"{what}: {type(error).__name__}")
