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
from datetime import UTC, datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote_plus, urlsplit

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
    COMPARED_AGAIN_AFTER,
    MAX_STRING_UNITS,
    Row,
    TableDecisionHistory,
    fitting_lines,
    packed_row,
    time_text,
    translated,
    unpacked,
)
from shared.domain import (
    AttemptKind,
    AttemptOutcome,
    Category,
    Change,
    ChangeKind,
    DecisionKind,
    Incident,
    IncidentState,
    Lease,
    LeaseNews,
    LeaseReport,
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
    StoreNotAuthorisedError,
    StoreRefusedError,
    ThrottledError,
    TransientError,
)
from shared.mail_groups import MailBook, OpenDigest
from shared.memory_history import InMemoryDecisionHistory
from shared.ports import DecisionHistory
from shared.settings import Settings
from shared.triage.experience import Experience, TokenMeter
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


def test_incident_that_opens_again_is_listed_again(history: DecisionHistory) -> None:
    closed = history.save_incident(build_incident(state=IncidentState.RECOVERED))
    assert history.open_incidents(WORKSPACE) == []

    opened = history.save_incident(replace(closed, state=IncidentState.DETECTED, write_guid="write-2"))
    assert history.open_incidents(WORKSPACE) == [opened]

    history.save_incident(replace(opened, state=IncidentState.ESCALATED, write_guid="write-3"))
    assert history.open_incidents(WORKSPACE) == []
    assert history.open_incidents(WORKSPACE) == [], "also once what was left of it in the index is gone"


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
    assert history.followed_leases(WORKSPACE) == history.open_leases(WORKSPACE)


def test_a_closed_lease_is_followed_while_an_update_may_still_land(history: DecisionHistory) -> None:
    in_doubt = replace(
        LEASE,
        state=LeaseState.CLOSED,
        unanswered=LEASE.changes,
        watched_until=LATER,
        report=LeaseReport(LeaseNews.LEFT, LATER, claimed=True),
        reported=(LeaseNews.REFUSED,),
    )
    first = history.save_lease(in_doubt)
    assert history.followed_leases(WORKSPACE) == [first]
    assert history.open_leases(WORKSPACE) == []

    history.save_lease(replace(first, unanswered=(), write_guid="write-2"))

    assert history.followed_leases(WORKSPACE) == []


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


# Old rows


OLD = NOW - timedelta(microseconds=1)


def keep(history: DecisionHistory, run_id: int, state: IncidentState, updated_at: datetime) -> None:
    """An incident that was retried with a new run, the link to that run, and two events."""
    started = build_attempt(kind=AttemptKind.RUN_NOW, effect_id=run_id + 500, outcome=AttemptOutcome.SUPERSEDED)
    history.save_incident(build_incident(run_id=run_id, state=state, updated_at=updated_at, attempts=(started,)))
    history.link_run(WORKSPACE, run_id + 500, incident_run_id=run_id)
    for kind in ("detected", "decided"):
        history.record(build_event(run_id=run_id, at=updated_at, kind=kind))


def is_kept(history: DecisionHistory, run_id: int) -> bool:
    """Whether an incident is there, with its link and its events. Raises where only a part of it is."""
    incident = history.read_incident(WORKSPACE, run_id)
    [linked] = {history.read_incident(WORKSPACE, run_id + 500) == incident}
    assert linked
    assert len(history.events(WORKSPACE, run_id)) == (2 if incident else 0)
    return incident is not None


@pytest.mark.parametrize(
    ("state", "updated_at", "kept"),
    [
        (IncidentState.RECOVERED, OLD, False),
        (IncidentState.PARKED, OLD, False),
        (IncidentState.RECOVERED, NOW, True),
        (IncidentState.DETECTED, OLD, True),
        (IncidentState.GATHERED, OLD, True),
        (IncidentState.RETRYING, OLD, True),
    ],
)
def test_closed_incidents_older_than_the_time_go_with_all_that_belongs_to_them(
    history: DecisionHistory, state: IncidentState, updated_at: datetime, kept: bool
) -> None:
    keep(history, RUN_ID, state, updated_at)

    deleted = history.delete_older_than(WORKSPACE, NOW, limit=100)

    assert is_kept(history, RUN_ID) is kept
    assert deleted == (0 if kept else 4)
    assert history.delete_older_than(WORKSPACE, NOW, limit=100) == 0


def test_other_old_rows_go_and_what_is_still_needed_stays(history: DecisionHistory) -> None:
    ended = replace(LEASE, state=LeaseState.CLOSED, planned_at=OLD, restored_at=OLD)
    for lease in (
        replace(ended, job_id=1),
        replace(ended, job_id=2, looked_at=NOW),
        replace(ended, job_id=3, unanswered=LEASE.changes),
        replace(ended, job_id=4, state=LeaseState.RESTORED),
        replace(ended, job_id=5, workspace="other"),
    ):
        history.save_lease(lease)
    yesterday, today = (NOW - timedelta(days=1)).strftime("%Y-%m-%d"), NOW.strftime("%Y-%m-%d")
    for day in (yesterday, today):
        history.save_token_meter(TokenMeter(day, used=5))
    for at in (OLD, NOW):
        history.record(build_event(run_id=-20261120, at=at))
        history.record(build_event(run_id=-20261120, at=at, workspace="other"))
        history.record_rejected(queue="emails", message_id=str(at), reason="odd", body_sha256="ab", at=at)
    history.save_experience(Experience(WORKSPACE, "f00d", asked_at=OLD))
    history.save_incident(build_incident(state=IncidentState.SKIPPED, updated_at=OLD, workspace="other"))

    assert history.delete_older_than(WORKSPACE, NOW, limit=100) == 4

    assert [job_id for job_id in range(1, 5) if history.read_lease(WORKSPACE, job_id)] == [2, 3, 4]
    assert [history.read_token_meter(day).used for day in (yesterday, today)] == [0, 5]
    assert [event.at for event in history.events(WORKSPACE, -20261120)] == [NOW]
    assert history.read_experience(WORKSPACE, "f00d").etag
    assert history.read_incident("other", RUN_ID)
    assert history.read_lease("other", 5)
    assert len(history.events("other", -20261120)) == 2


@pytest.mark.parametrize("limit", [1, 3, 5])
def test_old_rows_go_in_bounded_batches_an_incident_after_what_belongs_to_it(
    history: DecisionHistory, limit: int
) -> None:
    for run_id in (RUN_ID, RUN_ID + 1):
        keep(history, run_id, IncidentState.RECOVERED, OLD)

    deleted: list[int] = []
    while not deleted or deleted[-1]:
        deleted.append(history.delete_older_than(WORKSPACE, NOW, limit=limit))
        for run_id in (RUN_ID, RUN_ID + 1):
            has_more = history.events(WORKSPACE, run_id)
            assert history.read_incident(WORKSPACE, run_id) or not has_more, "nothing is left that nobody finds"

    assert max(deleted) == limit
    assert sum(deleted) == 8
    assert not is_kept(history, RUN_ID)


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
        lambda: history.followed_leases(WORKSPACE),
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
        with pytest.raises(StoreRefusedError, match=r"row .* of partition"):
            read()


def test_deleted_table_does_not_look_like_an_empty_history(
    table_settings: Settings, tables: TableDecisionHistory
) -> None:
    assert tables.read_incident(WORKSPACE, RUN_ID) is None
    with TableServiceClient.from_connection_string(table_settings.tables_connection_string) as service:
        service.delete_table(f"{table_settings.table_prefix}incidents")

    with pytest.raises(StoreRefusedError, match="TABLE_NOT_FOUND"):
        tables.read_incident(WORKSPACE, RUN_ID)
    with pytest.raises(StoreRefusedError):
        tables.open_incidents(WORKSPACE)


def test_row_can_be_queried_by_people(table_settings: Settings, tables: TableDecisionHistory) -> None:
    tables.save_incident(full_incident())

    [row] = raw_rows(table_settings, "incidents", "fingerprint eq 'f00d' and state eq 'retrying' and job_id eq '77'")

    assert row["RowKey"] == "09223372036854775807"
    assert row["decision"] == "RETRY_WITH_PARAMS"
    assert "line 1" in str(row["excerpt"])
    assert "line 1" not in str(row["body"])


def index_rows(settings: Settings) -> list[dict[str, object]]:
    return raw_rows(settings, "incidents", "RowKey ge 'open-' and RowKey lt 'open.'")


def forget_index(settings: Settings) -> None:
    """Leave what a version of the agent without an index would have written, more than an hour ago."""
    with TableServiceClient.from_connection_string(settings.tables_connection_string) as service:
        client = service.get_table_client(f"{settings.table_prefix}incidents")
        for row in index_rows(settings):
            client.delete_entity(str(row["PartitionKey"]), str(row["RowKey"]))
    an_hour_ago = datetime.now(UTC) - COMPARED_AGAIN_AFTER
    change_row(settings, "state", "PartitionKey eq 'open-index'", at=time_text(an_hour_ago))


class WatchedTables(TableDecisionHistory):
    """Does something before a row is deleted."""

    def __init__(self, settings: Settings, before_deleting: Callable[[], object]) -> None:
        super().__init__(settings)
        self._before_deleting = before_deleting

    def _delete(self, table: str, row: Row) -> bool:
        self._before_deleting()
        return super()._delete(table, row)


def test_incident_that_opens_again_while_open_ones_are_listed_stays_in_the_index(
    table_settings: Settings, tables: TableDecisionHistory
) -> None:
    opened = tables.save_incident(build_incident())
    closed = tables.save_incident(replace(opened, state=IncidentState.RECOVERED, write_guid="write-2"))
    again = replace(closed, state=IncidentState.DETECTED, write_guid="write-3")

    assert WatchedTables(table_settings, lambda: tables.save_incident(again)).open_incidents(WORKSPACE) == []

    assert [one.write_guid for one in tables.open_incidents(WORKSPACE)] == ["write-3"]


def test_incident_that_opens_again_while_old_ones_are_deleted_stays(
    table_settings: Settings, tables: TableDecisionHistory
) -> None:
    closed = tables.save_incident(build_incident(state=IncidentState.RECOVERED, updated_at=OLD))
    again = replace(closed, state=IncidentState.DETECTED, updated_at=NOW, write_guid="write-2")

    deleting = WatchedTables(table_settings, lambda: tables.save_incident(again))
    assert deleting.delete_older_than(WORKSPACE, NOW, limit=10) == 0

    assert [one.write_guid for one in tables.open_incidents(WORKSPACE)] == ["write-2"]


@pytest.mark.parametrize("most", [0, 100])
def test_index_rows_of_closed_incidents_go_when_the_open_ones_are_listed(
    table_settings: Settings, tables: TableDecisionHistory, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.decision_history.MOST_READ_SINGLY", most)
    kept, closed = (tables.save_incident(build_incident(run_id=number)) for number in (1, 2))
    tables.save_incident(replace(closed, state=IncidentState.ESCALATED, write_guid="write-2"))
    assert len(index_rows(table_settings)) == 2

    assert tables.open_incidents(WORKSPACE) == [kept]

    assert [row["incident_key"] for row in index_rows(table_settings)] == ["00000000000000000001"]


def test_write_that_is_refused_leaves_nothing_in_the_index(
    table_settings: Settings, tables: TableDecisionHistory
) -> None:
    stale = tables.save_incident(build_incident(state=IncidentState.RECOVERED))
    tables.save_incident(replace(stale, state=IncidentState.ESCALATED, write_guid="other"))

    for refused in (replace(stale, write_guid="ours"), build_incident(write_guid="ours")):
        with pytest.raises(ConflictError):
            tables.save_incident(replace(refused, state=IncidentState.DETECTED))

    assert index_rows(table_settings) == []


def test_open_rows_of_a_version_without_index_are_found_once_an_hour(
    table_settings: Settings, tables: TableDecisionHistory
) -> None:
    tables.read_pause()
    first = tables.save_incident(build_incident(run_id=1))
    tables.save_incident(build_incident(run_id=2, state=IncidentState.RECOVERED))
    forget_index(table_settings)
    assert tables.open_incidents(WORKSPACE) == [first], "at the first listing ever"

    second = tables.save_incident(build_incident(run_id=3))
    forget_index(table_settings)
    assert TableDecisionHistory(table_settings).open_incidents(WORKSPACE) == [first, second], "an hour later again"
    assert len(index_rows(table_settings)) == 2


def test_lease_of_a_version_before_is_followed(table_settings: Settings, tables: TableDecisionHistory) -> None:
    lease = tables.save_lease(LEASE)
    with TableServiceClient.from_connection_string(table_settings.tables_connection_string) as service:
        client = service.get_table_client(f"{table_settings.table_prefix}state")
        row = dict(client.get_entity(f"lease:{WORKSPACE}", f"{lease.job_id:020d}"))
        del row["is_followed"]
        client.upsert_entity(row | {"is_open": True}, UpdateMode.REPLACE)

    assert [one.job_id for one in tables.open_leases(WORKSPACE)] == [lease.job_id]


def test_listing_open_incidents_asks_for_the_same_however_many_were_closed(azurite: str) -> None:
    """By their keys alone: the service reads no other row for that."""
    with answer_losing_proxy(azurite) as proxy:
        history = TableDecisionHistory(new_settings(connection_string(proxy.server_port)))
        for number in (1, 2):
            history.save_incident(build_incident(run_id=number))
        asked = []
        for closed_before in (0, 5):
            for number in range(closed_before + 100, closed_before + 105):
                incident = history.save_incident(build_incident(run_id=number))
                history.save_incident(replace(incident, state=IncidentState.SKIPPED, write_guid="write-2"))
            history.open_incidents(WORKSPACE)
            proxy.asked.clear()
            assert len(history.open_incidents(WORKSPACE)) == 2
            asked.append(sorted(proxy.asked))

    assert asked[0] == asked[1]
    single = [path for path in asked[1] if "$filter" not in path]
    [query] = [path for path in asked[1] if "$filter" in path]
    assert len(single) == 3, "two incidents, and when the index was compared"
    assert "$filter=PartitionKey eq 'ws1' and RowKey ge 'open-' and RowKey lt 'open.'" in query


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
        self.server.asked.append(unquote_plus(self.path))
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

    do_GET = do_POST = do_PUT = do_DELETE = pass_on  # noqa: N815 - names that the base class looks for

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class AnswerLosingProxy(ThreadingHTTPServer):
    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), AnswerLosing)
        self.upstream = upstream
        self.lose: list[str] = []
        self.statuses: list[tuple[str, int]] = []
        self.asked: list[str] = []


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
        proxy.statuses.clear()
        proxy.lose = ["POST"]

        saved = history.save_incident(replace(first, state=IncidentState.DECIDED, write_guid="write-2"))

        assert [status for method, status in proxy.statuses if method == "POST"] == [202, 202], "it was sent twice"
        assert history.read_incident(WORKSPACE, RUN_ID) == saved
        proxy.lose = ["PUT"]

        saved = history.save_incident(replace(saved, state=IncidentState.ESCALATED, write_guid="write-3"))

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


def test_insert_whose_answer_was_lost_is_known_as_ours(azurite: str) -> None:
    with answer_losing_proxy(azurite) as proxy:
        history = TableDecisionHistory(new_settings(connection_string(proxy.server_port)))
        assert history.read_incident(WORKSPACE, RUN_ID) is None
        proxy.lose = ["POST"]

        saved = history.save_incident(build_incident())

        assert history.open_incidents(WORKSPACE) == [saved]


def test_insert_of_a_closed_incident_whose_answer_was_lost_may_be_repeated_by_the_caller(azurite: str) -> None:
    """It is no transaction, and the client never repeats a plain insert by itself (it is a POST)."""
    closed = build_incident(state=IncidentState.SKIPPED)
    with answer_losing_proxy(azurite) as proxy:
        history = TableDecisionHistory(new_settings(connection_string(proxy.server_port)))
        assert history.read_incident(WORKSPACE, RUN_ID) is None
        proxy.lose = ["POST"]

        with pytest.raises(TransientError):
            history.save_incident(closed)
        saved = history.save_incident(closed)

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
        assert through.read_incident(WORKSPACE, RUN_ID)
        proxy.lose = ["POST"]

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
        (http_error(401), StoreNotAuthorisedError),
        (http_error(403), StoreNotAuthorisedError),
        (ClientAuthenticationError("no identity here"), StoreNotAuthorisedError),
        (http_error(400), StoreRefusedError),
        (http_error(404), StoreRefusedError),
        (http_error(413), StoreRefusedError),
        (AzureError("unheard of"), StoreRefusedError),
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

    with pytest.raises(StoreNotAuthorisedError, match="Storage Table Data Contributor"):
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
