"""EmailNotifier against the ACS Email stand-in over a socket, and the mails that it writes."""

import base64
import email
import email.policy
import json
import socket
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from azure.core import exceptions as vendor
from azure.core.credentials import AccessToken
from hypothesis import given
from hypothesis import strategies as st

from local.acs_email import create_email_app
from local.http_standin import EffectLog, running
from shared.domain import (
    AttemptKind,
    AttemptOutcome,
    Category,
    ChangeKind,
    DecisionKind,
    EscalationMail,
    Mode,
)
from shared.email_notifier import (
    MAX_MAIL_EXCERPT,
    MAX_SUBJECT,
    SUGGESTIONS,
    EmailNotifier,
    from_vendor,
    message_of,
    operation_id,
    render,
)
from shared.errors import (
    AgentError,
    ConfigurationError,
    NotAuthorisedError,
    OutcomeUnknownError,
    PermanentError,
    ThrottledError,
    TransientError,
)
from shared.settings import Settings
from tests.builders import NOW, build_attempt, build_decision, build_escalation_mail
from tests.shared.recorded_telemetry import recorded

ACCESS_KEY = base64.b64encode(b"any key").decode()
SEND = "POST /emails:send"
OPERATION = "GET /emails/operations"
MAIL = build_escalation_mail()
OPERATION_OF_MAIL = "63ee1a97-365f-58b0-918d-10c70ca8fac1"


def email_settings(url: str, **changes: Any) -> Settings:
    defaults = {"acs_endpoint": url, "acs_access_key": ACCESS_KEY, "sender_email": "agent@contoso.example"}
    return Settings(**{**defaults, **changes})


@dataclass
class Service:
    """A running stand-in and what it keeps."""

    url: str
    effects: EffectLog

    def notifier(self, **settings: Any) -> EmailNotifier:
        return EmailNotifier(email_settings(self.url, **settings))

    def mails(self) -> list[dict[str, Any]]:
        mails: list[dict[str, Any]] = self._get("/_standin/mails")
        return mails

    def mail_file(self) -> email.message.EmailMessage:
        (listed,) = self.mails()
        mail = email.message_from_bytes(Path(listed["eml"]).read_bytes(), policy=email.policy.default)
        assert isinstance(mail, email.message.EmailMessage)
        return mail

    def set_fault(self, match: str = SEND, **fault: object) -> None:
        body = json.dumps({"faults": [{"match": match, **fault}]}).encode()
        urllib.request.urlopen(f"{self.url}/_standin/faults", data=body, timeout=5).close()

    def requests_met_by_fault(self) -> int:
        (fault,) = self._get("/_standin/faults")["faults"]
        applied: int = fault["applied"]
        return applied

    def _get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=5) as answer:
            return json.loads(answer.read())


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    effects = EffectLog("email", None)
    with running(lambda: create_email_app(effects, tmp_path)) as url:
        yield Service(url, effects)


def free_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port: int = unused.getsockname()[1]
        return port


# ── sending ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_mails_that_were_handed_over_are_counted(service: Service) -> None:
    with recorded() as told:
        for kind in ("escalation", "suggestion", "suggestion"):
            service.notifier().send(build_escalation_mail(kind=kind, key=f"{kind}-{uuid.uuid4()}"))
        service.set_fault(kind="503")
        with pytest.raises(TransientError):
            service.notifier().send(build_escalation_mail())

    sent = told.metrics()["remediation.mail.sent"]
    assert {labels["kind"]: count for labels, count in sent} == {"escalation": 1, "suggestion": 2}


def test_a_mail_is_handed_over_once_with_its_operation_id_and_its_key(service: Service) -> None:
    service.notifier().send(MAIL)

    (mail,) = service.mails()
    assert (mail["operation_id"], mail["key"]) == (operation_id(MAIL.key), "ws1:1001:original:escalation")
    assert [(e["kind"], e["workspace"], e["run_id"], e["job_id"], e["accepted"]) for e in service.effects.effects] == [
        ("email", "ws1", "1001", "77", True)
    ]


def test_the_operation_id_of_a_key_never_changes() -> None:
    assert operation_id("ws1:1001:original:escalation") == OPERATION_OF_MAIL
    assert operation_id("ws1:1001:original:suggestion") != OPERATION_OF_MAIL


def test_several_people_get_one_mail_and_nobody_gets_it_twice(service: Service) -> None:
    people = ("ada@contoso.example", "bob@contoso.example", "ada@contoso.example")

    service.notifier().send(replace(MAIL, recipients=people))

    (mail,) = service.mails()
    assert mail["to"] == ["ada@contoso.example", "bob@contoso.example"]


def test_other_alphabets_arrive_as_they_were_written(service: Service) -> None:
    decision = replace(MAIL.decision, cause="Tabelle ‚Aufträge‘ fehlt 🙁", excerpt="表が見つかりません\nNe vidu ĝin")

    service.notifier().send(replace(MAIL, job_name="Täglich – 日次", decision=decision))

    (mail,) = service.mails()
    assert mail["subject"] == "[Databricks] Needs a person: Täglich – 日次 – Tabelle ‚Aufträge‘ fehlt 🙁"
    assert "\n表が見つかりません\nNe vidu ĝin\n" in mail["text"]
    assert "表が見つかりません\nNe vidu ĝin" in Path(mail["html"]).read_text(encoding="utf-8")


def test_control_characters_and_lone_surrogates_do_not_keep_a_mail_from_being_sent(service: Service) -> None:
    broken = "a\x00b\x1b[31mc\ud800d\u202ee\u2028f"

    service.notifier().send(replace(MAIL, job_name=broken, decision=replace(MAIL.decision, excerpt=broken)))

    (mail,) = service.mails()
    assert {c for c in mail["subject"] + mail["text"] if not c.isprintable()} == {"\n"}


def test_nobody_to_mail_is_an_error_that_says_what_to_set(service: Service) -> None:
    with pytest.raises(PermanentError, match="run 1001: set ESCALATION_EMAILS or OWNERS"):
        service.notifier().send(replace(MAIL, recipients=()))

    assert service.effects.effects == []


def test_a_sender_that_the_service_does_not_take_is_a_permanent_error(service: Service) -> None:
    service.set_fault(kind="error", status=400, body={"error": {"code": "DomainNotLinked"}})

    with pytest.raises(PermanentError, match=r"answered 400 \(DomainNotLinked\); check sender"):
        service.notifier().send(MAIL)

    assert service.mails() == []


# ── trouble ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_over_the_quota_the_service_says_when_and_the_client_does_not_try_again(service: Service) -> None:
    service.set_fault(kind="429", retry_after=7)

    with pytest.raises(ThrottledError) as refusal:
        service.notifier().send(MAIL)

    assert refusal.value.retry_after_seconds == 7
    assert service.requests_met_by_fault() == 1


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (401, NotAuthorisedError),
        (403, NotAuthorisedError),
        (404, PermanentError),
        (408, OutcomeUnknownError),
        (500, OutcomeUnknownError),
        (502, OutcomeUnknownError),
        (503, TransientError),
        (504, OutcomeUnknownError),
    ],
)
def test_a_refused_mail_is_one_request_and_one_error(service: Service, status: int, expected: type[AgentError]) -> None:
    service.set_fault(kind="error", status=status)

    with pytest.raises(AgentError) as refusal:
        service.notifier().send(MAIL)

    assert type(refusal.value) is expected
    assert service.requests_met_by_fault() == 1


def test_a_service_that_is_not_there_is_a_transient_error() -> None:
    with pytest.raises(AgentError, match="run 1001: the e-mail service cannot be reached") as refusal:
        EmailNotifier(email_settings(f"http://127.0.0.1:{free_port()}")).send(MAIL)

    assert type(refusal.value) is TransientError


@pytest.mark.parametrize(
    ("fault", "mails"), [({"kind": "drop_before"}, 0), ({"kind": "drop_after"}, 1), ({"kind": "slow", "seconds": 5}, 1)]
)
def test_a_mail_without_an_answer_is_doubtful_and_not_sent_again(
    service: Service, fault: dict[str, Any], mails: int
) -> None:
    service.set_fault(**fault)

    with pytest.raises(OutcomeUnknownError, match="no answer"):
        service.notifier(acs_timeout_seconds=1).send(MAIL)

    assert service.requests_met_by_fault() == 1
    assert len(service.mails()) == mails


def test_the_service_remembers_whether_a_doubtful_mail_was_accepted(service: Service) -> None:
    notifier = service.notifier()
    service.set_fault(kind="drop_after", times=1)

    before = notifier.was_accepted(MAIL.key)
    with pytest.raises(OutcomeUnknownError):
        notifier.send(MAIL)

    assert (before, notifier.was_accepted(MAIL.key), notifier.was_accepted("another key")) == (False, True, False)


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ({"kind": "429", "retry_after": 60}, ThrottledError),
        ({"kind": "error", "status": 401}, NotAuthorisedError),
        ({"kind": "500"}, TransientError),
        ({"kind": "503"}, TransientError),
        ({"kind": "drop_before"}, TransientError),
    ],
)
def test_asking_about_a_mail_is_never_a_doubtful_write(
    service: Service, fault: dict[str, Any], expected: type[AgentError]
) -> None:
    service.set_fault(OPERATION, **fault)

    with pytest.raises(AgentError) as refusal:
        service.notifier().was_accepted(MAIL.key)

    assert type(refusal.value) is expected
    assert service.requests_met_by_fault() == 1


# ── connection test and settings ────────────────────────────────────────────────────────────────────────────────────


def test_the_connection_test_sends_nothing(service: Service) -> None:
    assert service.notifier().test_connection()
    assert service.notifier(acs_endpoint=f"{service.url}/").test_connection()
    assert service.effects.effects == []


def test_the_connection_test_says_why_not(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    service.set_fault(OPERATION, kind="error", status=403)

    assert not service.notifier().test_connection()

    assert [record.__dict__["reason"] for record in caplog.records if record.name == "shared.email_notifier"] == [
        "e-mail operation: the e-mail service refused the identity (403)"
    ]


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"acs_endpoint": "", "sender_email": ""}, ("ACS_ENDPOINT", "SENDER_EMAIL")),
        ({"sender_email": ""}, ("SENDER_EMAIL",)),
        ({"acs_access_key": ""}, ("ACS_ENDPOINT", "ACS_ACCESS_KEY")),
    ],
)
def test_settings_with_which_nothing_can_be_sent_are_named(settings: dict[str, str], names: tuple[str, ...]) -> None:
    notifier = EmailNotifier(email_settings("http://127.0.0.1:1", **settings))

    for attempt in (notifier.check, lambda: notifier.send(MAIL)):
        with pytest.raises(ConfigurationError) as refusal:
            attempt()
        assert refusal.value.names == names
    assert not notifier.test_connection()


def test_without_a_token_the_identity_counts_as_refused() -> None:
    class NoIdentity:
        def get_token(self, *_scopes: str, **_options: Any) -> AccessToken:
            raise vendor.ClientAuthenticationError("no managed identity here")

    notifier = EmailNotifier(email_settings("https://127.0.0.1:1", acs_access_key=""), credential=NoIdentity())

    with pytest.raises(NotAuthorisedError):
        notifier.send(MAIL)


# ── translation of azure-core's errors ──────────────────────────────────────────────────────────────────────────────


class Answer:
    """As much of a response as azure-core's errors look at."""

    reason = "because"

    def __init__(self, status_code: int, retry_after: str | None = None) -> None:
        self.status_code = status_code
        self.headers = {} if retry_after is None else {"Retry-After": retry_after}

    def text(self) -> str:
        return '{"error": {"code": "ItsCode", "message": "about ada@contoso.example"}}'


def answered(status: int, retry_after: str | None = None) -> vendor.HttpResponseError:
    answer: Any = Answer(status, retry_after)
    return vendor.HttpResponseError(response=answer)


@pytest.mark.parametrize(
    ("error", "on_write", "on_read"),
    [
        (answered(429), ThrottledError, ThrottledError),
        (answered(401), NotAuthorisedError, NotAuthorisedError),
        (answered(403), NotAuthorisedError, NotAuthorisedError),
        (answered(503), TransientError, TransientError),
        (answered(408), OutcomeUnknownError, TransientError),
        (answered(500), OutcomeUnknownError, TransientError),
        (answered(502), OutcomeUnknownError, TransientError),
        (answered(504), OutcomeUnknownError, TransientError),
        (answered(200), OutcomeUnknownError, TransientError),
        (answered(400), PermanentError, PermanentError),
        (answered(404), PermanentError, PermanentError),
        (answered(413), PermanentError, PermanentError),
        (vendor.HttpResponseError("no response at all"), OutcomeUnknownError, TransientError),
        (vendor.ClientAuthenticationError("no token"), NotAuthorisedError, NotAuthorisedError),
        (vendor.ServiceRequestError("refused"), TransientError, TransientError),
        (vendor.ServiceRequestTimeoutError("connect"), TransientError, TransientError),
        (vendor.ServiceResponseError("reset"), OutcomeUnknownError, TransientError),
        (vendor.ServiceResponseTimeoutError("read"), OutcomeUnknownError, TransientError),
        (vendor.IncompleteReadError("half an answer"), OutcomeUnknownError, TransientError),
        (vendor.DecodeError("not JSON"), OutcomeUnknownError, TransientError),
        (vendor.ResourceNotFoundError(response=answered(404).response), PermanentError, PermanentError),
        (vendor.AzureError("unheard of"), PermanentError, PermanentError),
    ],
)
def test_every_vendor_error_has_one_translation(
    error: vendor.AzureError, on_write: type[AgentError], on_read: type[AgentError]
) -> None:
    write, read = from_vendor("mail", error, is_write=True), from_vendor("mail", error, is_write=False)

    assert (type(write), type(read)) == (on_write, on_read)
    assert str(write).startswith("mail: ")
    assert "ada@" not in str(write)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [(None, None), ("60", 60.0), ("0.5", 0.5), ("0", 0.0)]
    + [(odd, None) for odd in ("-1", "nan", "inf", "soon", "", "Wed, 21 Oct 2026 07:28:00 GMT")],
)
def test_retry_after_is_a_number_of_seconds_or_nothing(header: str | None, seconds: float | None) -> None:
    error = from_vendor("mail", answered(429, header), is_write=True)

    assert isinstance(error, ThrottledError)
    assert error.retry_after_seconds == seconds


# ── what a mail says ────────────────────────────────────────────────────────────────────────────────────────────────

CODE_ERROR = replace(
    MAIL,
    decision=build_decision(
        decision=DecisionKind.ESCALATE_EMAIL,
        category=Category.CODE,
        reason="A column that the notebook selects does not exist; somebody must change the code or the table.",
        confidence=0.97,
        rules=("signature.unresolved_column",),
        fingerprint="9c1f2a7be0d4",
        cause="[UNRESOLVED_COLUMN.WITH_SUGGESTION] A column with name `custmer_id` cannot be resolved.",
        excerpt="pyspark.errors.exceptions.captured.AnalysisException: [UNRESOLVED_COLUMN.WITH_SUGGESTION] A column "
        "with name `custmer_id` cannot be resolved. Did you mean one of the following? [`customer_id`, `country`]\n"
        'File /Workspace/Jobs/nightly_orders, line 41, in <module>\n    orders.select("custmer_id")',
    ),
)

SUGGESTION = replace(
    MAIL,
    kind="suggestion",
    key="ws1:1001:original:suggestion",
    mode=Mode.OBSERVE,
    decision=build_decision(
        decision=DecisionKind.RETRY_WITH_PARAMS,
        category=Category.WORKER_MEMORY,
        reason="An executor was killed because it ran out of memory.",
        confidence=0.9,
        rules=("signature.executor_oom", "policy.permitted"),
        fingerprint="51e8c0d2a944",
        cause="ExecutorLostFailure: Container killed on request. Exit code is 137",
        excerpt="Job aborted due to stage failure: Task 3 in stage 12.0 failed 4 times\n"
        "ExecutorLostFailure: Container killed on request. Exit code is 137",
        suggested_params={
            "worker_memory_up": "",
            "spark_conf:spark.sql.shuffle.partitions": "800",
            "param:batch_size": "",
        },
        carried_out=False,
        not_carried_out_why="mode observe: RETRY_WITH_PARAMS is suggested by mail, not carried out",
    ),
)

FAILED_AGAIN = replace(
    MAIL,
    decision=build_decision(
        decision=DecisionKind.ESCALATE_EMAIL,
        recommended=DecisionKind.RETRY,
        latest_repair_id=502,
        reason="The connection to the metastore was reset. 2 retries did not help.",
        rules=("signature.connection_reset", "policy.retry_limit"),
        fingerprint="0b7de1f3c566",
    ),
    attempts=(
        build_attempt(effect_id=501, outcome=AttemptOutcome.FAILED_AGAIN),
        build_attempt(
            number=2,
            kind=AttemptKind.RUN_NOW,
            with_changes=True,
            changes=("timeout_up", "param:batch_size"),
            claimed_at=NOW + timedelta(minutes=9),
            outcome=AttemptOutcome.FAILED_AGAIN,
        ),
    ),
)

TOKEN = "dapi0123456789abcdef0123456789abcdef"
HOSTILE = replace(
    MAIL,
    job_name="nightly</title><script>alert(1)</script>\r\nBcc: everybody@evil.example\r\n\r\nYou have won",
    page_url="javascript:alert(document.domain)",
    decision=build_decision(
        decision=DecisionKind.ESCALATE_EMAIL,
        category=Category.UNKNOWN,
        reason='Nothing known fits."><img src=x onerror=alert(2)>',
        confidence=0.0,
        cause=f"</strong></td><iframe src=//evil.example></iframe> token={TOKEN}",
        excerpt="</pre><a href='https://evil.example'>log in again</a>\r\n"
        f"Authorization: Bearer {TOKEN}\n"
        "jdbc:sqlserver://db.contoso.example;user=etl;password=Hunter2!Hunter2\n"
        "{{ 7 * 7 }} {% raw %} &lt;b&gt; \x1b[31mred\x1b[0m \x00",
    ),
)

GOLDEN_MAILS = {
    "escalation": CODE_ERROR,
    "suggestion": SUGGESTION,
    "failed_again": FAILED_AGAIN,
    "hostile": HOSTILE,
}


@pytest.mark.parametrize("name", GOLDEN_MAILS)
def test_mails_read_as_they_did_when_a_person_last_looked(name: str, assert_golden: Callable[[str, str], None]) -> None:
    subject, text, html = render(GOLDEN_MAILS[name])

    assert_golden(f"mail_{name}.txt", f"Subject: {subject}\n\n{text}")
    assert_golden(f"mail_{name}.html", html)


@pytest.mark.parametrize(
    ("kind", "attempts", "start"),
    [
        ("escalation", 0, "[Databricks] Needs a person: nightly_orders – "),
        ("escalation", 1, "[Databricks] Failed again after 1 retry: nightly_orders – "),
        ("escalation", 3, "[Databricks] Failed again after 3 retries: nightly_orders – "),
        ("suggestion", 0, "[Databricks] Suggestion: nightly_orders – "),
        ("suggestion", 1, "[Databricks] Suggestion: nightly_orders – "),
    ],
)
def test_the_subject_says_what_is_wanted(kind: str, attempts: int, start: str) -> None:
    made = tuple(build_attempt(number=n + 1, outcome=AttemptOutcome.FAILED_AGAIN) for n in range(attempts))

    assert render(replace(MAIL, kind=kind, attempts=made))[0].startswith(start)


@pytest.mark.parametrize(("decision", "tag"), [(DecisionKind.RETRY, "retry"), (DecisionKind.RETRY_WITH_PARAMS, "full")])
def test_a_suggestion_says_which_mode_would_have_carried_it_out(decision: DecisionKind, tag: str) -> None:
    why = f"mode observe: {decision} is suggested by mail, not carried out"
    mail = replace(
        MAIL, kind="suggestion", decision=build_decision(decision=decision, carried_out=False, not_carried_out_why=why)
    )

    for part in render(mail)[1:]:
        assert f"Not done by itself: {why}." in part
        assert f"To have it done next time, give the job the tag failure-agent={tag}." in part


def test_every_change_without_a_name_has_a_sentence() -> None:
    assert set(SUGGESTIONS) == set(ChangeKind) - {ChangeKind.SPARK_CONF, ChangeKind.PARAM}


def test_a_long_excerpt_is_cut_at_the_end_of_a_line() -> None:
    lines = [f"line {number} of the log" for number in range(2_000)]

    _, text, html = render(replace(MAIL, decision=replace(MAIL.decision, excerpt="\n".join(lines))))

    shown = text.partition("shortened):\n\n")[2].partition("\n\nWhy")[0].split("\n")
    assert shown == [*lines[: len(shown) - 1], "…"]
    assert MAX_MAIL_EXCERPT - 30 < len("\n".join(shown)) <= MAX_MAIL_EXCERPT + 2
    assert lines[len(shown) - 1] not in html


def test_secrets_are_in_no_part_of_a_mail_wherever_they_stood() -> None:
    leak = f"failed with token={TOKEN}"
    decision = build_decision(
        reason=leak,
        cause=leak,
        excerpt=leak,
        not_carried_out_why=leak,
        carried_out=False,
        suggested_params={"param:a": f"token={TOKEN}"},
    )

    message = message_of(replace(MAIL, job_name=leak, decision=decision), sender="agent@contoso.example")

    assert TOKEN not in json.dumps(message)
    assert message["content"]["plainText"].count("[redacted:") >= 6


# ── hostile text ────────────────────────────────────────────────────────────────────────────────────────────────────

SCRIPT_PAYLOADS = (
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "<ScRiPt>alert(1)</sCrIpT>",
    "<scr<script>ipt>alert(1)</scr</script>ipt>",
    "<script src=//evil.example/x.js></script>",
    "<img src=x onerror=alert(1)>",
    "<img src=x onerror=alert(1)//",
    "<img/src='x'/onerror='alert(1)'>",
    '"><img src=x onerror=alert(1)>',
    "'><img src=x onerror=alert(1)>",
    "<svg onload=alert(1)>",
    "<svg/onload=alert(1)>",
    "<svg><script>alert(1)</script></svg>",
    "<svg><a xlink:href='javascript:alert(1)'>x</a></svg>",
    "<body onload=alert(1)>",
    "<iframe src=javascript:alert(1)></iframe>",
    "<iframe srcdoc='<script>alert(1)</script>'>",
    "<object data=javascript:alert(1)>",
    "<embed src=//evil.example/x.swf>",
    "<link rel=stylesheet href=//evil.example/x.css>",
    "<meta http-equiv=refresh content='0;url=//evil.example'>",
    "<base href=//evil.example/>",
    "<form action=//evil.example><input name=password></form>",
    "<input autofocus onfocus=alert(1)>",
    "<details open ontoggle=alert(1)>",
    "<video><source onerror=alert(1)></video>",
    "<math><mi xlink:href='data:text/html,<script>alert(1)</script>'>x",
    "<style>*{background:url(//evil.example)}</style>",
    "<div style='background:url(javascript:alert(1))'>",
    "<a href='javascript:alert(1)'>log in</a>",
    '" onmouseover="alert(1)',
    "' onmouseover='alert(1)",
    '" style="position:fixed" x="',
    "--><script>alert(1)</script><!--",
    "]]><script>alert(1)</script>",
    "</pre><h1>Your password has expired</h1><pre>",
    "</title></head><body><h1>x",
    "</textarea><script>alert(1)</script>",
    "<!--<img src='--><img src=x onerror=alert(1)//'>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "{{ cycler.__init__.__globals__ }}",
    "{% for x in range(9) %}<b>{% endfor %}",
    "<plaintext>",
    "<xmp><script>alert(1)</script>",
)

NO_LINKS = (
    "javascript:alert(1)",
    "JaVaScRiPt:alert(1)",
    " javascript:alert(1)",
    "java\nscript:alert(1)",
    "\x01javascript:alert(1)",
    "data:text/html,<script>alert(1)</script>",
    "vbscript:msgbox(1)",
    "//evil.example/run",
    "ftp://evil.example/run",
    "https://ok.example/\nhttps://evil.example/",
    'https://ok.example/" onmouseover="alert(1)',
    "https://ok.example/' onmouseover='alert(1)",
    "https://ok.example/><script>alert(1)</script>",
    "https://",
    "",
)


class Structure(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, tuple[tuple[str, str | None], ...]]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, tuple(attrs)))

    def handle_endtag(self, tag: str) -> None:
        self.elements.append((f"/{tag}", ()))

    def handle_comment(self, data: str) -> None:
        self.elements.append(("comment", (("text", data),)))

    def handle_data(self, data: str) -> None:
        self.text += data


def mail_full_of(payload: str, *, page_url: str) -> EscalationMail:
    """A mail with the text in every place that a run, a job or the model can write to."""
    decision = build_decision(
        decision=DecisionKind.RETRY_WITH_PARAMS,
        reason=payload,
        cause=payload,
        excerpt=payload,
        fingerprint=payload,
        rules=(payload,),
        suggested_params={f"param:{payload}": payload, payload: ""},
        carried_out=False,
        not_carried_out_why=payload,
    )
    attempt = build_attempt(changes=(payload,), outcome=AttemptOutcome.FAILED_AGAIN)
    return replace(
        MAIL,
        kind="suggestion",
        job_name=payload,
        workspace=payload,
        page_url=page_url,
        decision=decision,
        attempts=(attempt,),
    )


@pytest.mark.parametrize("payload", SCRIPT_PAYLOADS)
def test_hostile_text_adds_no_element_and_no_attribute(payload: str) -> None:
    harmless = Structure(render(mail_full_of("harmless", page_url=""))[2])

    page = Structure(render(mail_full_of(payload, page_url=payload))[2])

    assert page.elements == harmless.elements
    assert page.text.count(payload) >= 8


@given(text=st.text(max_size=200))
def test_no_text_adds_an_element_or_an_attribute(text: str) -> None:
    harmless = Structure(render(mail_full_of("harmless", page_url=""))[2])

    subject, _, html = render(mail_full_of(f"x{text}", page_url=""))

    assert Structure(html).elements == harmless.elements
    assert subject.isprintable()
    assert len(subject) <= MAX_SUBJECT


@pytest.mark.parametrize("url", NO_LINKS)
def test_only_web_addresses_become_links(url: str) -> None:
    _, text, html = render(replace(MAIL, page_url=url))

    assert not [tag for tag, _ in Structure(html).elements if tag == "a"]
    assert "Open it" not in text


def test_the_run_is_linked() -> None:
    url = "https://adb-1.azuredatabricks.net/?o=1&x=2#job/77/run/1001"

    _, text, html = render(replace(MAIL, page_url=url))

    assert ("a", (("href", url),)) in Structure(html).elements
    assert f"Open it  {url}\n" in text


def test_a_line_break_in_the_job_name_adds_no_header(service: Service) -> None:
    service.notifier().send(HOSTILE)

    mail = service.mail_file()
    assert {name.lower() for name in mail} == {
        *("from", "to", "subject", "date", "mime-version", "content-type"),
        *("x-failure-agent-key", "x-failure-agent-run-id", "x-failure-agent-job-id", "x-failure-agent-workspace"),
    }
    assert mail["To"] == "data-team@example.com"
    assert mail["Bcc"] is None


def test_a_line_break_in_a_name_adds_no_line_to_the_text() -> None:
    mail = replace(MAIL, job_name="x\nCause    all is well", decision=replace(MAIL.decision, cause="y\nKind  z"))

    assert len(render(mail)[1].splitlines()) == len(render(MAIL)[1].splitlines())
