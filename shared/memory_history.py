"""The history in memory, for as long as the process lives; and what both histories mean by their own and by old."""

import threading
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import count, islice
from typing import Any

from shared.domain import AttemptKind, Event, Incident, Lease, LeaseState, Pause, ScanState
from shared.errors import ConflictError
from shared.mail_groups import MailBook
from shared.triage.experience import Experience, TokenMeter
from shared.triage.safeguards import Safeguards


@dataclass(frozen=True, slots=True)
class RejectedMessage:
    """Why a message was not understood; never its body."""

    queue: str
    message_id: str
    reason: str
    body_sha256: str
    at: datetime


class InMemoryDecisionHistory:
    """A history that lives as long as the process: for passes over a workspace without Azure Tables, and for tests."""

    def __init__(self) -> None:
        self.rejected: dict[tuple[str, str, str], RejectedMessage] = {}
        self._lock = threading.Lock()
        self._etags = count(1)
        self._scans: dict[str, ScanState] = {}
        self._incidents: dict[tuple[str, int], Incident] = {}
        self._links: dict[tuple[str, int], int] = {}
        self._safeguards: dict[str, Safeguards] = {}
        self._mail_books: dict[str, MailBook] = {}
        self._leases: dict[tuple[str, int], Lease] = {}
        self._experience: dict[tuple[str, str], Experience] = {}
        self._token_meters: dict[str, TokenMeter] = {}
        self._events: dict[tuple[str, int, datetime, str], Event] = {}
        self._pause = Pause(paused=False)

    def read_scan(self, workspace: str) -> ScanState | None:
        return self._scans.get(workspace)

    def save_scan(self, scan: ScanState) -> ScanState:
        with self._lock:
            stored = self._scans.get(scan.workspace)
            if (stored.etag if stored else "") != scan.etag:
                raise ConflictError(f"the scan state of workspace {scan.workspace} was changed by somebody else")
            saved = replace(scan, etag=self._new_etag())
            self._scans[scan.workspace] = saved
            return saved

    def read_incident(self, workspace: str, run_id: int) -> Incident | None:
        with self._lock:
            own = self._incidents.get((workspace, run_id))
            return own or self._incidents.get((workspace, self._links.get((workspace, run_id), run_id)))

    def save_incident(self, incident: Incident) -> Incident:
        return self._save(self._incidents, (incident.workspace, incident.run_id), incident)

    def _save[K, T: (Incident, Safeguards, MailBook, Lease, Experience, TokenMeter)](
        self, rows: dict[K, T], key: K, value: T
    ) -> T:
        with self._lock:
            stored = rows.get(key)
            if (stored.etag if stored else "") != value.etag:
                return own_earlier_write(value, stored)
            saved = replace(value, etag=self._new_etag())
            rows[key] = saved
            return saved

    def link_run(self, workspace: str, run_id: int, *, incident_run_id: int) -> None:
        with self._lock:
            self._links[workspace, run_id] = incident_run_id

    def open_incidents(self, workspace: str) -> list[Incident]:
        return self._incidents_of(workspace, lambda incident: not incident.state.is_terminal)

    def closed_incidents(self, workspace: str, *, updated_after: datetime) -> list[Incident]:
        return self._incidents_of(
            workspace, lambda incident: incident.state.is_terminal and incident.updated_at > updated_after
        )

    def _incidents_of(self, workspace: str, is_wanted: Callable[[Incident], bool]) -> list[Incident]:
        with self._lock:
            incidents = [i for (of, _), i in self._incidents.items() if of == workspace and is_wanted(i)]
        return sorted(incidents, key=lambda incident: incident.run_id)

    def record(self, event: Event) -> None:
        with self._lock:
            self._events[event.workspace, event.run_id, event.at, event.kind] = event

    def events(self, workspace: str, run_id: int) -> list[Event]:
        with self._lock:
            found = [event for event in self._events.values() if (event.workspace, event.run_id) == (workspace, run_id)]
        return sorted(found, key=lambda event: (event.at, event.kind))

    def record_rejected(self, *, queue: str, message_id: str, reason: str, body_sha256: str, at: datetime) -> None:
        with self._lock:
            rejected = RejectedMessage(queue, message_id, reason, body_sha256, at)
            self.rejected[queue, message_id, body_sha256] = rejected

    def read_safeguards(self, workspace: str) -> Safeguards:
        return self._safeguards.get(workspace, Safeguards(workspace))

    def save_safeguards(self, state: Safeguards) -> Safeguards:
        return self._save(self._safeguards, state.workspace, state)

    def read_mail_book(self, workspace: str) -> MailBook:
        return self._mail_books.get(workspace, MailBook(workspace))

    def save_mail_book(self, book: MailBook) -> MailBook:
        return self._save(self._mail_books, book.workspace, book)

    def read_lease(self, workspace: str, job_id: int) -> Lease | None:
        return self._leases.get((workspace, job_id))

    def save_lease(self, lease: Lease) -> Lease:
        return self._save(self._leases, (lease.workspace, lease.job_id), lease)

    def open_leases(self, workspace: str) -> list[Lease]:
        return [lease for lease in self.followed_leases(workspace) if lease.state is not LeaseState.CLOSED]

    def followed_leases(self, workspace: str) -> list[Lease]:
        with self._lock:
            leases = [lease for (of, _), lease in self._leases.items() if of == workspace and lease.is_followed]
        return sorted(leases, key=lambda lease: lease.job_id)

    def read_experience(self, workspace: str, fingerprint: str) -> Experience:
        return self._experience.get((workspace, fingerprint), Experience(workspace, fingerprint))

    def save_experience(self, known: Experience) -> Experience:
        return self._save(self._experience, (known.workspace, known.fingerprint), known)

    def read_token_meter(self, day: str) -> TokenMeter:
        return self._token_meters.get(day, TokenMeter(day))

    def save_token_meter(self, meter: TokenMeter) -> TokenMeter:
        return self._save(self._token_meters, meter.day, meter)

    def read_pause(self) -> Pause:
        return self._pause

    def save_pause(self, pause: Pause) -> None:
        self._pause = pause

    def delete_older_than(self, workspace: str, before: datetime, *, limit: int) -> int:
        with self._lock:
            old = list(islice(self._old_rows(workspace, before), limit))
            for rows, key in old:
                del rows[key]
        return len(old)

    def _old_rows(self, workspace: str, before: datetime) -> Iterator[tuple[MutableMapping[Any, Any], object]]:
        """Keys to delete, each with what it is in. What belongs to an incident comes before it."""
        for (of, run_id), incident in self._incidents.items():
            if of == workspace and incident.state.is_terminal and incident.updated_at < before:
                yield from ((self._events, key) for key in self._events if key[:2] == (workspace, run_id))
                links = ((workspace, linked) for linked in linked_runs(incident))
                yield from ((self._links, link) for link in links if self._links.get(link) == run_id)
                yield self._incidents, (workspace, run_id)
        for event_key in self._events:
            of, run_id, at, _ = event_key
            if of == workspace and run_id < 0 and at < before:  # audits: of no run
                yield self._events, event_key
        for lease_key, lease in self._leases.items():
            if lease_key[0] == workspace and ended_before(lease, before):
                yield self._leases, lease_key
        yield from ((self.rejected, key) for key, rejected in self.rejected.items() if rejected.at < before)
        today = f"{before.astimezone(UTC):%Y-%m-%d}"
        yield from ((self._token_meters, day) for day in self._token_meters if day < today)

    def _new_etag(self) -> str:
        return f"memory-{next(self._etags)}"


def own_earlier_write[T: (Incident, Safeguards, MailBook, Lease, Experience, TokenMeter)](
    value: T, stored: T | None
) -> T:
    """The stored value, where a refused write had in truth landed before; else raises ConflictError.

    A lost answer makes a client send a write twice, and the second one is refused because of the first (Azure SDK for
    .NET, issue 39146). The write's guid tells it from somebody else's; the rest is compared too, so that a guid which
    was not renewed cannot pass another value off as ours.
    """
    if stored is not None and value.write_guid and replace(stored, etag=value.etag) == value:
        return stored
    raise ConflictError(f"{described(value)} was changed by somebody else: read it again")


def ended_before(lease: Lease, before: datetime) -> bool:
    """Whether nothing is to be done about a lease any more, and nothing was since that time."""
    return not lease.is_followed and (lease.looked_at or lease.restored_at or lease.planned_at) < before


def linked_runs(incident: Incident) -> list[int]:
    """The runs that lead to an incident, as far as it knows them."""
    started = (a.effect_id for a in incident.attempts if a.kind is AttemptKind.RUN_NOW and a.effect_id)
    return sorted({incident.watched_run_id, *started} - {incident.run_id})


def described(value: Incident | Safeguards | MailBook | Lease | Experience | TokenMeter) -> str:
    match value:
        case Incident():
            return f"the incident of run {value.run_id} in workspace {value.workspace}"
        case Lease():
            return f"the lease of job {value.job_id} in workspace {value.workspace}"
        case Safeguards():
            return f"the state of the safeguards of workspace {value.workspace}"
        case MailBook():
            return f"the mail book of workspace {value.workspace}"
        case Experience():
            return f"the experience with cause {value.fingerprint} in workspace {value.workspace}"
        case TokenMeter():
            return f"the token meter of {value.day}"
