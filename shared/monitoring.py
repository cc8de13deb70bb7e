"""One pass without queues: what stands in for them, and the summary that is returned. Pure but for the list."""

from collections import deque
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TypedDict

from shared.domain import Category, DecisionKind, Incident, IncidentState, RunSummary
from shared.ports import OutgoingMessage
from shared.triage.changes import described


class Action(TypedDict):
    """How often one kind of action was taken, flat, so that a data frame can be made of it even when it is empty."""

    count: int
    run_ids: str
    at: str


class Actions(TypedDict):
    retried: Action
    retried_with_params: Action
    escalated: Action
    skipped: Action


class RunReport(TypedDict):
    """What was decided about one failed run, and what became of it.

    `setting_changes` are the changes settled, one line each, and `mode` the job's. `recipients` are told of it; of a
    retry that is made nobody is. In a dry run both say what would be.
    """

    run_id: int
    job_id: int | None
    job: str
    cause: str
    category: str
    decision: str
    recommended: str
    changes: list[str]
    setting_changes: list[str]
    rules: list[str]
    fingerprint: str
    reason: str
    mode: str
    recipients: list[str]
    outcome: str


class Summary(TypedDict):
    actions: Actions
    runs: list[RunReport]


class InlineQueues:
    """Queues of one pass: what is sent waits in order until it is taken. Due times are not waited for."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[str, OutgoingMessage]] = deque()

    def send(self, queue: str, messages: Sequence[OutgoingMessage]) -> None:
        self._waiting.extend((queue, message) for message in messages)

    def take(self) -> tuple[str, OutgoingMessage] | None:
        return self._waiting.popleft() if self._waiting else None


OUTCOMES = {
    IncidentState.RECOVERED: "recovered",
    IncidentState.FAILED_AGAIN: "failed_again",
    IncidentState.ESCALATED: "escalated",
    IncidentState.PARKED: "escalated",
    IncidentState.SKIPPED: "skipped",
}


def outcome_of(incident: Incident) -> str:
    """`recovered, failed_again, escalated, skipped` or, while it is under way, `open`."""
    return OUTCOMES.get(incident.state, "open")


def summarise(
    incidents: Iterable[Incident], unread: Sequence[RunReport] = (), *, at: datetime, dry_run: bool
) -> Summary:
    """What one pass did about decided incidents (in a dry run, would have done), and the runs it could not read."""
    runs: dict[str, list[int]] = {name: [] for name in Actions.__annotations__}
    reports = []
    for incident in incidents:
        if report := report_of(incident, dry_run=dry_run):
            reports.append(report)
            runs[action_of(incident, dry_run=dry_run)].append(incident.run_id)
    actions = {
        name: Action(count=len(ids), run_ids=",".join(map(str, ids)), at=at.isoformat()) for name, ids in runs.items()
    }
    return Summary(
        actions=Actions(
            retried=actions["retried"],
            retried_with_params=actions["retried_with_params"],
            escalated=actions["escalated"],
            skipped=actions["skipped"],
        ),
        runs=[*reports, *unread],
    )


def action_of(incident: Incident, *, dry_run: bool) -> str:
    decision = incident.decision
    assert decision is not None
    if incident.state is IncidentState.SKIPPED and not dry_run:
        return "skipped"
    match decision.decision:
        case DecisionKind.RETRY if decision.carried_out or dry_run:
            return "retried"
        case DecisionKind.RETRY_WITH_PARAMS if decision.carried_out or dry_run:
            return "retried_with_params"
        case DecisionKind.SKIP:
            return "skipped"
        case _:
            return "escalated"


def is_mailed(incident: Incident, *, dry_run: bool) -> bool:
    """Whether people are told of the incident; in a dry run, whether they would be."""
    decision = incident.decision
    assert decision is not None
    if not dry_run:
        return action_of(incident, dry_run=False) == "escalated"
    return decision.decision is DecisionKind.ESCALATE_EMAIL or not incident.mode.carries_out(decision.decision)


def report_of(incident: Incident, *, dry_run: bool) -> RunReport | None:
    """One run of the summary; None where nothing was decided (yet)."""
    decision = incident.decision
    if decision is None:
        return None
    return RunReport(
        run_id=incident.run_id,
        job_id=incident.job_id,
        job=incident.job_name,
        cause=decision.cause,
        category=str(decision.category),
        decision=str(decision.decision),
        recommended=str(decision.recommended),
        changes=[change.word for change in decision.changes],
        setting_changes=[described(change) for change in decision.setting_changes],
        rules=list(decision.rules),
        fingerprint=decision.fingerprint,
        reason=decision.reason,
        mode=str(incident.mode),
        recipients=list(incident.recipients) if is_mailed(incident, dry_run=dry_run) else [],
        outcome="open" if dry_run else outcome_of(incident),  # in a dry run nothing was done about it
    )


def unread_report(run: RunSummary, why: str) -> RunReport:
    """One run of the summary about which nothing could be decided: a person should look, nobody was told."""
    return RunReport(
        run_id=run.run_id,
        job_id=run.job_id,
        job="",
        cause="the run could not be read",
        category=str(Category.UNKNOWN),
        decision=str(DecisionKind.ESCALATE_EMAIL),
        recommended=str(DecisionKind.ESCALATE_EMAIL),
        changes=[],
        setting_changes=[],
        rules=["policy.unread"],
        fingerprint="",
        reason=f"Nothing could be decided: {why}",
        mode="",
        recipients=[],
        outcome="open",
    )
