"""Domain values with sensible defaults; every field can be overridden by keyword.

The default story: run 1001 of job 77 in workspace `ws1` failed at NOW because its driver ran out of memory.
Identities follow from each other: `build_run_state(run_id=5).failure_id` is the failure of run 5, and so is the one of
`build_incident(run_id=5)` and of its decision.
"""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from shared.domain import (
    Attempt,
    AttemptKind,
    Category,
    ComputeKind,
    Decision,
    DecisionKind,
    Diagnosis,
    EscalationMail,
    Event,
    Evidence,
    Incident,
    IncidentState,
    JobFacts,
    Mode,
    NewerRun,
    Repair,
    RunFacts,
    RunState,
    RunSummary,
    ScanState,
    Symptoms,
    TaskFailure,
    failure_id_of,
)

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
STARTED = NOW - timedelta(minutes=30)
WORKSPACE = "ws1"
RUN_ID = 1001
JOB_ID = 77
JOB_NAME = "nightly_orders"
PAGE_URL = "https://adb-1.azuredatabricks.net/jobs/77/runs/1001"
OUT_OF_MEMORY = "java.lang.OutOfMemoryError: Java heap space"


def build_repair(**overrides: Any) -> Repair:
    """A repair that failed."""
    return replace(Repair(repair_id=501, result_state="FAILED", start_time=STARTED), **overrides)


def build_run_state(**overrides: Any) -> RunState:
    """A run that failed; `is_active=True` and the like must be given together with the states that go with it."""
    run = RunState(
        workspace=WORKSPACE,
        run_id=RUN_ID,
        job_id=JOB_ID,
        name=JOB_NAME,
        page_url=PAGE_URL,
        run_type="JOB_RUN",
        trigger="PERIODIC",
        is_active=False,
        is_failed=True,
        life_cycle_state="TERMINATED",
        result_state="FAILED",
        termination_code="RUN_EXECUTION_ERROR",
        termination_type="CLIENT_ERROR",
        state_message="Task main failed.",
        start_time=STARTED,
        end_time=NOW,
        repairs=(),
        job_parameters={},
        legacy_parameters={},
    )
    return replace(run, **overrides)


def build_run_summary(**overrides: Any) -> RunSummary:
    """The row of the default run in the list of runs."""
    summary = RunSummary(
        run_id=RUN_ID, job_id=JOB_ID, is_active=False, is_failed=True, start_time=STARTED, end_time=NOW
    )
    return replace(summary, **overrides)


def build_symptoms(**overrides: Any) -> Symptoms:
    """The driver ran out of memory."""
    symptoms = Symptoms(
        error=OUT_OF_MEMORY,
        error_trace=f"{OUT_OF_MEMORY}\n\tat org.apache.spark.sql.Dataset.collect(Dataset.scala:3013)",
        state_message="Task main failed.",
        termination_code="RUN_EXECUTION_ERROR",
        termination_type="CLIENT_ERROR",
        result_state="FAILED",
        task_type="notebook_task",
    )
    return replace(symptoms, **overrides)


def build_task_failure(**overrides: Any) -> TaskFailure:
    """Task `main`, on a job cluster. `symptoms` may be given whole."""
    failure = TaskFailure(
        task_key="main",
        task_run_id=2001,
        compute=ComputeKind.JOB_CLUSTER,
        symptoms=build_symptoms(),
        cluster_id="1120-110000-abcdefgh",
    )
    return replace(failure, **overrides)


def build_job_settings() -> dict[str, Any]:
    """Raw settings of a job with one notebook task on one job cluster, as jobs/get returns them."""
    return {
        "name": JOB_NAME,
        "max_concurrent_runs": 1,
        "tasks": [
            {"task_key": "main", "job_cluster_key": "main", "notebook_task": {"notebook_path": "/Jobs/nightly_orders"}}
        ],
        "job_clusters": [
            {
                "job_cluster_key": "main",
                "new_cluster": {
                    "spark_version": "16.4.x-scala2.12",
                    "node_type_id": "Standard_E8ds_v5",
                    "num_workers": 2,
                },
            }
        ],
    }


def build_job_facts(**overrides: Any) -> JobFacts:
    """A scheduled job without tags or parameters."""
    job = JobFacts(
        job_id=JOB_ID,
        name=JOB_NAME,
        settings=build_job_settings(),
        tags={},
        declared_parameters={},
        is_continuous=False,
        is_paused=False,
    )
    return replace(job, **overrides)


def build_newer_run(**overrides: Any) -> NewerRun:
    """A later run of the same job that succeeded."""
    return replace(NewerRun(run_id=1002, is_active=False, result_state="SUCCESS", job_parameters={}), **overrides)


def build_run_facts(*, tags: dict[str, str] | None = None, **overrides: Any) -> RunFacts:
    """A failed run of one task. `tags` are put on the job; all other keywords are fields of RunFacts."""
    facts = RunFacts(
        run=build_run_state(),
        task_count=1,
        failures=(build_task_failure(),),
        job=build_job_facts(tags=tags or {}),
        newer_runs=(),
    )
    return replace(facts, **overrides)


def build_evidence(**overrides: Any) -> Evidence:
    """What is left of the default symptoms."""
    evidence = Evidence(
        text=OUT_OF_MEMORY,
        excerpt=OUT_OF_MEMORY,
        causes=(OUT_OF_MEMORY,),
        error_classes=(),
        sqlstates=(),
        exception_types=("java.lang.OutOfMemoryError",),
        user_frame=None,
    )
    return replace(evidence, **overrides)


def build_diagnosis(**overrides: Any) -> Diagnosis:
    """The rules are sure that the run deserves a plain retry."""
    diagnosis = Diagnosis(
        category=Category.NETWORK,
        recommended=DecisionKind.RETRY,
        reason="The connection to the metastore was reset.",
        confidence=0.9,
        rules=("connection_reset",),
    )
    return replace(diagnosis, **overrides)


def build_decision(*, workspace: str = WORKSPACE, run_id: int = RUN_ID, **overrides: Any) -> Decision:
    """A plain retry of the run's original failure, or of the one after the repair `latest_repair_id`."""
    kind = overrides.get("decision", DecisionKind.RETRY)
    decision = Decision(
        failure_id=failure_id_of(workspace, run_id, overrides.get("latest_repair_id")),
        decision=kind,
        recommended=kind,
        category=Category.NETWORK,
        reason="The connection to the metastore was reset.",
        confidence=0.9,
        rules=("connection_reset",),
        fingerprint="f00d",
        excerpt="java.net.SocketException: Connection reset",
        cause="java.net.SocketException: Connection reset",
    )
    return replace(decision, **overrides)


def build_attempt(*, workspace: str = WORKSPACE, run_id: int = RUN_ID, **overrides: Any) -> Attempt:
    """The first attempt: claimed, not known to have been sent."""
    attempt = Attempt(
        number=1,
        kind=AttemptKind.REPAIR,
        failure_id=failure_id_of(workspace, run_id, None),
        with_changes=False,
        changes=(),
        claimed_at=NOW,
        claim_guid="claim-1",
    )
    return replace(attempt, **overrides)


def build_incident(*, workspace: str = WORKSPACE, run_id: int = RUN_ID, **overrides: Any) -> Incident:
    """An incident that was just detected, not yet saved."""
    incident = Incident(
        workspace=workspace,
        run_id=run_id,
        job_id=JOB_ID,
        job_name=JOB_NAME,
        page_url=PAGE_URL,
        state=IncidentState.DETECTED,
        failure_id=failure_id_of(workspace, run_id, None),
        detected_at=NOW,
        updated_at=NOW,
        due_at=NOW + timedelta(minutes=5),
        watched_run_id=run_id,
        failed_at=NOW,
        write_guid="write-1",
    )
    return replace(incident, **overrides)


def build_event(**overrides: Any) -> Event:
    """The failure was seen."""
    event = Event(workspace=WORKSPACE, run_id=RUN_ID, at=NOW, kind="detected", details={"source": "timer"})
    return replace(event, **overrides)


def build_scan_state(**overrides: Any) -> ScanState:
    """A scan up to NOW, with nothing active."""
    scan = ScanState(workspace=WORKSPACE, watermark=NOW, active=frozenset(), seen={}, swept_at=NOW)
    return replace(scan, **overrides)


def build_escalation_mail(**overrides: Any) -> EscalationMail:
    """An escalation of the default failure to one person."""
    decision = build_decision(decision=DecisionKind.ESCALATE_EMAIL, category=Category.CODE)
    mail = EscalationMail(
        kind="escalation",
        key=f"{decision.failure_id}:escalation",
        workspace=WORKSPACE,
        run_id=RUN_ID,
        job_id=JOB_ID,
        job_name=JOB_NAME,
        page_url=PAGE_URL,
        failed_at=NOW,
        decision=decision,
        attempts=(),
        recipients=("data-team@example.com",),
        mode=Mode.FULL,
    )
    return replace(mail, **overrides)
