"""The ACS Email stand-in, driven with the official client over a socket."""

from __future__ import annotations

import base64
import email
import email.policy
import json
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from azure.communication.email import EmailClient
from azure.core.credentials import AccessToken, AzureKeyCredential
from azure.core.exceptions import HttpResponseError, ServiceRequestError, ServiceResponseError
from azure.core.rest import HttpRequest, HttpResponse

from local.acs_email import create_email_app
from local.http_standin import EffectLog, running

KEY = AzureKeyCredential(base64.b64encode(b"any key").decode())
OPERATION_ID = "11111111-2222-5333-8444-555555555555"


def a_message(**changes: object) -> dict[str, object]:
    message: dict[str, object] = {
        "senderAddress": "agent@contoso.example",
        "recipients": {"to": [{"address": "ada@contoso.example"}, {"address": "bob@contoso.example"}]},
        "content": {
            "subject": "Job ‘Täglich’ failed",
            "plainText": "Bitte prüfen",
            "html": "<p>Bitte <b>prüfen</b></p>",
        },
        "headers": {
            "X-Failure-Agent-Key": "incident-1",
            "X-Failure-Agent-Run-Id": "77",
            "X-Failure-Agent-Job-Id": "5",
            "X-Failure-Agent-Workspace": "ws-1",
        },
    }
    return {**message, **changes}


@dataclass
class Service:
    """A running stand-in, what it keeps, and a clock for its quota."""

    effects: EffectLog
    mail_dir: Path
    url: str = ""
    now: float = 1000.0
    clients: ExitStack = field(default_factory=ExitStack)

    def client(self) -> EmailClient:
        return self.clients.enter_context(EmailClient(self.url, KEY, retry_total=0))

    def send(self, message: dict[str, object], operation_id: str | None = OPERATION_ID) -> dict[str, object]:
        poller = self.client().begin_send(message, operation_id=operation_id, polling=False)
        return dict(poller.result())

    def mails(self) -> list[dict[str, object]]:
        with urllib.request.urlopen(f"{self.url}/_standin/mails", timeout=5) as answer:
            mails: list[dict[str, object]] = json.loads(answer.read())
        return mails

    def set_fault(self, **fault: object) -> None:
        body = json.dumps({"faults": [{"match": "POST /emails:send", **fault}]}).encode()
        urllib.request.urlopen(f"{self.url}/_standin/faults", data=body, timeout=5).close()

    def effect_keys(self, *, accepted: bool) -> list[object]:
        return [effect["key"] for effect in self.effects.effects if effect["accepted"] is accepted]


ServiceFactory = Callable[..., Service]


@pytest.fixture
def start_service(tmp_path: Path) -> Iterator[ServiceFactory]:
    with ExitStack() as stack:

        def start(*, quota_per_minute: int | None = None, drop_repeated_operations: bool = False) -> Service:
            service = Service(EffectLog("email", tmp_path / "effects.jsonl"), tmp_path / "mails")
            stack.enter_context(service.clients)
            service.url = stack.enter_context(
                running(
                    lambda: create_email_app(
                        service.effects,
                        service.mail_dir,
                        quota_per_minute=quota_per_minute,
                        drop_repeated_operations=drop_repeated_operations,
                        clock=lambda: service.now,
                    )
                )
            )
            return service

        yield start


@pytest.fixture
def service(start_service: ServiceFactory) -> Service:
    return start_service()


def test_the_first_answer_says_running_and_where_to_ask(service: Service) -> None:
    answers: list[tuple[int, str, str]] = []

    service.client().begin_send(
        a_message(),
        operation_id=OPERATION_ID,
        polling=False,
        raw_response_hook=lambda answer: answers.append(
            (
                answer.http_response.status_code,
                answer.http_response.headers["Operation-Location"],
                answer.http_response.headers["Retry-After"],
            )
        ),
    )

    location = f"{service.url}/emails/operations/{OPERATION_ID}?api-version=2025-09-01"
    assert answers == [(202, location, "1")]


def test_polling_ends_with_success(service: Service) -> None:
    result = service.client().begin_send(a_message(), operation_id=OPERATION_ID).result()

    assert (result["id"], result["status"]) == (OPERATION_ID, "Succeeded")


def test_a_mail_without_operation_id_gets_one(service: Service) -> None:
    answer = service.send(a_message(), operation_id=None)

    assert str(uuid.UUID(str(answer["id"]))) == service.mails()[0]["operation_id"]


def test_a_bearer_token_is_taken_as_well(service: Service) -> None:
    class Credential:
        def get_token(self, *_scopes: str, **_options: object) -> AccessToken:
            return AccessToken("token", 4_000_000_000)

    with EmailClient(service.url, Credential(), retry_total=0) as client:
        client.begin_send(a_message(), polling=False, enforce_https=False)

    assert len(service.mails()) == 1


def test_an_accepted_mail_is_kept_as_files_and_listed(service: Service) -> None:
    service.send(a_message())

    (listed,) = service.mails()
    assert {name: listed[name] for name in ("seq", "operation_id", "key", "to", "subject", "text")} == {
        "seq": 1,
        "operation_id": OPERATION_ID,
        "key": "incident-1",
        "to": ["ada@contoso.example", "bob@contoso.example"],
        "subject": "Job ‘Täglich’ failed",
        "text": "Bitte prüfen",
    }
    eml, page = Path(str(listed["eml"])), Path(str(listed["html"]))
    assert (eml.parent, eml.name) == (service.mail_dir, "0001-job-t-glich-failed.eml")
    assert page.read_text(encoding="utf-8") == "<p>Bitte <b>prüfen</b></p>"
    mail = email.message_from_bytes(eml.read_bytes(), policy=email.policy.default)
    text, html = mail.get_body(("plain",)), mail.get_body(("html",))
    assert text is not None
    assert html is not None
    assert (mail["Subject"], mail["From"], mail["X-Failure-Agent-Key"]) == (
        "Job ‘Täglich’ failed",
        "agent@contoso.example",
        "incident-1",
    )
    assert mail["To"] == "ada@contoso.example, bob@contoso.example"
    assert (text.get_content().strip(), html.get_content().strip()) == ("Bitte prüfen", "<p>Bitte <b>prüfen</b></p>")


def test_a_text_only_mail_gets_an_escaped_page_and_attachments_stay(service: Service) -> None:
    attachment = {"name": "log.txt", "contentType": "text/plain", "contentInBase64": base64.b64encode(b"log").decode()}

    service.send(a_message(content={"subject": "?!", "plainText": "a < b"}, attachments=[attachment]))

    (listed,) = service.mails()
    assert "<pre>a &lt; b</pre>" in Path(str(listed["html"])).read_text(encoding="utf-8")
    mail = email.message_from_bytes(Path(str(listed["eml"])).read_bytes(), policy=email.policy.default)
    assert [part.get_filename() for part in mail.iter_attachments()] == ["log.txt"]


def test_every_recipient_is_an_effect(service: Service) -> None:
    service.send(a_message())

    assert service.effect_keys(accepted=True) == ["incident-1:ada@contoso.example", "incident-1:bob@contoso.example"]
    effect = service.effects.effects[0]
    assert (effect["kind"], effect["workspace"], effect["run_id"], effect["job_id"]) == ("email", "ws-1", "77", "5")


def test_mails_without_key_are_told_apart_by_operation(service: Service) -> None:
    service.send(a_message(headers={}, recipients={"to": [{"address": "ada@contoso.example"}]}))

    assert service.effect_keys(accepted=True) == [f"{OPERATION_ID}:ada@contoso.example"]


@pytest.mark.parametrize(("drop", "mails"), [(False, 2), (True, 1)])
def test_a_repeated_operation_is_sent_again_unless_told_to_drop_it(
    start_service: ServiceFactory, drop: bool, mails: int
) -> None:
    service = start_service(drop_repeated_operations=drop)

    answers = [service.send(a_message())["id"] for _ in range(2)]

    assert answers == [OPERATION_ID, OPERATION_ID]
    assert len(service.mails()) == mails
    assert len(service.effect_keys(accepted=True)) == 2 * mails


def test_a_restarted_service_overwrites_no_mail(start_service: ServiceFactory) -> None:
    start_service().send(a_message())
    start_service().send(a_message())

    assert len(list(start_service().mail_dir.glob("*.eml"))) == 2


FIFTY_ONE = {"to": [{"address": f"user{number}@contoso.example"} for number in range(51)]}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"senderAddress": "nobody"}, "BadRequest"),
        ({"senderAddress": None}, "BadRequest"),
        ({"recipients": {}}, "InvalidRecipients"),
        ({"recipients": {"to": []}}, "InvalidRecipients"),
        ({"recipients": {"to": ["ada@contoso.example"]}}, "BadRequest"),
        ({"recipients": {"to": [{"address": "ada@x, bob@x"}]}}, "BadRequest"),
        ({"recipients": FIFTY_ONE}, "InvalidRecipients"),
        ({"content": {"plainText": "text"}}, "BadRequest"),
        ({"content": {"subject": "", "plainText": "text"}}, "BadRequest"),
        ({"content": {"subject": "s"}}, "MissingContent"),
        ({"content": {"subject": "two\nlines", "plainText": "text"}}, "BadRequest"),
        ({"headers": {"X-Number": 1}}, "BadRequest"),
        ({"headers": {"Subject": "a second one"}}, "BadRequest"),
        ({"attachments": [{"name": "a", "contentType": "text/plain", "contentInBase64": "%"}]}, "BadRequest"),
        ({"from": "misspelt field"}, "BadRequest"),
    ],
)
def test_a_message_that_the_service_would_not_take_is_refused(
    service: Service, change: dict[str, object], code: str
) -> None:
    with pytest.raises(HttpResponseError) as refusal:
        service.send(a_message(**change))

    assert refusal.value.error is not None
    assert (refusal.value.status_code, refusal.value.error.code) == (400, code)
    assert service.mails() == []
    assert service.effect_keys(accepted=True) == []
    assert service.effect_keys(accepted=False)


def test_an_operation_id_must_be_a_uuid(service: Service) -> None:
    with pytest.raises(HttpResponseError) as refusal:
        service.send(a_message(), operation_id="incident-1")

    assert refusal.value.error is not None
    assert refusal.value.error.code == "InvalidOperationId"


def test_a_request_over_10_mb_is_refused(service: Service) -> None:
    with pytest.raises(HttpResponseError) as refusal:
        service.send(a_message(content={"subject": "s", "plainText": "x" * 11_000_000}))

    assert refusal.value.status_code == 413


@pytest.mark.parametrize("headers", [{}, {"Authorization": "HMAC-SHA256 Signature=x"}, {"Authorization": "Basic x"}])
def test_a_request_without_its_signature_headers_is_refused(service: Service, headers: dict[str, str]) -> None:
    body = json.dumps(a_message()).encode()
    request = urllib.request.Request(f"{service.url}/emails:send", data=body, headers=headers)

    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(request, timeout=5)

    with refusal.value as answer:
        assert (answer.code, json.loads(answer.read())["error"]["code"]) == (401, "Denied")
    assert service.mails() == []


def test_an_unknown_operation_is_not_found(service: Service) -> None:
    answer = service.client().send_request(HttpRequest("GET", f"{service.url}/emails/operations/{OPERATION_ID}"))

    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "NotFound")


def retry_after(error: HttpResponseError) -> str:
    assert isinstance(error.response, HttpResponse)
    return error.response.headers["Retry-After"]


def test_over_the_quota_429_says_when_to_come_back(start_service: ServiceFactory) -> None:
    service = start_service(quota_per_minute=2)
    service.send(a_message())
    service.now += 10
    service.send(a_message())

    with pytest.raises(HttpResponseError) as refusal:
        service.send(a_message())

    assert (refusal.value.status_code, retry_after(refusal.value)) == (429, "60")
    assert len(service.mails()) == 2
    assert len(service.effect_keys(accepted=False)) == 2  # one per recipient

    service.now += 60
    service.send(a_message())
    assert len(service.mails()) == 3


def test_a_429_fault_reaches_the_client_with_retry_after(service: Service) -> None:
    service.set_fault(kind="429", retry_after=7, times=1)

    with pytest.raises(HttpResponseError) as refusal:
        service.send(a_message())

    assert (refusal.value.status_code, retry_after(refusal.value)) == (429, "7")
    assert service.send(a_message())["status"] == "Running"


@pytest.mark.parametrize(("kind", "mails"), [("drop_before", 0), ("drop_after", 1)])
def test_a_dropped_connection_is_an_error_of_the_client(service: Service, kind: str, mails: int) -> None:
    service.set_fault(kind=kind)

    with pytest.raises((ServiceRequestError, ServiceResponseError)):
        service.send(a_message())

    assert len(service.mails()) == mails
