"""What the use cases need from outside, named for the capability. Adapters and the tests' fakes both fit these."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from shared.domain import (
    Diagnosis,
    DigestMail,
    EscalationMail,
    Event,
    Evidence,
    Incident,
    Json,
    Lease,
    NewerRun,
    Pause,
    RunFacts,
    RunState,
    RunSummary,
    ScanState,
)
from shared.mail_groups import MailBook
from shared.triage.experience import Experience, TokenMeter
from shared.triage.safeguards import Safeguards


class JobRuns(Protocol):
    """Runs of Databricks jobs, in one or more workspaces.

    Every method raises TransientError or ThrottledError where the workspace cannot answer now, NotAuthorisedError where
    the identity lacks a right, RunNotFoundError where the run or job is gone.
    """

    @property
    def workspaces(self) -> tuple[str, ...]:
        """Short stable names of the workspaces, as used in failure ids."""
        ...

    def active_runs(self, workspace: str) -> list[RunSummary]:
        """All runs that are active now: ceil(n / 25) calls, at least one."""
        ...

    def completed_runs(self, workspace: str, *, started_after: datetime) -> list[RunSummary]:
        """Completed runs that started at or after the time: ceil(n / 25) calls, at least one."""
        ...

    def read_state(self, workspace: str, run_id: int) -> RunState:
        """One run with its repair history: one call (two for a run of more than 100 tasks)."""
        ...

    def read_facts(self, workspace: str, run_id: int) -> RunFacts:
        """Everything about a failed run: its root-cause tasks with their output and cluster, its job, newer runs."""
        ...

    def repair_run(
        self,
        workspace: str,
        run_id: int,
        *,
        latest_repair_id: int | None,
        job_parameters: Mapping[str, str],
        legacy_parameters: Mapping[str, object],
        performance_target: str | None = None,
    ) -> int:
        """Rerun all failed tasks and what depends on them; the repair id.

        `latest_repair_id` is a compare-and-swap; `performance_target` is for serverless tasks, None = as the job has
        it. Raises RepairRefusedError where the run has changed since (or is
        active), RepairImpossibleError where it can never be repaired, OutcomeUnknownError where no answer came.
        """
        ...

    def run_now(
        self,
        workspace: str,
        job_id: int,
        *,
        token: str,
        job_parameters: Mapping[str, str],
        performance_target: str | None = None,
    ) -> int:
        """Start a new run of the job; its run id. The same token gives the same run, however often it is sent."""
        ...

    def newer_runs(self, workspace: str, job_id: int, *, started_after: datetime) -> tuple[NewerRun, ...]:
        """Runs of the job that started after the time, the newest 25: one call."""
        ...

    def job_tags(self, workspace: str, job_id: int) -> Mapping[str, str]:
        """The job's tags as they are now: one call."""
        ...

    def job_settings(self, workspace: str, job_id: int) -> Json:
        """The job's settings as they are now, as raw JSON with nothing lost: ceil(n / 100) calls for n tasks."""
        ...

    def update_job(self, workspace: str, job_id: int, *, new_settings: Json, fields_to_remove: Sequence[str]) -> None:
        """Change the job: top-level fields are replaced whole; `tasks` and `job_clusters` are merged by their key.

        `fields_to_remove` are names of top-level fields. Raises PermanentError where Databricks refuses (a cluster
        policy, a wrong value), OutcomeUnknownError where no answer came: the update may have landed or may still land.
        """
        ...


class Diagnoser(Protocol):
    """A language model that chooses from closed lists."""

    def diagnose(self, evidence: Evidence, *, facts: Mapping[str, str]) -> Diagnosis | None:
        """What the model makes of the evidence; None where its answer is void (refused, filtered, broken, unquoted).

        `facts` are trusted short values (task type, termination code, compute kind). Raises TransientError or
        ThrottledError where the model cannot answer now.
        """
        ...


class EmailSender(Protocol):
    """Mail to people."""

    def send(self, mail: EscalationMail | DigestMail) -> None:
        """Hand one mail over. Raises ThrottledError, OutcomeUnknownError, TransientError or PermanentError."""
        ...

    def was_accepted(self, key: str) -> bool:
        """Whether the mail with that key was handed over earlier, as the service itself remembers. Raises as `send`."""
        ...


@dataclass(frozen=True, slots=True)
class OutgoingMessage:
    """A message on its way to a queue. `due` None = at once; `properties` are application properties (str or int32)."""

    body: str
    message_id: str
    due: datetime | None = None
    properties: Mapping[str, str | int] = field(default_factory=dict)


class ActionQueues(Protocol):
    """The queues between the steps."""

    def send(self, queue: str, messages: Sequence[OutgoingMessage]) -> None:
        """Send all, or raise TransientError; a part may have been accepted, so ids must make a repetition harmless.

        A refusal is one of these too, StoreRefusedError: whatever the queues answer, it is no answer of Databricks.
        """
        ...


class DecisionHistory(Protocol):
    """The authority on what was decided and done. Raises TransientError where it cannot be reached, StoreRefusedError
    (a TransientError too) where it refuses: without it nothing can be done, so steps wait for it whatever it answers.

    Writes are guarded by ETags. A refused write (409, 412) whose stored row carries the `write_guid` of the value just
    written is our own write that an earlier try had made: it counts as success. Any other refusal is ConflictError.
    """

    def read_scan(self, workspace: str) -> ScanState | None: ...

    def save_scan(self, scan: ScanState) -> ScanState:
        """Insert (etag empty) or replace; the value with its new etag."""
        ...

    def read_incident(self, workspace: str, run_id: int) -> Incident | None:
        """The incident of that run, also where the run is a run-now retry of the incident's first run."""
        ...

    def save_incident(self, incident: Incident) -> Incident:
        """Insert if absent (etag empty) or replace if unchanged; the value with its new etag."""
        ...

    def link_run(self, workspace: str, run_id: int, *, incident_run_id: int) -> None:
        """Make `run_id` (a run-now retry) lead to the incident. Idempotent."""
        ...

    def open_incidents(self, workspace: str) -> list[Incident]:
        """All incidents that are not in a terminal state."""
        ...

    def closed_incidents(self, workspace: str, *, updated_after: datetime) -> list[Incident]:
        """Incidents in a terminal state that changed after the time."""
        ...

    def record(self, event: Event) -> None:
        """Keep what happened. Idempotent per (workspace, run id, time, kind)."""
        ...

    def events(self, workspace: str, run_id: int) -> list[Event]:
        """What happened to an incident, oldest first."""
        ...

    def record_rejected(self, *, queue: str, message_id: str, reason: str, body_sha256: str, at: datetime) -> None:
        """Keep why a message was not understood, before it goes to the dead-letter queue. Never its body."""
        ...

    def read_safeguards(self, workspace: str) -> Safeguards:
        """The workspace's safeguards; fresh ones (etag empty) where none are stored."""
        ...

    def save_safeguards(self, state: Safeguards) -> Safeguards: ...

    def read_mail_book(self, workspace: str) -> MailBook:
        """The workspace's mail book; a fresh one (etag empty) where none is stored."""
        ...

    def save_mail_book(self, book: MailBook) -> MailBook: ...

    def read_lease(self, workspace: str, job_id: int) -> Lease | None:
        """The job's latest lease, closed or not."""
        ...

    def save_lease(self, lease: Lease) -> Lease: ...

    def open_leases(self, workspace: str) -> list[Lease]:
        """All leases that are not closed."""
        ...

    def followed_leases(self, workspace: str) -> list[Lease]:
        """The open ones, and closed ones whose job is looked at again because an update had no answer."""
        ...

    def read_experience(self, workspace: str, fingerprint: str) -> Experience:
        """What is known of a cause; a fresh one (etag empty) where nothing is."""
        ...

    def save_experience(self, known: Experience) -> Experience: ...

    def read_token_meter(self, day: str) -> TokenMeter:
        """The day's meter; a fresh one (etag empty) where nothing was used."""
        ...

    def save_token_meter(self, meter: TokenMeter) -> TokenMeter: ...

    def delete_older_than(self, workspace: str, before: datetime, *, limit: int) -> int:
        """Delete at most so many rows that ended before the time; how many were deleted. Experience stays.

        Of the workspace: incidents in a terminal state that last changed before it, with their links and events; events
        of no run (audits); leases that are closed and not followed. Of all workspaces: rejected messages, token meters.
        A row that is changed meanwhile stays, so that an incident that opens again does.
        """
        ...

    def read_pause(self) -> Pause: ...

    def save_pause(self, pause: Pause) -> None: ...
