"""What was decided and done: in Azure Tables, or in memory for as long as the process lives.

| table | partition key | row key | one row |
|---|---|---|---|
| `<prefix>incidents` | workspace | run id, 20 digits | one incident |
| `<prefix>incidents` | workspace | `link-` + run id, 20 digits | a run-now retry of an incident |
| `<prefix>incidents` | workspace | `open-` + run id, 20 digits | the index: an incident that is or was just now open |
| `<prefix>events` | workspace + `:` + run id | time, kind, hash of the kind | one thing that happened |
| `<prefix>state` | `open-index` | workspace | when the index was last compared with all incidents |
| `<prefix>state` | `scan` | workspace | what the last detection tick left |
| `<prefix>state` | `safeguards` | workspace | what keeps failures from becoming too many retries |
| `<prefix>state` | `mail-book` | workspace | what was mailed |
| `<prefix>state` | `lease:` + workspace | job id, 20 digits | the job's latest lease |
| `<prefix>state` | `experience:` + workspace | fingerprint | what worked before for a cause, and the model's answer |
| `<prefix>state` | `token-meter` | day | tokens that the model was asked with |
| `<prefix>state` | `agent` | `pause` | whether all actions are stopped |
| `<prefix>state` | `rejected` | hash of queue, message id and body hash | a message that was not understood |

A value is one JSON text: in the property `body`, or compressed in `part_0`, `part_1` … where it can be large. The other
properties are for queries and for people who look at a row.
Azure Tables: a string property holds 64 KiB of UTF-16, a binary one 64 KiB, a row 1 MiB in 255 properties.

Azure Tables has an index of the two keys alone: a query for anything else reads every row of its partition, and closed
incidents stay for `HISTORY_DAYS`. So an open incident has an index row, written in one transaction with its own row:
there is none without. What is left of one that was closed goes when the open ones are listed next.
"""

import hashlib
import json
import re
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from itertools import accumulate, islice
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from pydantic import TypeAdapter

from shared import deadline
from shared.domain import Event, Incident, Lease, LeaseState, Pause, ScanState
from shared.errors import (
    AgentError,
    ConfigurationError,
    ConflictError,
    StoreNotAuthorisedError,
    StoreRefusedError,
    ThrottledError,
    TransientError,
    retry_after_of,
)
from shared.mail_groups import MailBook
from shared.memory_history import ended_before, linked_runs, own_earlier_write
from shared.settings import Settings
from shared.triage.experience import Experience, TokenMeter
from shared.triage.safeguards import Safeguards

if TYPE_CHECKING:
    from azure.core.exceptions import AzureError
    from azure.data.tables import TableClient, TableServiceClient

type Row = dict[str, Any]

INCIDENTS = "incidents"
EVENTS = "events"
STATE = "state"

SCHEMA_VERSION = 1
MAX_STRING_UNITS = 32_000  # UTF-16 code units; the service takes 32,768
MAX_BINARY_BYTES = 60 * 1024  # the service takes 64 KiB
TIMEOUT_SECONDS = 10
RETRIES = 2

READERS = 8
"""Open incidents read at the same time."""

MOST_READ_SINGLY = 100
"""Where more are open, one query that reads all rows is cheaper than as many reads."""

COMPARED_AGAIN_AFTER = timedelta(hours=1)
"""So often the index is compared with all incidents: a version of the agent without it may have written some, before an
update, beside it or after it was taken back."""

_INCIDENT = TypeAdapter(Incident)
_EVENT = TypeAdapter(Event)
_PAUSE = TypeAdapter(Pause)
_SCAN = TypeAdapter(ScanState)
_SAFEGUARDS = TypeAdapter(Safeguards)
_MAIL_BOOK = TypeAdapter(MailBook)
_LEASE = TypeAdapter(Lease)
_EXPERIENCE = TypeAdapter(Experience)
_TOKEN_METER = TypeAdapter(TokenMeter)


class TableDecisionHistory:
    """The history in Azure Tables. Safe to share between threads; makes no call before it is used.

    Every method raises TransientError or ThrottledError where the service cannot answer now, StoreNotAuthorisedError
    where the identity lacks a role, StoreRefusedError where a row is not understood or a table was deleted.
    """

    def __init__(self, settings: Settings) -> None:
        """Raises ConfigurationError where neither a connection string nor an endpoint is set."""
        settings.require(("tables_connection_string", "tables_endpoint"))
        self._settings = settings
        self._lock = threading.Lock()
        self._tables: dict[str, TableClient] = {}

    def read_scan(self, workspace: str) -> ScanState | None:
        row = self._read(STATE, "scan", workspace)
        return unpacked(row, _SCAN) if row else None

    def save_scan(self, scan: ScanState) -> ScanState:
        row = packed_row("scan", scan.workspace, scan, _SCAN, write_guid=uuid4().hex)
        etag = self._write(STATE, row, scan.etag)
        if etag is None:  # refused; it is our own write where the first answer was lost and the client sent it again
            stored = self._read(STATE, "scan", scan.workspace)
            if stored is None or stored["write_guid"] != row["write_guid"]:
                raise ConflictError(
                    f"the scan state of workspace {scan.workspace} was changed by somebody else: read it again"
                )
            etag = stored["etag"]
        return replace(scan, etag=etag)

    def read_incident(self, workspace: str, run_id: int) -> Incident | None:
        row = self._read(INCIDENTS, workspace, key_of(run_id))
        if row is None and (link := self._read(INCIDENTS, workspace, f"link-{key_of(run_id)}")):
            row = self._read(INCIDENTS, workspace, link["incident_key"])
        return incident_from(row) if row else None

    def save_incident(self, incident: Incident) -> Incident:
        row = row_of_incident(incident)
        entry = index_entry(row) if row["is_open"] else None
        return self._save(INCIDENTS, row, incident, incident_from, entry)

    def link_run(self, workspace: str, run_id: int, *, incident_run_id: int) -> None:
        row = new_row(workspace, f"link-{key_of(run_id)}", incident_key=key_of(incident_run_id))
        self._upsert(INCIDENTS, row)

    def open_incidents(self, workspace: str) -> list[Incident]:
        self._compare_index(workspace)
        entries = self._index(workspace)
        read: Callable[[str], Row | None] = partial(self._read, INCIDENTS, workspace)
        if len(entries) > MOST_READ_SINGLY:
            read = {row["RowKey"]: row for row in self._all_open(workspace)}.get
        with deadline.InheritingThreadPool(READERS) as pool:
            incidents = list(pool.map(partial(self._open_incident, read), entries))
        return [incident for incident in incidents if incident]

    def _open_incident(self, read: Callable[[str], Row | None], entry: Row) -> Incident | None:
        """The incident of an index row; None where it is not open any more, and the index row goes.

        It goes only if unchanged since it was listed, before the incident was read: whoever opens it again writes anew.
        """
        row = read(entry["incident_key"])
        if row and row["is_open"]:
            return incident_from(row)
        self._delete(INCIDENTS, entry)
        return None

    def _compare_index(self, workspace: str) -> None:
        """Index what is open and was written by a version of the agent that knew no index: now and then."""
        now = datetime.now(UTC)
        last = self._read(STATE, "open-index", workspace)
        if last and last["at"] > time_text(now - COMPARED_AGAIN_AFTER):
            return
        indexed = {entry["incident_key"] for entry in self._index(workspace)}
        for row in self._all_open(workspace):
            if row["RowKey"] not in indexed:
                self._upsert(INCIDENTS, index_entry(row))
        self._upsert(STATE, new_row("open-index", workspace, at=time_text(now)))

    def _index(self, workspace: str) -> list[Row]:
        entries = "PartitionKey eq @workspace and RowKey ge 'open-' and RowKey lt 'open.'"  # `.` comes after `-`
        return self._query(INCIDENTS, entries, workspace=workspace)

    def _all_open(self, workspace: str) -> list[Row]:
        return self._query(INCIDENTS, "PartitionKey eq @workspace and is_open eq true", workspace=workspace)

    def closed_incidents(self, workspace: str, *, updated_after: datetime) -> list[Incident]:
        closed = "PartitionKey eq @workspace and is_open eq false and updated_at gt @after"
        rows = self._query(INCIDENTS, closed, workspace=workspace, after=time_text(updated_after))
        return [incident_from(row) for row in rows]

    def record(self, event: Event) -> None:
        self._upsert(EVENTS, row_of_event(event))

    def events(self, workspace: str, run_id: int) -> list[Event]:
        rows = self._query(EVENTS, "PartitionKey eq @incident", incident=f"{workspace}:{run_id}")
        return sorted((value_from(row, _EVENT) for row in rows), key=lambda event: (event.at, event.kind))

    def record_rejected(self, *, queue: str, message_id: str, reason: str, body_sha256: str, at: datetime) -> None:
        key = hashlib.sha256(f"{queue}\n{message_id}\n{body_sha256}".encode()).hexdigest()
        rejected = {"queue": queue, "message_id": message_id, "reason": reason, "body_sha256": body_sha256}
        self._upsert(STATE, new_row("rejected", key, at=time_text(at), **rejected))

    def read_safeguards(self, workspace: str) -> Safeguards:
        row = self._read(STATE, "safeguards", workspace)
        return unpacked(row, _SAFEGUARDS) if row else Safeguards(workspace)

    def save_safeguards(self, state: Safeguards) -> Safeguards:
        row = packed_row("safeguards", state.workspace, state, _SAFEGUARDS)
        return self._save(STATE, row, state, lambda stored: unpacked(stored, _SAFEGUARDS))

    def read_mail_book(self, workspace: str) -> MailBook:
        row = self._read(STATE, "mail-book", workspace)
        return unpacked(row, _MAIL_BOOK) if row else MailBook(workspace)

    def save_mail_book(self, book: MailBook) -> MailBook:
        row = packed_row("mail-book", book.workspace, book, _MAIL_BOOK)
        return self._save(STATE, row, book, lambda stored: unpacked(stored, _MAIL_BOOK))

    def read_lease(self, workspace: str, job_id: int) -> Lease | None:
        row = self._read(STATE, f"lease:{workspace}", key_of(job_id))
        return unpacked(row, _LEASE) if row else None

    def save_lease(self, lease: Lease) -> Lease:
        key = key_of(lease.job_id)
        row = packed_row(f"lease:{lease.workspace}", key, lease, _LEASE, is_followed=lease.is_followed)
        return self._save(STATE, row, lease, lambda stored: unpacked(stored, _LEASE))

    def open_leases(self, workspace: str) -> list[Lease]:
        return [lease for lease in self.followed_leases(workspace) if lease.state is not LeaseState.CLOSED]

    def followed_leases(self, workspace: str) -> list[Lease]:
        # One row per job, so there is no index. A version before called the property `is_open`.
        followed = "PartitionKey eq @leases and (is_followed eq true or is_open eq true)"
        rows = self._query(STATE, followed, leases=f"lease:{workspace}")
        return [unpacked(row, _LEASE) for row in rows]

    def read_experience(self, workspace: str, fingerprint: str) -> Experience:
        row = self._read(STATE, f"experience:{workspace}", fingerprint)
        return unpacked(row, _EXPERIENCE) if row else Experience(workspace, fingerprint)

    def save_experience(self, known: Experience) -> Experience:
        row = packed_row(f"experience:{known.workspace}", known.fingerprint, known, _EXPERIENCE)
        return self._save(STATE, row, known, lambda stored: unpacked(stored, _EXPERIENCE))

    def read_token_meter(self, day: str) -> TokenMeter:
        row = self._read(STATE, "token-meter", day)
        return unpacked(row, _TOKEN_METER) if row else TokenMeter(day)

    def save_token_meter(self, meter: TokenMeter) -> TokenMeter:
        row = packed_row("token-meter", meter.day, meter, _TOKEN_METER)
        return self._save(STATE, row, meter, lambda stored: unpacked(stored, _TOKEN_METER))

    def read_pause(self) -> Pause:
        row = self._read(STATE, "agent", "pause")
        return value_from(row, _PAUSE) if row else Pause(paused=False)

    def save_pause(self, pause: Pause) -> None:
        self._upsert(STATE, new_row("agent", "pause", body=json_of(pause, _PAUSE), paused=pause.paused))

    def delete_older_than(self, workspace: str, before: datetime, *, limit: int) -> int:
        rows = islice(self._old_rows(workspace, before, limit), limit)
        return sum(self._delete(table, row) for table, row in rows)

    def _old_rows(self, workspace: str, before: datetime, limit: int) -> Iterator[tuple[str, Row]]:
        """Rows to delete, each with its table. An incident comes after all that belongs to it, so that this is found.

        Open incidents are not asked for; one that opens again this very moment keeps its row (and loses old events).
        """
        time = time_text(before)
        closed = "PartitionKey eq @workspace and is_open eq false and updated_at lt @before"
        for row in self._rows(INCIDENTS, closed, {"workspace": workspace, "before": time}, limit):
            incident = incident_from(row)
            for event in self._query(EVENTS, "PartitionKey eq @events", events=f"{workspace}:{incident.run_id}"):
                yield EVENTS, event
            for run_id in linked_runs(incident):
                link = self._read(INCIDENTS, workspace, f"link-{key_of(run_id)}")
                if link and link["incident_key"] == row["RowKey"]:
                    yield INCIDENTS, link
            yield INCIDENTS, row
        of_no_run = "PartitionKey ge @first and PartitionKey lt @end and RowKey lt @before"  # audits: ids below zero
        below_zero = {"first": f"{workspace}:-", "end": f"{workspace}:."}
        for event in self._rows(EVENTS, of_no_run, below_zero | {"before": time}, limit):
            yield EVENTS, event
        for row in self._rows(STATE, "PartitionKey eq @leases", {"leases": f"lease:{workspace}"}, limit):
            if ended_before(unpacked(row, _LEASE), before):
                yield STATE, row
        for row in self._rows(STATE, "PartitionKey eq 'rejected' and at lt @before", {"before": time}, limit):
            yield STATE, row
        days = "PartitionKey eq 'token-meter' and RowKey lt @day"
        for row in self._rows(STATE, days, {"day": f"{before.astimezone(UTC):%Y-%m-%d}"}, limit):
            yield STATE, row

    def _read(self, table: str, partition_key: str, row_key: str) -> Row | None:
        from azure.core.exceptions import ResourceNotFoundError
        from azure.data.tables import TableErrorCode

        with translated_errors(f"reading {row_key} of {partition_key} in table {table}"):
            try:
                entity = self._table(table).get_entity(partition_key, row_key)
            except ResourceNotFoundError as error:
                # A table that was deleted must not look like a history in which nothing has happened yet.
                if getattr(error, "error_code", None) == TableErrorCode.TABLE_NOT_FOUND:
                    raise
                return None
        return checked(dict(entity) | {"etag": entity.metadata["etag"]})

    def _query(self, table: str, query: str, **parameters: str) -> list[Row]:
        return list(self._rows(table, query, parameters))

    def _rows(self, table: str, query: str, parameters: Mapping[str, str], page: int | None = None) -> Iterator[Row]:
        """Rows as they are asked for; `page` = so many per request, None = as many as the service gives (1,000)."""
        with translated_errors(f"querying table {table}"):
            found = self._table(table).query_entities(query, parameters=dict(parameters), results_per_page=page)
            for entity in found:
                yield checked(dict(entity) | {"etag": entity.metadata["etag"]})

    def _upsert(self, table: str, row: Row) -> None:
        from azure.data.tables import UpdateMode

        with translated_errors(f"writing {row['RowKey']} of {row['PartitionKey']} in table {table}"):
            self._table(table).upsert_entity(row, UpdateMode.REPLACE)

    def _delete(self, table: str, row: Row) -> bool:
        """Delete the row unless it was changed since it was read. Whether it was deleted."""
        from azure.core import MatchConditions
        from azure.core.exceptions import ResourceModifiedError, ResourceNotFoundError

        with translated_errors(f"deleting {row['RowKey']} of {row['PartitionKey']} in table {table}"):
            keys = row["PartitionKey"], row["RowKey"]
            unchanged = MatchConditions.IfNotModified
            try:
                self._table(table).delete_entity(*keys, etag=row["etag"], match_condition=unchanged)
            except (ResourceModifiedError, ResourceNotFoundError):
                return False
        return True

    def _save[T: (Incident, Safeguards, MailBook, Lease, Experience, TokenMeter)](
        self, table: str, row: Row, value: T, value_of: Callable[[Row], T], entry: Row | None = None
    ) -> T:
        """Insert or replace the value, whose row is given, with its index row; `value_of` is how a row is read back."""
        etag = self._write(table, row, value.etag, entry)
        if etag is None:
            stored = self._read(table, row["PartitionKey"], row["RowKey"])
            written = value_of(row | {"etag": value.etag})
            etag = own_earlier_write(written, value_of(stored) if stored else None).etag
        return replace(value, etag=etag)

    def _write(self, table: str, row: Row, etag: str, entry: Row | None = None) -> str | None:
        """Insert (etag empty) or replace if unchanged. The new etag; None where the row is not as the etag says.

        An index row is upserted in one transaction with it: both are written, or none.
        """
        from azure.core import MatchConditions
        from azure.core.exceptions import ResourceExistsError, ResourceModifiedError, ResourceNotFoundError
        from azure.data.tables import TableTransactionError, UpdateMode

        refusals = (ResourceModifiedError, ResourceNotFoundError) if etag else (ResourceExistsError,)
        with translated_errors(f"writing {row['RowKey']} of {row['PartitionKey']} in table {table}"):
            client = self._table(table)
            unchanged = MatchConditions.IfNotModified
            try:
                if entry:
                    upsert = ("upsert", entry, {"mode": UpdateMode.REPLACE})
                    condition = {"mode": UpdateMode.REPLACE, "etag": etag, "match_condition": unchanged}
                    write = ("update", row, condition) if etag else ("create", row)
                    # The client repeats no POST by itself; this one is guarded, so that it may.
                    _, answer = client.submit_transaction([upsert, write], retry_on_methods=("POST",))
                elif etag:
                    answer = client.update_entity(row, UpdateMode.REPLACE, etag=etag, match_condition=unchanged)
                else:
                    answer = client.create_entity(row)
            except refusals:
                return None
            except TableTransactionError as error:  # the same refusals, without classes of their own
                if error.status_code in (404, 409, 412):
                    return None
                raise
        return str(answer["etag"])

    def _table(self, name: str) -> "TableClient":
        """The client of a table, which is created once per process if need be."""
        with self._lock:
            if name not in self._tables:
                full_name = f"{self._settings.table_prefix}{name}"
                self._tables[name] = self._service.create_table_if_not_exists(full_name)
            return self._tables[name]

    @cached_property
    def _service(self) -> "TableServiceClient":
        """The client of the account.

        An answer that asks for a pause is not waited for: with `retry_status` above 0, the SDK would sleep for however
        long Retry-After says. Reads and replacements whose connection broke are tried again within two seconds.
        """
        from azure.data.tables import TableServiceClient

        limits: dict[str, Any] = {
            "retry_total": RETRIES,
            "retry_status": 0,
            "connection_timeout": TIMEOUT_SECONDS,
            "read_timeout": TIMEOUT_SECONDS,
            "raw_request_hook": deadline.bound_azure_requests(TIMEOUT_SECONDS),
        }
        settings = self._settings
        if not settings.tables_connection_string:
            from azure.identity import DefaultAzureCredential

            credential = DefaultAzureCredential(managed_identity_client_id=settings.azure_client_id or None)
            return TableServiceClient(settings.tables_endpoint, credential=credential, **limits)
        try:
            return TableServiceClient.from_connection_string(settings.tables_connection_string, **limits)
        except ValueError as error:  # it says what is missing, never the key
            raise ConfigurationError(
                f"TABLES_CONNECTION_STRING is not a connection string: {error}", names=("TABLES_CONNECTION_STRING",)
            ) from None


def new_row(partition_key: str, row_key: str, **properties: object) -> Row:
    return {"PartitionKey": partition_key, "RowKey": row_key, "schema_version": SCHEMA_VERSION} | properties


def checked(row: Row) -> Row:
    """The row itself; raises StoreRefusedError where another version of the agent wrote it."""
    if row.get("schema_version") != SCHEMA_VERSION:
        raise StoreRefusedError(
            f"{name_of(row)} has schema version {row.get('schema_version')}, not {SCHEMA_VERSION}: "
            "run the version of the agent that wrote it"
        )
    return row


def name_of(row: Row) -> str:
    return f"row {row['RowKey']} of partition {row['PartitionKey']}"


def json_of[T](value: T, adapter: TypeAdapter[T]) -> str:
    return json.dumps(adapter.dump_python(value, mode="json"), ensure_ascii=False)


def value_from[T](row: Row, adapter: TypeAdapter[T]) -> T:
    try:
        return adapter.validate_python(json.loads(row["body"]))
    except (KeyError, ValueError) as error:
        raise StoreRefusedError(f"{name_of(row)} is damaged: its body is not the expected JSON") from error


def key_of(number: int) -> str:
    """Row keys are ordered as text, hence the zeros. Ids of runs and jobs are 64-bit numbers, at most 19 digits."""
    return f"{number:020d}"


def time_text(time: datetime) -> str:
    """UTC to the microsecond, always of one length, so that text order is time order."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def row_of_incident(incident: Incident) -> Row:
    """The excerpt gets a property of its own, since it alone can be large."""
    decision = incident.decision
    bare = replace(incident, etag="", decision=replace(decision, excerpt="") if decision else None)
    return new_row(
        incident.workspace,
        key_of(incident.run_id),
        body=json_of(bare, _INCIDENT),
        excerpt=fitting_lines(decision.excerpt) if decision else "",
        state=str(incident.state),
        is_open=not incident.state.is_terminal,
        job_id=str(incident.job_id or ""),
        failure_id=incident.failure_id,
        fingerprint=decision.fingerprint if decision else "",
        decision=str(decision.decision) if decision else "",
        updated_at=time_text(incident.updated_at),
    )


def index_entry(row: Row) -> Row:
    """The index row of an incident's row."""
    return new_row(row["PartitionKey"], f"open-{row['RowKey']}", incident_key=row["RowKey"])


def incident_from(row: Row) -> Incident:
    bare = value_from(row, _INCIDENT)
    decision = replace(bare.decision, excerpt=row["excerpt"]) if bare.decision else None
    return replace(bare, etag=row["etag"], decision=decision)


def fitting_lines(text: str) -> str:
    """As many whole lines of the text as one string property holds."""
    if len(text) * 2 <= MAX_STRING_UNITS:  # no character takes more than two units
        return text
    lines = text.splitlines(keepends=True)
    sizes = accumulate(len(line.encode("utf-16-le", "surrogatepass")) // 2 for line in lines)
    return "".join(line for line, size in zip(lines, sizes, strict=True) if size <= MAX_STRING_UNITS)


def row_of_event(event: Event) -> Row:
    """The row key holds only characters that keys may have; a hash tells apart kinds that then look alike."""
    kind = re.sub(r"[^A-Za-z0-9_.-]", "_", event.kind)[:64]
    key = f"{time_text(event.at)}-{kind}-{hashlib.sha256(event.kind.encode()).hexdigest()[:8]}"
    return new_row(f"{event.workspace}:{event.run_id}", key, body=json_of(event, _EVENT), kind=event.kind)


def packed_row[T](partition_key: str, row_key: str, value: T, adapter: TypeAdapter[T], **properties: object) -> Row:
    """A row for a value that may be large: tens of thousands of run ids fit, in as many binary properties as needed."""
    packed = zlib.compress(json_of(value, adapter).encode(errors="surrogatepass"))
    parts = [packed[start : start + MAX_BINARY_BYTES] for start in range(0, len(packed), MAX_BINARY_BYTES)]
    binaries = {f"part_{number}": part for number, part in enumerate(parts)}
    return new_row(partition_key, row_key, parts=len(parts), **properties, **binaries)


def unpacked[T: (ScanState, Safeguards, MailBook, Lease, Experience, TokenMeter)](
    row: Row, adapter: TypeAdapter[T]
) -> T:
    try:
        packed = b"".join(row[f"part_{number}"] for number in range(row["parts"]))
        text = zlib.decompress(packed).decode(errors="surrogatepass")
        return replace(adapter.validate_python(json.loads(text)), etag=row["etag"])
    except (KeyError, ValueError, zlib.error) as error:
        raise StoreRefusedError(f"{name_of(row)} is damaged: its parts are not the expected JSON") from error


@contextmanager
def translated_errors(doing: str) -> Iterator[None]:
    """Turn the client's exceptions into ours; `doing` is what was being done, for the message."""
    from azure.core.exceptions import AzureError

    try:
        yield
    except AzureError as error:
        raise translated(error, doing) from error


def translated(error: "AzureError", doing: str) -> AgentError:
    """Our error for one of the client's. Never quotes an answer's body beyond the service's own error code."""
    from azure.core.exceptions import (
        ClientAuthenticationError,
        HttpResponseError,
        IncompleteReadError,
        ServiceRequestError,
        ServiceResponseError,
    )

    if isinstance(error, (ServiceRequestError, ServiceResponseError, IncompleteReadError)):
        return TransientError(f"{doing}: Azure Tables did not answer ({type(error).__name__})")
    status = error.status_code if isinstance(error, HttpResponseError) else None
    code = str(getattr(error, "error_code", None) or type(error).__name__)
    if isinstance(error, ClientAuthenticationError) or status in (401, 403):
        return StoreNotAuthorisedError(
            f"{doing}: Azure Tables refused the identity ({status}, {code}): "
            "give it the role Storage Table Data Contributor"
        )
    if isinstance(error, HttpResponseError) and status in (429, 503):
        seconds = retry_after_of(error.response)
        return ThrottledError(f"{doing}: Azure Tables is busy ({status}, {code})", retry_after_seconds=seconds)
    if status is not None and (status == 408 or status >= 500):
        return TransientError(f"{doing}: Azure Tables failed ({status}, {code})")
    return StoreRefusedError(f"{doing}: Azure Tables refused ({status}, {code})")
