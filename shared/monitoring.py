"""One pass without queues: what stands in for them, and the summary that is returned. Pure but for the list."""

from collections import deque
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TypedDict

from shared.domain import Category, DecisionKind, Incident, IncidentState, RunSummary
from shared.ports import OutgoingMessage


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
    """What was decided about one failed run, and what became of it."""

    run_id: int
    job_id: int | None
    job: str
    cause: str
    category: str
    decision: str
    recommended: str
    changes: list[str]
    rules: list[str]
    fingerprint: str
    reason: str
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
        if report := report_of(incident):
            if dry_run:
                report["outcome"] = "open"  # nothing was done about it
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


def report_of(incident: Incident) -> RunReport | None:
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
        rules=list(decision.rules),
        fingerprint=decision.fingerprint,
        reason=decision.reason,
        outcome=outcome_of(incident),
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
        rules=["policy.unread"],
        fingerprint="",
        reason=f"Nothing could be decided: {why}",
        outcome="open",
    )
