"""Stand-in for Azure Communication Services (ACS) Email, for the unmodified azure-communication-email client.

It imitates ``POST /emails:send`` and ``GET /emails/operations/{id}`` of API version 2025-09-01: the checks of the
message, 202 with Operation-Location and Retry-After, errors in the service's form, and, with ``--quota-per-minute``,
429 with Retry-After. Accepted mails are kept as .eml and .html files and listed at ``GET /_standin/mails``.

Left out: the signature of the HMAC key is not verified (only that its headers are there), senders and domains are not
looked up, an accepted mail has always ``Succeeded`` when it is asked for, there are no delivery reports and no
suppression list. Whether the real service drops a repeated Operation-Id is not documented, so this one sends the mail
again unless told ``--drop-repeated-operations``. The codes of 400 answers are the stand-in's own.

    python -m local.acs_email --port 18083 [--effects FILE] [--mail-dir .local/mails]
"""

from __future__ import annotations

import argparse
import base64
import html
import math
import re
import time
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime
from pathlib import Path

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from local.http_standin import EffectLog, Faults, RefusedError, create_app, run_standin

API_VERSION = "2025-09-01"
HMAC_HEADERS = ("x-ms-date", "x-ms-content-sha256")
MAX_RECIPIENTS = 50  # ACS service limits: recipients per message
MAX_REQUEST_BYTES = 10 * 1024 * 1024  # ACS service limits: total size of a send request
QUOTA_WINDOW_SECONDS = 60.0


class _WireModel(BaseModel):
    model_config = ConfigDict(extra="forbid", alias_generator=to_camel)


class Address(_WireModel):
    """One address as it goes over the wire."""

    address: str = Field(pattern=r"^[^@\s,;<>]+@[^@\s,;<>]+$")
    display_name: str | None = None


class Recipients(_WireModel):
    """Who gets the mail."""

    to: list[Address] = Field(default_factory=list)
    cc: list[Address] = Field(default_factory=list)
    bcc: list[Address] = Field(default_factory=list)


class Content(_WireModel):
    """Subject and body."""

    subject: str = Field(min_length=1)
    plain_text: str | None = None
    html: str | None = None


class Attachment(_WireModel):
    """One attached file."""

    name: str
    content_type: str = Field(pattern=r"^[\w.+-]+/[\w.+-]+")
    content_in_base64: str
    content_id: str | None = None


class Message(_WireModel):
    """Body of POST /emails:send."""

    sender_address: str = Field(pattern=r"^[^@\s,;<>]+@[^@\s,;<>]+$")
    recipients: Recipients
    content: Content
    reply_to: list[Address] = Field(default_factory=list)
    headers: dict[str, str] = Field(default_factory=dict)
    attachments: list[Attachment] = Field(default_factory=list)
    user_engagement_tracking_disabled: bool | None = None

    def recipient_addresses(self) -> list[str]:
        """Return the addresses of to, cc and bcc, in this order."""
        everyone = [*self.recipients.to, *self.recipients.cc, *self.recipients.bcc]
        return [recipient.address for recipient in everyone]

    def header(self, name: str) -> str:
        """Return the value of a custom header of the mail, "" if it is not there; the case of names does not count."""
        return next((value for key, value in self.headers.items() if key.lower() == name.lower()), "")


@dataclass(frozen=True)
class KeptMail:
    """An accepted mail as ``GET /_standin/mails`` lists it; ``eml`` and ``html`` are paths."""

    seq: int
    at: str
    operation_id: str
    key: str
    to: list[str]
    subject: str
    eml: str
    html: str
    text: str


class Quota:
    """Requests allowed in any 60 seconds. As at the service, refused requests count too: who hammers stays out."""

    def __init__(self, per_minute: int | None, clock: Callable[[], float]) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._requests: deque[float] = deque()

    def count_request(self) -> None:
        """Count one request; raises RefusedError (429 with Retry-After in whole seconds) if it is over the quota."""
        if self._per_minute is None:
            return
        now = self._clock()
        while self._requests and self._requests[0] <= now - QUOTA_WINDOW_SECONDS:
            self._requests.popleft()
        self._requests.append(now)
        if len(self._requests) > self._per_minute:
            must_expire = self._requests[len(self._requests) - self._per_minute]
            seconds = max(1, math.ceil(must_expire + QUOTA_WINDOW_SECONDS - now))
            message = f"Requests over limit. Please try again after {seconds} seconds."
            raise RefusedError(429, "TooManyRequests", message, headers={"Retry-After": str(seconds)})


class EmailStandin:
    """The state of the service: operations, kept mails and the quota."""

    def __init__(
        self,
        effects: EffectLog,
        mail_dir: Path,
        *,
        quota_per_minute: int | None = None,
        drop_repeated_operations: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._effects = effects
        self._mail_dir = mail_dir
        self._drop_repeated_operations = drop_repeated_operations
        self._quota = Quota(quota_per_minute, clock)
        self._operations: set[str] = set()
        self._mails: list[KeptMail] = []

    async def send(self, request: web.Request) -> web.Response:
        """POST /emails:send."""
        message: Message | None = None
        try:
            _check_authorization(request)
            operation_id = _operation_id(request)
            message = _parse_message(await request.read())
            self._quota.count_request()
            if not (self._drop_repeated_operations and operation_id in self._operations):
                self._keep(message, operation_id)
        except RefusedError as refusal:
            self._record(message, request.headers.get("Operation-Id", ""), accepted=False, status=refusal.status)
            raise
        location = f"{request.scheme}://{request.host}/emails/operations/{operation_id}?api-version={API_VERSION}"
        return web.json_response(
            {"id": operation_id, "status": "Running", "error": None},
            status=202,
            headers={"Operation-Location": location, "Retry-After": "1"},
        )

    async def get_operation(self, request: web.Request) -> web.Response:
        """GET /emails/operations/{id}."""
        operation_id = request.match_info["operation_id"]
        _check_authorization(request)
        if operation_id not in self._operations:
            raise RefusedError(404, "NotFound", f"No send operation has the id {operation_id}.")
        return web.json_response({"id": operation_id, "status": "Succeeded", "error": None})

    async def get_mails(self, _request: web.Request) -> web.Response:
        """GET /_standin/mails: the kept mails, oldest first."""
        return web.json_response([asdict(mail) for mail in self._mails])

    def _keep(self, message: Message, operation_id: str) -> None:
        mail = _as_email(message)
        self._mail_dir.mkdir(parents=True, exist_ok=True)
        seq = _next_number(self._mail_dir)
        stem = self._mail_dir / f"{seq:04}-{_slug(message.content.subject)}"
        eml, page = stem.with_name(f"{stem.name}.eml"), stem.with_name(f"{stem.name}.html")
        eml.write_bytes(mail.as_bytes())
        page.write_text(_html_page(message.content), encoding="utf-8")
        self._mails.append(
            KeptMail(
                seq=seq,
                at=datetime.now(UTC).isoformat(),
                operation_id=operation_id,
                key=message.header("X-Failure-Agent-Key"),
                to=message.recipient_addresses(),
                subject=message.content.subject,
                eml=str(eml),
                html=str(page),
                text=message.content.plain_text or "",
            )
        )
        self._operations.add(operation_id)
        self._record(message, operation_id, accepted=True, status=202)

    def _record(self, message: Message | None, operation_id: str, *, accepted: bool, status: int) -> None:
        """Record one effect per recipient. A mail without key is told from others by its operation id."""

        def header(name: str) -> str:
            return message.header(name) if message else ""

        for recipient in message.recipient_addresses() if message else [""]:
            self._effects.record(
                kind="email",
                workspace=header("X-Failure-Agent-Workspace"),
                run_id=header("X-Failure-Agent-Run-Id"),
                job_id=header("X-Failure-Agent-Job-Id"),
                key=f"{header('X-Failure-Agent-Key') or operation_id}:{recipient}",
                accepted=accepted,
                operation_id=operation_id,
                status=status,
            )


def _check_authorization(request: web.Request) -> None:
    authorization = request.headers.get("Authorization", "")
    signed = authorization.startswith("HMAC-SHA256 ") and all(name in request.headers for name in HMAC_HEADERS)
    if not signed and not authorization.startswith("Bearer "):
        raise RefusedError(401, "Denied", "Denied by the resource provider: no key signature and no bearer token.")


def _operation_id(request: web.Request) -> str:
    """Return the client's Operation-Id or a new one; the service's operation ids are UUIDs."""
    given = request.headers.get("Operation-Id")
    if given is None:
        return str(uuid.uuid4())
    try:
        return str(uuid.UUID(given))
    except ValueError as error:
        raise RefusedError(400, "InvalidOperationId", f"Operation-Id {given!r} is not a UUID.") from error


def _parse_message(body: bytes) -> Message:
    """Return the message; raises RefusedError if the service would not take it."""
    if len(body) > MAX_REQUEST_BYTES:
        raise RefusedError(413, "RequestEntityTooLarge", f"The request has {len(body)} bytes, 10 MB are allowed.")
    try:
        message = Message.model_validate_json(body)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise RefusedError(400, "BadRequest", f"The message is not valid: {faults}") from error
    recipients = message.recipient_addresses()
    if not 1 <= len(recipients) <= MAX_RECIPIENTS:
        text = f"A mail needs 1 to {MAX_RECIPIENTS} recipients, this one has {len(recipients)}."
        raise RefusedError(400, "InvalidRecipients", text)
    if not message.content.plain_text and not message.content.html:
        raise RefusedError(400, "MissingContent", "The content needs plainText or html.")
    return message


def _as_email(message: Message) -> EmailMessage:
    """Return the message as a mail; raises RefusedError for headers or attachments that no mail can have."""
    mail = EmailMessage()
    try:
        mail["From"] = message.sender_address
        mail["Subject"] = message.content.subject
        mail["Date"] = format_datetime(datetime.now(UTC))
        for name, addresses in (
            ("To", message.recipients.to),
            ("Cc", message.recipients.cc),
            ("Bcc", message.recipients.bcc),
            ("Reply-To", message.reply_to),
        ):
            if addresses:
                mail[name] = ", ".join(address.address for address in addresses)
        for name, value in message.headers.items():
            mail[name] = value
        _set_body(mail, message)
    except ValueError as error:  # a line break in a header, a second Subject, base64 that is none
        raise RefusedError(400, "BadRequest", f"The message is not valid: {error}") from error
    return mail


def _set_body(mail: EmailMessage, message: Message) -> None:
    content = message.content
    if content.plain_text:
        mail.set_content(content.plain_text)
        if content.html:
            mail.add_alternative(content.html, subtype="html")
    else:
        mail.set_content(content.html or "", subtype="html")
    for attachment in message.attachments:
        maintype, subtype = attachment.content_type.split(";")[0].split("/", 1)
        data = base64.b64decode(attachment.content_in_base64, validate=True)
        mail.add_attachment(data, maintype=maintype, subtype=subtype, filename=attachment.name)


def _html_page(content: Content) -> str:
    return content.html or f'<!doctype html><meta charset="utf-8"><pre>{html.escape(content.plain_text or "")}</pre>'


def _next_number(mail_dir: Path) -> int:
    """Number mails on from those of an earlier process, so that none is overwritten."""
    return max((int(path.name.split("-", 1)[0]) for path in mail_dir.glob("[0-9]*-*.eml")), default=0) + 1


def _slug(subject: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", subject.lower()).strip("-")[:60] or "mail"


def _no_scenarios(_scenario: dict[str, object]) -> dict[str, object]:
    raise ValueError("The e-mail stand-in has no scenarios; faults are set at POST /_standin/faults.")


def create_email_app(
    effects: EffectLog,
    mail_dir: Path,
    *,
    quota_per_minute: int | None = None,
    drop_repeated_operations: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> web.Application:
    """Return the stand-in as an application. ``clock`` counts seconds and serves the quota only."""
    standin = EmailStandin(
        effects,
        mail_dir,
        quota_per_minute=quota_per_minute,
        drop_repeated_operations=drop_repeated_operations,
        clock=clock,
    )
    app = create_app(effects=effects, faults=Faults(), load_scenario=_no_scenarios)
    app.router.add_post("/emails:send", standin.send)
    app.router.add_get("/emails/operations/{operation_id}", standin.get_operation)
    app.router.add_get("/_standin/mails", standin.get_mails)
    return app


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m local.acs_email", description="Stand-in for ACS Email")
    parser.add_argument("--port", type=int, default=18083, help="0 = any free port")
    parser.add_argument("--effects", type=Path, help="file to which every effect is appended")
    parser.add_argument("--mail-dir", type=Path, default=Path(".local/mails"), help="where mails are kept")
    parser.add_argument("--quota-per-minute", type=int, help="send requests per minute; over it: 429")
    parser.add_argument("--drop-repeated-operations", action="store_true", help="send once per Operation-Id")
    arguments = parser.parse_args()
    app = create_email_app(
        EffectLog("email", arguments.effects),
        arguments.mail_dir,
        quota_per_minute=arguments.quota_per_minute,
        drop_repeated_operations=arguments.drop_repeated_operations,
    )
    run_standin(app, arguments.port)


if __name__ == "__main__":
    main()
