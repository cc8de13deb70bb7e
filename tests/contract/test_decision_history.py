"""One suite for both histories: in memory, and in Azure Tables (Azurite) with the official client over a socket."""

import http.client
import random
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    IncompleteReadError,
    ServiceRequestError,
    ServiceRequestTimeoutError,
    ServiceResponseError,
    ServiceResponseTimeoutError,
)
from azure.core.rest import HttpRequest
from azure.data.tables import TableServiceClient, UpdateMode
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from local.azurite import AzuriteError, connection_string, running_azurite
from shared.decision_history import (
    MAX_STRING_UNITS,
    TableDecisionHistory,
    fitting_lines,
    packed_row,
    translated,
    unpacked,
)
from shared.domain import (
    AttemptOutcome,
    Category,
    Change,
    ChangeKind,
    DecisionKind,
    Incident,
    IncidentState,
    Lease,
    LeaseState,
    Mode,
    Pause,
    ScanState,
    SettingChange,
    failure_id_of,
)
from shared.errors import (
    ConfigurationError,
    ConflictError,
    NotAuthorisedError,
    PermanentError,
    ThrottledError,
    TransientError,
)
from shared.mail_groups import MailBook, OpenDigest
from shared.memory_history import InMemoryDecisionHistory
from shared.ports import DecisionHistory
from shared.settings import Settings
from shared.triage.safeguards import Breaker, RetryRecord, Safeguards
from tests.builders import (
    NOW,
    RUN_ID,
    WORKSPACE,
    build_attempt,
    build_decision,
    build_event,
    build_incident,
    build_scan_state,
)

LATER = NOW + timedelta(minutes=10)


@pytest.fixture(scope="module")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_azurite(tmp_path_factory.mktemp("azurite")) as connection:
        yield connection


def new_settings(connection: str) -> Settings:
    """Settings with tables of their own, so that tests do not see each other's rows."""
    return Settings(tables_connection_string=connection, table_prefix=f"t{uuid.uuid4().hex[:20]}")


@pytest.fixture
def table_settings(azurite: str) -> Settings:
    return new_settings(azurite)


@pytest.fixture
def tables(table_settings: Settings) -> TableDecisionHistory:
    return TableDecisionHistory(table_settings)


@pytest.fixture(params=["memory", "tables"])
def history(request: pytest.FixtureRequest) -> DecisionHistory:
    if request.param == "memory":
        return InMemoryDecisionHistory()
    tables: TableDecisionHistory = request.getfixturevalue("tables")
    return tables


def full_incident() -> Incident:
    """An incident with every field set."""
    decision = build_decision(
        decision=DecisionKind.RETRY_WITH_PARAMS,
        category=Category.DRIVER_MEMORY,
        excerpt="line 1\nline 2 – ü 🙂\n\x1b[31m\x00 \ud800",
        cause="java.lang.OutOfMemoryError",
        changes=(Change(ChangeKind.DRIVER_MEMORY_UP), Change(ChangeKind.PARAM, "batch_size", "50")),
        suggested_params={"batch_size": "50"},
        model_used=True,
        latest_repair_id=9_007_199_254_740_993,
        delay_seconds=12.5,
        carried_out=False,
        not_carried_out_why="the mode is observe",
    )
    attempt = build_attempt(
        changes=("driver_memory_up",),
        with_changes=True,
        effect_id=501,
        outcome=AttemptOutcome.FAILED_AGAIN,
        ended_at=NOW,
    )
    return build_incident(
        run_id=9_223_372_036_854_775_807,
        state=IncidentState.RETRYING,
        past_failures=(failure_id_of(WORKSPACE, RUN_ID, None),),
        attempts=(attempt, build_attempt(number=2)),
        decision=decision,
        recipients=("data-team@example.com",),
        mode=Mode.FULL,
        mail_claim="suggestion",
        mailed=("escalation",),
        resends=2,
        ended_why="…",
    )


# Incidents


def test_unknown_incident_is_none(history: DecisionHistory) -> None:
    assert history.read_incident(WORKSPACE, RUN_ID) is None


@pytest.mark.parametrize("incident", [build_incident(), full_incident(), build_incident(job_id=None, failed_at=None)])
def test_incident_is_read_as_it_was_saved(history: DecisionHistory, incident: Incident) -> None:
    saved = history.save_incident(incident)

    assert saved == replace(incident, etag=saved.etag)
    assert saved.etag
    assert history.read_incident(incident.workspace, incident.run_id) == saved


def test_replacing_an_incident_gives_a_new_etag(history: DecisionHistory) -> None:
    first = history.save_incident(build_incident())

    second = history.save_incident(replace(first, state=IncidentState.DECIDED, write_guid="write-2"))

    assert second.etag != first.etag
    assert history.read_incident(WORKSPACE, RUN_ID) == second


def test_second_insert_is_a_conflict(history: DecisionHistory) -> None:
    first = history.save_incident(build_incident(write_guid="first"))

    with pytest.raises(ConflictError, match=str(RUN_ID)):
        history.save_incident(build_incident(write_guid="second"))

    assert history.read_incident(WORKSPACE, RUN_ID) == first


def test_stale_replacement_is_a_conflict(history: DecisionHistory) -> None:
    first = history.save_incident(build_incident())
    second = history.save_incident(replace(first, state=IncidentState.DECIDED, write_guid="other"))

    with pytest.raises(ConflictError):
        history.save_incident(replace(first, state=IncidentState.SKIPPED, write_guid="ours"))

    assert history.read_incident(WORKSPACE, RUN_ID) == second


def test_replacing_an_incident_that_is_not_there_is_a_conflict(history: DecisionHistory) -> None:
    saved = history.save_incident(build_incident(run_id=1))

    with pytest.raises(ConflictError):
        history.save_incident(build_incident(run_id=2, etag=saved.etag))


def test_repeating_the_very_same_write_succeeds(history: DecisionHistory) -> None:
    inserted = history.save_incident(full_incident())
    assert history.save_incident(full_incident()) == inserted

    change = replace(inserted, state=IncidentState.RECOVERED, write_guid="write-2")
    replaced = history.save_incident(change)
    assert history.save_incident(change) == replaced


def test_guid_that_was_not_renewed_does_not_pass_another_value_off_as_ours(history: DecisionHistory) -> None:
    first = history.save_incident(build_incident(write_guid="same"))
    second = history.save_incident(replace(first, state=IncidentState.DECIDED))

    with pytest.raises(ConflictError):
        history.save_incident(replace(first, state=IncidentState.SKIPPED))

    assert history.read_incident(WORKSPACE, RUN_ID) == second


def test_value_without_guid_is_never_taken_for_our_own(history: DecisionHistory) -> None:
    history.save_incident(build_incident(write_guid=""))

    with pytest.raises(ConflictError):
        history.save_incident(build_incident(write_guid=""))


def test_only_one_of_many_concurrent_writers_wins(history: DecisionHistory) -> None:
    first = history.save_incident(build_incident())

    def claim(number: int) -> int:
        try:
            history.save_incident(replace(first, state=IncidentState.ACTING, write_guid=f"writer-{number}"))
        except ConflictError:
            return 0
        return 1

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(claim, range(16))) == 1


def test_linked_run_leads_to_the_incident(history: DecisionHistory) -> None:
    incident = history.save_incident(build_incident())

    history.link_run(WORKSPACE, 5001, incident_run_id=RUN_ID)
    history.link_run(WORKSPACE, 5001, incident_run_id=RUN_ID)

    assert history.read_incident(WORKSPACE, 5001) == incident
    assert history.read_incident("other", 5001) is None
    assert history.open_incidents(WORKSPACE) == [incident]


def test_link_to_an_incident_that_is_not_there_is_none(history: DecisionHistory) -> None:
    history.link_run(WORKSPACE, 5001, incident_run_id=RUN_ID)

    assert history.read_incident(WORKSPACE, 5001) is None


def test_incident_of_its_own_comes_before_a_link(history: DecisionHistory) -> None:
    history.save_incident(build_incident())
    own = history.save_incident(build_incident(run_id=5001))

    history.link_run(WORKSPACE, 5001, incident_run_id=RUN_ID)

    assert history.read_incident(WORKSPACE, 5001) == own


def test_every_state_is_either_open_or_closed(history: DecisionHistory) -> None:
    saved = [
        history.save_incident(build_incident(run_id=number, state=state, updated_at=LATER))
        for number, state in enumerate(IncidentState)
    ]
    history.save_incident(build_incident(workspace="other"))

    assert history.open_incidents(WORKSPACE) == [one for one in saved if not one.state.is_terminal]
    assert history.closed_incidents(WORKSPACE, updated_after=NOW) == [one for one in saved if one.state.is_terminal]


def test_closed_incidents_are_those_changed_after_the_time(history: DecisionHistory) -> None:
    ended = build_incident(state=IncidentState.RECOVERED)
    history.save_incident(replace(ended, run_id=1, updated_at=NOW))
    later = history.save_incident(replace(ended, run_id=2, updated_at=NOW + timedelta(microseconds=1)))

    assert history.closed_incidents(WORKSPACE, updated_after=NOW) == [later]
    elsewhere = NOW.astimezone(timezone(timedelta(hours=5)))
    assert history.closed_incidents(WORKSPACE, updated_after=elsewhere) == [later]


def test_workspace_name_is_not_read_as_a_query(history: DecisionHistory) -> None:
    history.save_incident(build_incident())

    assert history.open_incidents("x' or PartitionKey eq 'ws1") == []


# Scans


def test_unknown_scan_is_none(history: DecisionHistory) -> None:
    assert history.read_scan(WORKSPACE) is None


def test_scan_is_read_as_it_was_saved(history: DecisionHistory) -> None:
    scan = build_scan_state(active=frozenset({3, 1, 2**63 - 1}), seen={7: 1_790_000_000_000, 5: 1})

    saved = history.save_scan(scan)

    assert saved == replace(scan, etag=saved.etag)
    assert history.read_scan(WORKSPACE) == saved
    assert history.read_scan("other") is None


def test_scan_with_fifty_thousand_active_runs_is_kept_and_then_shrinks(history: DecisionHistory) -> None:
    many = frozenset(random.Random(50_000).sample(range(10**15), 50_000))  # the worst case: no pattern to compress
    saved = history.save_scan(build_scan_state(active=many))
    assert history.read_scan(WORKSPACE) == saved

    shrunk = history.save_scan(replace(saved, active=frozenset({1})))
    assert history.read_scan(WORKSPACE) == shrunk


def test_stale_scan_is_a_conflict(history: DecisionHistory) -> None:
    first = history.save_scan(build_scan_state())
    second = history.save_scan(replace(first, watermark=LATER))

    for stale in (first, replace(first, etag="")):
        with pytest.raises(ConflictError, match=WORKSPACE):
            history.save_scan(stale)

    assert history.read_scan(WORKSPACE) == second


def test_scan_that_is_not_there_cannot_be_replaced(history: DecisionHistory) -> None:
    saved = history.save_scan(build_scan_state())

    with pytest.raises(ConflictError):
        history.save_scan(replace(saved, workspace="other"))


# Safeguards, mail book, leases


SAFEGUARDS = Safeguards(
    workspace=WORKSPACE,
    runs_seen={"0005966640": 12},
    retries=tuple(RetryRecord(f"{number}:1", 77, "f00d", 0.5, NOW) for number in range(2000)),
    breakers={"f00d": Breaker(failures=10, since=NOW, opened_at=LATER, canary_key="1:1", canary_at=LATER)},
    write_guid="write-1",
)
MAIL_BOOK = MailBook(
    workspace=WORKSPACE,
    at_once={"f00d": (NOW, "ws1:1:original")},
    digest_due=LATER,
    digests=3,
    open_digest=OpenDigest(3, tuple(range(10**15, 10**15 + 5000)), NOW, not_before=LATER),
    write_guid="write-1",
)
LEASE = Lease(
    workspace=WORKSPACE,
    job_id=77,
    run_id=RUN_ID,
    attempt=1,
    state=LeaseState.APPLIED,
    changes=(
        SettingChange(
            change=Change(ChangeKind.WORKER_MEMORY_UP),
            target="job_cluster:main",
            path=("new_cluster", "node_type_id"),
            old={"any": [1, None, "JSON"]},
            new=None,
            why="The workers need more memory.",
            cost_factor=2.0,
        ),
    ),
    planned_at=NOW,
    applied_at=LATER,
    foreign=("new_cluster.num_workers",),
    write_guid="write-1",
)


def test_state_that_was_never_saved_is_fresh(history: DecisionHistory) -> None:
    assert history.read_safeguards(WORKSPACE) == Safeguards(WORKSPACE)
    assert history.read_mail_book(WORKSPACE) == MailBook(WORKSPACE)
    assert history.read_lease(WORKSPACE, 77) is None
    assert history.open_leases(WORKSPACE) == []


def test_safeguards_are_read_as_they_were_saved_and_guarded(history: DecisionHistory) -> None:
    first = history.save_safeguards(SAFEGUARDS)
    assert first == replace(SAFEGUARDS, etag=first.etag)
    assert history.read_safeguards(WORKSPACE) == first
    assert history.save_safeguards(SAFEGUARDS) == first, "the very same write again"

    second = history.save_safeguards(replace(first, retries=(), write_guid="write-2"))
    with pytest.raises(ConflictError, match="safeguards of workspace ws1"):
        history.save_safeguards(replace(first, breakers={}, write_guid="write-3"))
    assert history.read_safeguards(WORKSPACE) == second


def test_mail_book_is_read_as_it_was_saved_and_guarded(history: DecisionHistory) -> None:
    first = history.save_mail_book(MAIL_BOOK)
    assert first == replace(MAIL_BOOK, etag=first.etag)
    assert history.read_mail_book(WORKSPACE) == first
    assert history.save_mail_book(MAIL_BOOK) == first, "the very same write again"

    second = history.save_mail_book(replace(first, open_digest=None, write_guid="write-2"))
    with pytest.raises(ConflictError, match="mail book of workspace ws1"):
        history.save_mail_book(replace(first, digests=4, write_guid="write-3"))
    assert history.read_mail_book(WORKSPACE) == second


def test_lease_is_read_as_it_was_saved_and_guarded(history: DecisionHistory) -> None:
    first = history.save_lease(LEASE)
    assert first == replace(LEASE, etag=first.etag)
    assert history.read_lease(WORKSPACE, 77) == first
    assert history.save_lease(LEASE) == first, "the very same write again"

    second = history.save_lease(replace(first, state=LeaseState.RESTORED, write_guid="write-2"))
    with pytest.raises(ConflictError, match="lease of job 77"):
        history.save_lease(replace(first, state=LeaseState.CLOSED, write_guid="write-3"))
    assert history.read_lease(WORKSPACE, 77) == second


def test_open_leases_are_those_not_closed(history: DecisionHistory) -> None:
    saved = [history.save_lease(replace(LEASE, job_id=number, state=state)) for number, state in enumerate(LeaseState)]
    history.save_lease(replace(LEASE, workspace="other"))

    assert history.open_leases(WORKSPACE) == [lease for lease in saved if lease.state is not LeaseState.CLOSED]


# Events, rejected messages, pause


def test_events_are_kept_oldest_first_and_once_each(history: DecisionHistory) -> None:
    detected = build_event(at=NOW)
    decided = build_event(at=NOW + timedelta(microseconds=1), kind="decided", details={"rules": ["a"], "attempt": 1})
    also = build_event(at=NOW, kind="detected-again")
    other_run = build_event(run_id=RUN_ID + 1)

    for event in (decided, also, detected, detected, other_run):
        history.record(event)

    assert history.events(WORKSPACE, RUN_ID) == [detected, also, decided]


def test_kinds_that_a_key_cannot_tell_apart_are_two_events(history: DecisionHistory) -> None:
    kinds = ["a/b", "a?b", "x" * 300, "x" * 301]
    events = [build_event(kind=kind) for kind in kinds]

    for event in events:
        history.record(event)

    assert history.events(WORKSPACE, RUN_ID) == events


def test_pause_is_off_until_somebody_pauses(history: DecisionHistory) -> None:
    assert history.read_pause() == Pause(paused=False)

    paused = Pause(paused=True, by="ada", why="migration", at=NOW)
    history.save_pause(paused)
    assert history.read_pause() == paused

    history.save_pause(Pause(paused=False, by="ada", at=LATER))
    assert history.read_pause() == Pause(paused=False, by="ada", at=LATER)


def reject_three_deliveries(history: DecisionHistory) -> None:
    for delivery in range(3):
        history.record_rejected(
            queue="failed-runs",
            message_id="odd/id#?",
            reason="not a FailedRunMessage: run_id: missing",
            body_sha256="ab" * 32,
            at=NOW + timedelta(seconds=delivery),
        )


def test_rejected_message_is_kept_once_however_often_it_is_delivered(
    table_settings: Settings, tables: TableDecisionHistory
) -> None:
    memory = InMemoryDecisionHistory()

    reject_three_deliveries(memory)
    reject_three_deliveries(tables)

    [in_memory] = memory.rejected.values()
    [row] = raw_rows(table_settings, "state", "PartitionKey eq 'rejected'")
    assert row.items() > {"queue": "failed-runs", "message_id": "odd/id#?", "at": "2026-11-20T12:00:02.000000Z"}.items()
    assert in_memory.at == NOW + timedelta(seconds=2)
    assert row["reason"] == in_memory.reason


# What only rows can have


def raw_rows(settings: Settings, table: str, query: str) -> list[dict[str, object]]:
    with TableServiceClient.from_connection_string(settings.tables_connection_string) as service:
        client = service.get_table_client(f"{settings.table_prefix}{table}")
        return [dict(entity) for entity in client.query_entities(query)]


def change_row(settings: Settings, table: str, query: str, **properties: object) -> None:
    with TableServiceClient.from_connection_string(settings.tables_connection_string) as service:
        client = service.get_table_client(f"{settings.table_prefix}{table}")
        for entity in client.query_entities(query):
            client.update_entity(dict(entity) | properties, UpdateMode.REPLACE)


def read_everything(history: DecisionHistory) -> list[Callable[[], object]]:
    return [
        lambda: history.read_incident(WORKSPACE, RUN_ID),
        lambda: history.open_incidents(WORKSPACE),
        lambda: history.events(WORKSPACE, RUN_ID),
        lambda: history.read_scan(WORKSPACE),
        lambda: history.read_safeguards(WORKSPACE),
        lambda: history.read_mail_book(WORKSPACE),
        lambda: history.read_lease(WORKSPACE, 77),
        lambda: history.open_leases(WORKSPACE),
        history.read_pause,
    ]


@pytest.mark.parametrize(
    "damage",
    [{"schema_version": 2}, {"schema_version": ""}, {"body": "{}", "parts": 9}, {"body": "no", "part_0": b"no"}],
)
def test_row_that_is_not_understood_is_named(
    table_settings: Settings, tables: TableDecisionHistory, damage: dict[str, object]
) -> None:
    history = tables
    history.save_incident(build_incident())
    history.record(build_event())
    history.save_scan(build_scan_state())
    history.save_safeguards(SAFEGUARDS)
    history.save_mail_book(MAIL_BOOK)
    history.save_lease(LEASE)
    history.save_pause(Pause(paused=True))
    for table in ("incidents", "events", "state"):
        change_row(table_settings, table, "schema_version eq 1", **damage)

    for read in read_everything(history):
        with pytest.raises(PermanentError, match=r"row .* of partition"):
            read()


def test_deleted_table_does_not_look_like_an_empty_history(
    table_settings: Settings, tables: TableDecisionHistory
) -> None:
    assert tables.read_incident(WORKSPACE, RUN_ID) is None
    with TableServiceClient.from_connection_string(table_settings.tables_connection_string) as service:
        service.delete_table(f"{table_settings.table_prefix}incidents")

    with pytest.raises(PermanentError, match="TABLE_NOT_FOUND"):
        tables.read_incident(WORKSPACE, RUN_ID)
    with pytest.raises(PermanentError):
        tables.open_incidents(WORKSPACE)


def test_row_can_be_queried_by_people(table_settings: Settings, tables: TableDecisionHistory) -> None:
    tables.save_incident(full_incident())

    [row] = raw_rows(table_settings, "incidents", "fingerprint eq 'f00d' and state eq 'retrying' and job_id eq '77'")

    assert row["RowKey"] == "09223372036854775807"
    assert row["decision"] == "RETRY_WITH_PARAMS"
    assert "line 1" in str(row["excerpt"])
    assert "line 1" not in str(row["body"])


def test_too_long_excerpt_loses_whole_lines_at_its_end(tables: TableDecisionHistory) -> None:
    line = "🙂" * 99 + "\n"
    incident = build_incident(decision=build_decision(excerpt=line * 500))

    saved = tables.save_incident(incident)
    read = tables.read_incident(WORKSPACE, RUN_ID)

    assert read is not None
    assert read.decision is not None
    assert read.decision.excerpt == line * (MAX_STRING_UNITS // 199)
    assert tables.save_incident(incident).etag == saved.etag, "the same write again is still known as ours"


@settings(deadline=None)
@given(st.text(st.characters(codec=None, categories=("L", "Cs", "So", "Zl", "Cc"))), st.integers(0, 3000))
def test_fitting_lines_are_a_prefix_that_fits(text: str, times: int) -> None:
    long = text * times

    kept = fitting_lines(long)

    assert long.startswith(kept)
    assert len(kept.encode("utf-16-le", "surrogatepass")) // 2 <= MAX_STRING_UNITS
    assert kept == long or len(long) * 2 > MAX_STRING_UNITS


@settings(deadline=None)
@given(st.frozensets(st.integers(0, 2**63 - 1)), st.dictionaries(st.integers(0, 2**63 - 1), st.integers(0, 2**41)))
def test_packed_scan_is_the_same_scan(active: frozenset[int], seen: dict[int, int]) -> None:
    scan = build_scan_state(active=active, seen=seen, etag="e")

    row = packed_row("scan", WORKSPACE, scan, TypeAdapter(ScanState))

    assert unpacked(row | {"etag": "e"}, TypeAdapter(ScanState)) == scan


# Lost answers


class AnswerLosing(BaseHTTPRequestHandler):
    """Passes requests on to Azurite; the answers of the methods in `server.lose` never reach the client."""

    protocol_version = "HTTP/1.1"
    server: "AnswerLosingProxy"

    def pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        upstream = http.client.HTTPConnection(self.server.upstream, timeout=10)
        upstream.request(self.command, self.path, body, dict(self.headers))
        answer = upstream.getresponse()
        content = answer.read()
        upstream.close()
        self.server.statuses.append((self.command, answer.status))
        if self.command in self.server.lose:
            self.server.lose.remove(self.command)
            self.close_connection = True
            return
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "content-length", "connection", "date", "server"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = pass_on  # noqa: N815 - names that the base class looks for

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class AnswerLosingProxy(ThreadingHTTPServer):
    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), AnswerLosing)
        self.upstream = upstream
        self.lose: list[str] = []
        self.statuses: list[tuple[str, int]] = []


@contextmanager
def serving[S: ThreadingHTTPServer](server: S) -> Iterator[S]:
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def answer_losing_proxy(connection: str) -> Iterator[AnswerLosingProxy]:
    endpoint = dict(part.split("=", 1) for part in connection.split(";") if part)["TableEndpoint"]
    with serving(AnswerLosingProxy(urlsplit(endpoint).netloc)) as proxy:
        yield proxy


def test_replacement_whose_answer_was_lost_is_known_as_ours(azurite: str) -> None:
    with answer_losing_proxy(azurite) as proxy:
        history = TableDecisionHistory(new_settings(connection_string(proxy.server_port)))
        first = history.save_incident(build_incident())
        proxy.lose = ["PUT"]

        saved = history.save_incident(replace(first, state=IncidentState.DECIDED, write_guid="write-2"))

        assert [status for method, status in proxy.statuses if method == "PUT"] == [204, 412], "it was sent twice"
        assert history.read_incident(WORKSPACE, RUN_ID) == saved


def test_scan_whose_answer_was_lost_is_known_as_ours(azurite: str) -> None:
    with answer_losing_proxy(azurite) as proxy:
        history = TableDecisionHistory(new_settings(connection_string(proxy.server_port)))
        first = history.save_scan(build_scan_state())
        proxy.lose = ["PUT"]

        saved = history.save_scan(replace(first, watermark=LATER))

        assert [status for method, status in proxy.statuses if method == "PUT"] == [204, 412], "it was sent twice"
        assert history.read_scan(WORKSPACE) == saved


def test_insert_whose_answer_was_lost_may_be_repeated_by_the_caller(azurite: str) -> None:
    """The client never repeats an insert by itself (it is a POST)."""
    with answer_losing_proxy(azurite) as proxy:
        history = TableDecisionHistory(new_settings(connection_string(proxy.server_port)))
        assert history.read_incident(WORKSPACE, RUN_ID) is None
        proxy.lose = ["POST"]

        with pytest.raises(TransientError):
            history.save_incident(build_incident())
        saved = history.save_incident(build_incident())

        assert history.read_incident(WORKSPACE, RUN_ID) == saved


def test_lost_answer_does_not_hide_that_somebody_else_wrote(azurite: str) -> None:
    settings = new_settings(azurite)
    with answer_losing_proxy(azurite) as proxy:
        direct = TableDecisionHistory(settings)
        through = TableDecisionHistory(
            settings.model_copy(update={"tables_connection_string": connection_string(proxy.server_port)})
        )
        first = direct.save_incident(build_incident())
        direct.save_incident(replace(first, state=IncidentState.ESCALATED, write_guid="other"))
        proxy.lose = ["PUT"]

        with pytest.raises(ConflictError):
            through.save_incident(replace(first, state=IncidentState.ACTING, write_guid="ours"))


# Errors


class Answer:
    """What the client's errors look at in an answer."""

    reason = "reason"
    request = HttpRequest("GET", "http://127.0.0.1/")

    def __init__(self, status: int, headers: dict[str, str]) -> None:
        self.status_code = status
        self.headers = headers

    def text(self) -> str:
        return ""


def http_error(status: int, headers: dict[str, str] | None = None) -> HttpResponseError:
    return HttpResponseError(response=Answer(status, headers or {}))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (http_error(429, {"Retry-After": "7"}), ThrottledError),
        (http_error(503), ThrottledError),
        (http_error(500), TransientError),
        (http_error(502), TransientError),
        (http_error(504), TransientError),
        (http_error(408), TransientError),
        (ServiceRequestError("refused"), TransientError),
        (ServiceRequestTimeoutError("slow"), TransientError),
        (ServiceResponseError("broken"), TransientError),
        (ServiceResponseTimeoutError("slow"), TransientError),
        (IncompleteReadError("cut off"), TransientError),
        (http_error(401), NotAuthorisedError),
        (http_error(403), NotAuthorisedError),
        (ClientAuthenticationError("no identity here"), NotAuthorisedError),
        (http_error(400), PermanentError),
        (http_error(404), PermanentError),
        (http_error(413), PermanentError),
        (AzureError("unheard of"), PermanentError),
    ],
    ids=lambda value: f"{type(value).__name__}-{getattr(value, 'status_code', None)}",
)
def test_error_of_the_client_becomes_one_of_ours(error: AzureError, expected: type[Exception]) -> None:
    ours = translated(error, "reading")

    assert type(ours) is expected
    assert str(ours).startswith("reading: ")


@pytest.mark.parametrize(
    ("header", "seconds"),
    [({"Retry-After": "7"}, 7.0), ({}, None), ({"Retry-After": "Fri, 20 Nov 2026 12:00:00 GMT"}, None)],
)
def test_throttling_carries_the_figure_of_the_service(header: dict[str, str], seconds: float | None) -> None:
    ours = translated(http_error(429, header), "reading")

    assert isinstance(ours, ThrottledError)
    assert ours.retry_after_seconds == seconds


def test_wrong_key_is_not_authorised(azurite: str) -> None:
    wrong = azurite.replace("AccountKey=E", "AccountKey=F")

    with pytest.raises(NotAuthorisedError, match="Storage Table Data Contributor"):
        TableDecisionHistory(Settings(tables_connection_string=wrong)).read_pause()


def test_service_that_is_down_is_transient() -> None:
    nobody_listens = connection_string(1)

    with pytest.raises(TransientError, match="did not answer"):
        TableDecisionHistory(Settings(tables_connection_string=nobody_listens)).read_pause()


class Throttling(BaseHTTPRequestHandler):
    """Asks for a pause of a minute, whatever the request."""

    def do_POST(self) -> None:
        self.send_response(503)
        self.send_header("Retry-After", "60")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def test_pause_that_the_service_asks_for_is_not_slept_through() -> None:
    started = time.monotonic()
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Throttling)) as server:
        history = TableDecisionHistory(Settings(tables_connection_string=connection_string(server.server_port)))

        with pytest.raises(ThrottledError) as caught:
            history.read_pause()

    assert caught.value.retry_after_seconds == 60
    assert time.monotonic() - started < 10


def test_service_that_never_answers_is_transient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.decision_history.TIMEOUT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        history = TableDecisionHistory(Settings(tables_connection_string=connection_string(silent.getsockname()[1])))

        with pytest.raises(TransientError, match="did not answer"):
            history.read_pause()


def test_broken_connection_string_is_named_and_not_shown() -> None:
    history = TableDecisionHistory(Settings(tables_connection_string="AccountKey=secret"))

    with pytest.raises(ConfigurationError, match="TABLES_CONNECTION_STRING") as caught:
        history.read_pause()
    assert "secret" not in str(caught.value)


def test_missing_settings_are_named() -> None:
    with pytest.raises(ConfigurationError, match="TABLES_CONNECTION_STRING or TABLES_ENDPOINT"):
        TableDecisionHistory(Settings())


def test_azurite_that_ends_at_once_says_why(tmp_path: Path, azurite: str) -> None:
    taken = urlsplit(azurite.split("TableEndpoint=")[1]).port
    assert taken is not None

    with pytest.raises(AzuriteError, match="EADDRINUSE"), running_azurite(tmp_path, port=taken):
        pass
