"""The values that the agent thinks in. Frozen, no vendor types, no clock, no I/O.

Words are Databricks' own: a *run* of a job has *task runs*; a *repair* reruns failed tasks of the same run.
An *incident* is a failed run with all its attempts; an *attempt* is one retry of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, NewType

type Json = dict[str, Any]

FailureId = NewType("FailureId", str)

ORIGINAL = "original"
UNREAD = "unread-"


def failure_id_of(workspace: str, run_id: int, latest_repair_id: int | None) -> FailureId:
    """Identity of one failure: the same run failing again after a repair is another failure."""
    return FailureId(f"{workspace}:{run_id}:{latest_repair_id or ORIGINAL}")


def unread_failure_id(workspace: str, run_id: int, ended_at: datetime | None) -> FailureId:
    """Identity of a failure whose repairs may not be read: its end tells it from the run's others. None = not known."""
    end = int(ended_at.timestamp() * 1000) if ended_at else 0
    return FailureId(f"{workspace}:{run_id}:{UNREAD}{end}")


def is_unread(failure_id: FailureId) -> bool:
    """Whether it is the identity of a failure whose repairs could not be read."""
    return failure_id.rpartition(":")[2].startswith(UNREAD)


class DecisionKind(StrEnum):
    """What the agent does about a failure (DESIGN §1)."""

    RETRY = "RETRY"
    RETRY_WITH_PARAMS = "RETRY_WITH_PARAMS"
    ESCALATE_EMAIL = "ESCALATE_EMAIL"
    SKIP = "SKIP"

    @property
    def is_retry(self) -> bool:
        return self in (DecisionKind.RETRY, DecisionKind.RETRY_WITH_PARAMS)


class Category(StrEnum):
    """Kind of cause. A closed list: the model may only choose from it."""

    DRIVER_MEMORY = "driver_memory"
    WORKER_MEMORY = "worker_memory"
    DISK = "disk"
    TIMEOUT = "timeout"
    SPARK_LIMIT = "spark_limit"
    CAPACITY = "capacity"
    SPOT_LOSS = "spot_loss"
    QUOTA = "quota"
    THROTTLED = "throttled"
    PLATFORM = "platform"
    NETWORK = "network"
    REMOTE_SERVICE = "remote_service"
    CONCURRENCY = "concurrency"
    CODE = "code"
    DATA = "data"
    SCHEMA = "schema"
    NOT_FOUND = "not_found"
    PERMISSION = "permission"
    CONFIGURATION = "configuration"
    LIBRARY = "library"
    CANCELLED = "cancelled"
    SUPERSEDED = "superseded"
    NEVER_RAN = "never_ran"
    UNKNOWN = "unknown"


class ChangeKind(StrEnum):
    """What a retry may change. A closed list; SPARK_CONF and PARAM carry the name of the setting."""

    WORKER_MEMORY_UP = "worker_memory_up"
    DRIVER_MEMORY_UP = "driver_memory_up"
    MORE_DISK = "more_disk"
    MORE_WORKERS = "more_workers"
    OTHER_NODE_TYPE = "other_node_type"
    AVAILABILITY_ON_DEMAND = "availability_on_demand"
    TIMEOUT_UP = "timeout_up"
    SERVERLESS_MEMORY_UP = "serverless_memory_up"
    SPARK_CONF = "spark_conf"
    PARAM = "param"


@dataclass(frozen=True, slots=True)
class Change:
    """One change that a retry needs. `name`, `value`: SPARK_CONF and PARAM only; `value` None = open."""

    kind: ChangeKind
    name: str = ""
    value: str | None = None

    @property
    def word(self) -> str:
        """`worker_memory_up`, `spark_conf:spark.sql.broadcastTimeout`, `param:batch_size`."""
        return f"{self.kind}:{self.name}" if self.name else str(self.kind)

    @classmethod
    def from_word(cls, word: str, value: str | None = None) -> "Change":
        """Inverse of `word`. Raises ValueError for a word that is not on the closed list."""
        kind, _, name = word.partition(":")
        return cls(ChangeKind(kind), name, value)


@dataclass(frozen=True, slots=True)
class SettingChange:
    """One value that a retry uses instead of another: in the job's settings while it runs, or for the repair alone.

    `change` is what was asked for. `target` is `job_cluster:KEY`, `task:KEY`, `job` (their entry in the job's
    settings), `parameter:NAME` or `repair` (these are sent with the repair, the job is untouched); `path` leads from
    the target to the value. `old` and `new` are raw JSON; None = absent. `why` is one sentence for people.
    `cost_factor` is the price of the compute for the same time by this change alone: 1.0 = the same, 2.0 = double.
    """

    change: Change
    target: str
    path: tuple[str, ...]
    old: Any
    new: Any
    why: str
    cost_factor: float = 1.0

    @property
    def edits_job(self) -> bool:
        """Whether the job's settings must be edited, and put back afterwards."""
        return self.target == "job" or self.target.startswith(("job_cluster:", "task:"))


class ComputeKind(StrEnum):
    """What a task ran on; it settles what can be changed."""

    JOB_CLUSTER = "job_cluster"
    NEW_CLUSTER = "new_cluster"
    POOL = "pool"
    ALL_PURPOSE = "all_purpose"
    SERVERLESS = "serverless"
    SQL_WAREHOUSE = "sql_warehouse"
    PIPELINE = "pipeline"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Symptoms:
    """Everything about one failed task that the triage may look at; all of it untrusted text.

    Codes are the raw strings of the API, unknown values included; None where the API gave none.
    """

    error: str = ""
    error_trace: str = ""
    logs: str = ""
    state_message: str = ""
    termination_code: str | None = None
    termination_type: str | None = None
    result_state: str | None = None
    task_type: str | None = None
    cluster_reason_code: str | None = None
    cluster_reason_type: str | None = None
    cluster_reason_parameters: Mapping[str, str] = field(default_factory=dict)
    cluster_events: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is left of the symptoms once noise is gone: bounded, redacted, whole lines.

    `text` (at most 64 KB) is what rules read; `excerpt` (at most 24,000 characters, mostly far less) is the only text
    that may leave the process (model, mail, dashboard). `causes` are the one-line causes from the outermost to the
    deepest; `error_classes` are like `DELTA_CONCURRENT_APPEND.ROW` (outermost first).
    """

    text: str
    excerpt: str
    causes: tuple[str, ...]
    error_classes: tuple[str, ...]
    sqlstates: tuple[str, ...]
    exception_types: tuple[str, ...]
    user_frame: str | None

    @property
    def deepest_cause(self) -> str:
        return self.causes[-1] if self.causes else ""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What rules, history or the model make of the evidence. `confidence` 0..1.

    `source` is rules | history | model | rules_fallback; the last = the model was wanted, and rules stood in for it.
    """

    category: Category
    recommended: DecisionKind
    reason: str
    confidence: float
    rules: tuple[str, ...]
    changes: tuple[Change, ...] = ()
    source: str = "rules"
    quotes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TaskFailure:
    """A root-cause task run: its latest attempt failed by itself (not because of an upstream task)."""

    task_key: str
    task_run_id: int
    compute: ComputeKind
    symptoms: Symptoms
    cluster_id: str | None = None


@dataclass(frozen=True, slots=True)
class Repair:
    """One REPAIR item of the run's repair history."""

    repair_id: int
    result_state: str | None
    start_time: datetime | None


@dataclass(frozen=True, slots=True)
class JobFacts:
    """The job as it is now. `settings` is the raw JSON: it must never pass through dataclasses on its way back."""

    job_id: int
    name: str
    settings: Json
    tags: Mapping[str, str]
    declared_parameters: Mapping[str, str]
    is_continuous: bool
    is_paused: bool


@dataclass(frozen=True, slots=True)
class NodeType:
    """A kind of machine that the workspace offers. Memory in MB (of 2**20 bytes), local disk in GB (0 = none).

    `is_arm` = another processor architecture, so that native libraries built for x86 do not run on it.
    `is_available` = neither deprecated, hidden, missing in the region nor forbidden by the subscription.
    """

    node_type_id: str
    memory_mb: int
    num_cores: float
    category: str
    num_gpus: int = 0
    is_arm: bool = False
    photon_driver_capable: bool = False
    photon_worker_capable: bool = False
    local_disk_gb: int = 0
    is_available: bool = True


@dataclass(frozen=True, slots=True)
class ClusterPolicy:
    """What a cluster policy says: dotted attributes of a cluster's settings, each with its raw rule."""

    policy_id: str
    name: str
    rules: Mapping[str, Json]


@dataclass(frozen=True, slots=True)
class NewerRun:
    """A run of the same job that started after the failed one."""

    run_id: int
    is_active: bool
    result_state: str | None
    job_parameters: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One row of jobs/runs/list. Times are aware UTC; `end_time` None while the run is active."""

    run_id: int
    job_id: int | None
    is_active: bool
    is_failed: bool
    start_time: datetime
    end_time: datetime | None


@dataclass(frozen=True, slots=True)
class RunState:
    """A run as jobs/runs/get shows it just now, tasks left out. Times are aware UTC."""

    workspace: str
    run_id: int
    job_id: int | None
    name: str
    page_url: str
    run_type: str
    trigger: str
    is_active: bool
    is_failed: bool
    life_cycle_state: str | None
    result_state: str | None
    termination_code: str | None
    termination_type: str | None
    state_message: str
    start_time: datetime
    end_time: datetime | None
    repairs: tuple[Repair, ...]
    job_parameters: Mapping[str, str]
    legacy_parameters: Json

    @property
    def latest_repair_id(self) -> int | None:
        return self.repairs[-1].repair_id if self.repairs else None

    @property
    def failure_id(self) -> FailureId:
        return failure_id_of(self.workspace, self.run_id, self.latest_repair_id)

    @property
    def readable_job_id(self) -> int | None:
        """The job that the run is of; None for a one-time run, which may carry the id of a job that nobody can read."""
        return None if self.run_type in ("SUBMIT_RUN", "WORKFLOW_RUN") else self.job_id


@dataclass(frozen=True, slots=True)
class RunFacts:
    """A run with all that is needed to decide about it. `failures` are its root-cause tasks only.

    `node_types` are those of the workspace; empty where no failed task ran on a job cluster or they cannot be read.
    `policies` are those that bind the job's clusters, by id, as far as they can be read.
    """

    run: RunState
    task_count: int
    failures: tuple[TaskFailure, ...]
    job: JobFacts | None
    newer_runs: tuple[NewerRun, ...]
    parent: str = ""
    node_types: tuple[NodeType, ...] = ()
    policies: Mapping[str, ClusterPolicy] = field(default_factory=dict)

    @property
    def tags(self) -> Mapping[str, str]:
        return self.job.tags if self.job else {}


class Mode(StrEnum):
    """What the agent carries out by itself (DESIGN §4)."""

    OFF = "off"
    OBSERVE = "observe"
    RETRY = "retry"
    FULL = "full"

    def carries_out(self, decision: DecisionKind) -> bool:
        """Whether a retry decided upon is really made; mails and skips are always carried out."""
        match decision:
            case DecisionKind.RETRY:
                return self in (Mode.RETRY, Mode.FULL)
            case DecisionKind.RETRY_WITH_PARAMS:
                return self is Mode.FULL
            case DecisionKind.ESCALATE_EMAIL | DecisionKind.SKIP:
                return True


class IncidentState(StrEnum):
    """Where an incident stands. GATHERED = it waits for the next digest. The last five are terminal."""

    DETECTED = "detected"
    DECIDED = "decided"
    ACTING = "acting"
    GATHERED = "gathered"
    RETRYING = "retrying"
    RECOVERED = "recovered"
    FAILED_AGAIN = "failed_again"
    ESCALATED = "escalated"
    SKIPPED = "skipped"
    PARKED = "parked"

    @property
    def is_terminal(self) -> bool:
        return self in TERMINAL_STATES


TERMINAL_STATES = frozenset(
    {
        IncidentState.RECOVERED,
        IncidentState.FAILED_AGAIN,
        IncidentState.ESCALATED,
        IncidentState.SKIPPED,
        IncidentState.PARKED,
    }
)


@dataclass(frozen=True, slots=True)
class Decision:
    """The stored decision about one failure.

    `recommended` is what the evidence calls for, `decision` what limits, history and compute permit now.
    `latest_repair_id` is frozen here: the repair is sent with it and never with a fresher one (compare-and-swap).
    `delay_seconds` is the backoff before the retry. `carried_out` False = only recorded and mailed, and
    `not_carried_out_why` says why. `setting_changes` are the permitted `changes`, settled: which values become which.
    """

    failure_id: FailureId
    decision: DecisionKind
    recommended: DecisionKind
    category: Category
    reason: str
    confidence: float
    rules: tuple[str, ...]
    fingerprint: str
    excerpt: str
    cause: str
    changes: tuple[Change, ...] = ()
    suggested_params: Mapping[str, str] | None = None
    model_used: bool = False
    latest_repair_id: int | None = None
    delay_seconds: float = 0.0
    carried_out: bool = True
    not_carried_out_why: str = ""
    setting_changes: tuple[SettingChange, ...] = ()


class AttemptKind(StrEnum):
    REPAIR = "repair"
    RUN_NOW = "run_now"


class AttemptOutcome(StrEnum):
    """How a retry ended. PENDING until it has; UNKNOWN = it may have been made, and cannot be looked at."""

    PENDING = "pending"
    RECOVERED = "recovered"
    FAILED_AGAIN = "failed_again"
    CANCELLED = "cancelled"
    SUPERSEDED = "superseded"
    GONE = "gone"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One retry of an incident. `effect_id` is the repair id or the new run id; None while it is not known."""

    number: int
    kind: AttemptKind
    failure_id: FailureId
    with_changes: bool
    changes: tuple[str, ...]
    claimed_at: datetime
    claim_guid: str
    effect_id: int | None = None
    outcome: AttemptOutcome = AttemptOutcome.PENDING
    ended_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Incident:
    """A failed run with all its attempts: one row of the history, guarded by its ETag.

    `run_id` is the run that failed first; `watched_run_id` the run that is looked at now (another one after a run-now).
    `failure_id` is the failure being handled, `past_failures` those already dealt with. `due_at` is when it should have
    moved on by itself; `follow_up` re-sends what is well past it. `mail_claim` is the key of a mail that is being sent,
    since `mail_claimed_at`; `mailed` are the keys of those handed over.
    """

    workspace: str
    run_id: int
    job_id: int | None
    job_name: str
    page_url: str
    state: IncidentState
    failure_id: FailureId
    detected_at: datetime
    updated_at: datetime
    due_at: datetime
    watched_run_id: int
    failed_at: datetime | None = None
    past_failures: tuple[FailureId, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    decision: Decision | None = None
    recipients: tuple[str, ...] = ()
    mode: Mode = Mode.OBSERVE
    mail_claim: str = ""
    mail_claimed_at: datetime | None = None
    mailed: tuple[str, ...] = ()
    resends: int = 0
    ended_why: str = ""
    write_guid: str = ""
    etag: str = ""

    @property
    def open_attempt(self) -> Attempt | None:
        if self.attempts and self.attempts[-1].outcome is AttemptOutcome.PENDING:
            return self.attempts[-1]
        return None


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened to an incident, kept for people and for learning. `details` holds no error text."""

    workspace: str
    run_id: int
    at: datetime
    kind: str
    details: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ScanState:
    """What a detection tick leaves for the next one, per workspace.

    `active` are the run ids that were active; `seen` maps run ids inside the overlap window to their end time (ms UTC).
    """

    workspace: str
    watermark: datetime
    active: frozenset[int]
    seen: Mapping[int, int]
    swept_at: datetime
    etag: str = ""


@dataclass(frozen=True, slots=True)
class Pause:
    """All actions stopped by a person."""

    paused: bool
    by: str = ""
    why: str = ""
    at: datetime | None = None


@dataclass(frozen=True, slots=True)
class EscalationMail:
    """What a mail is made from; the mail itself is never stored."""

    kind: str
    key: str
    workspace: str
    run_id: int
    job_id: int | None
    job_name: str
    page_url: str
    failed_at: datetime | None
    decision: Decision
    attempts: tuple[Attempt, ...]
    recipients: tuple[str, ...]
    mode: Mode


@dataclass(frozen=True, slots=True)
class DigestMail:
    """One mail about many failures. `groups` add up to `total`; `recovered` runs were healed since the last digest."""

    key: str
    workspace: str
    recipients: tuple[str, ...]
    groups: tuple["CauseGroup", ...]
    total: int
    recovered: int = 0


@dataclass(frozen=True, slots=True)
class CauseGroup:
    """One cause in a digest, with all its runs; `examples` are the first few."""

    fingerprint: str
    cause: str
    category: str
    reason: str
    count: int
    jobs: tuple[str, ...]
    examples: tuple[Incident, ...]


class LeaseState(StrEnum):
    """PLANNED before the job is changed, APPLIED after; RESTORED once put back, CLOSED once that was verified."""

    PLANNED = "planned"
    APPLIED = "applied"
    RESTORED = "restored"
    CLOSED = "closed"


class LeaseNews(StrEnum):
    """What people are told of a lease: values that they must put back, or that were left as somebody else set them."""

    REFUSED = "refused"
    LEFT = "left"


@dataclass(frozen=True, slots=True)
class LeaseReport:
    """A mail about a lease that is not sent yet. `claimed` = one may be under way; not before `due` in any case."""

    news: LeaseNews
    due: datetime
    claimed: bool = False


@dataclass(frozen=True, slots=True)
class Lease:
    """A change of a job's settings for the length of one retry. At most one per job is not closed.

    `foreign` are the places of changed values that somebody else changed meanwhile: reported and left alone.
    `refused_at`, `refusal`: when and why Databricks last refused for good to put the job back.
    `unanswered` are changes, of earlier leases too, that an update without an answer may still make; the job is looked
    at for them until `watched_until`. `reported` is what people were told of this lease.
    """

    workspace: str
    job_id: int
    run_id: int
    attempt: int
    state: LeaseState
    changes: tuple[SettingChange, ...]
    planned_at: datetime
    applied_at: datetime | None = None
    restored_at: datetime | None = None
    looked_at: datetime | None = None
    foreign: tuple[str, ...] = ()
    refused_at: datetime | None = None
    refusal: str = ""
    unanswered: tuple[SettingChange, ...] = ()
    watched_until: datetime | None = None
    report: LeaseReport | None = None
    reported: tuple[LeaseNews, ...] = ()
    write_guid: str = ""
    etag: str = ""

    @property
    def is_followed(self) -> bool:
        """Whether `follow_up` has something to do about it: it is not closed, or its job is looked at again."""
        return self.state is not LeaseState.CLOSED or bool(self.unanswered)
