"""DatabricksAgent: the use cases, one method per step of DESIGN §2; `monitor_jobs` chains them without queues.

Each step may be cut off at any line and be delivered again. The rules that make this harmless: the history is written
before and after every effect; an effect that may have happened is looked up, never sent blind a second time; a message
is only a reference, so an old one finds the incident moved on and does nothing.
"""

import uuid
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from shared import telemetry
from shared.admission import Admission
from shared.deciding import Deciding
from shared.domain import Json, RunSummary
from shared.error_decision_engine import ErrorDecisionEngine
from shared.errors import AgentError, ConfigurationError, PermanentError
from shared.finding import Finding
from shared.following import Following
from shared.incidents import Incidents, Parts
from shared.learning import Learning
from shared.leasing import Leasing
from shared.mailing import Mailing
from shared.memory_history import InMemoryDecisionHistory
from shared.messages import (
    FAILED_RUNS,
    RETRIES,
    EmailMessage,
    FailedRunMessage,
    RetryMessage,
)
from shared.monitoring import InlineQueues, Summary, summarise, unread_report
from shared.ports import ActionQueues, DecisionHistory, EmailSender, JobRuns
from shared.retrying import Retrying
from shared.settings import Settings
from shared.triage.redaction import redact

if TYPE_CHECKING:
    from shared.azure_openai_client import AzureOpenAIClient

logger = telemetry.logger(__name__)

NO_MORE_WAITING = 1_000
"""A number of deferrals from which on nothing waits for the model any more."""


def utc_now() -> datetime:
    return datetime.now(UTC)


def new_guid() -> str:
    return uuid.uuid4().hex


class DatabricksAgent:
    """Finds failed runs, decides, retries, mails, follows up. All parts are given; nothing is built here."""

    def __init__(
        self,
        azure_openai_client: "AzureOpenAIClient | None",
        databricks_connector: JobRuns,
        email_notifier: EmailSender,
        error_decision_engine: ErrorDecisionEngine,
        *,
        settings: Settings | None = None,
        history: DecisionHistory | None = None,
        queues: ActionQueues | None = None,
        clock: Callable[[], datetime] = utc_now,
        guid: Callable[[], str] = new_guid,
    ) -> None:
        if settings is None:
            from shared.bootstrap import current_settings

            settings = current_settings()
        self._openai = azure_openai_client
        self._runs = databricks_connector
        self._mails = email_notifier
        self._engine = error_decision_engine
        self._settings = settings
        self._history = history
        self._now = clock
        self._guid = guid
        self._steps_or_none: Steps | None = None
        if history is not None and queues is not None:
            self._steps_or_none = self._steps_with(history, queues, settings, may_start_runs=True, may_lease_jobs=True)

    def find_failures(self) -> int:
        """One detection tick over all workspaces; how many failures were sent to be decided."""
        return self._steps.finding.find_failures()

    def decide_action(self, message: FailedRunMessage, *, deferrals: int = 0) -> None:
        """Decide once about the failure, store the decision, send its action; a stored one is only sent again."""
        self._steps.deciding.decide_action(message, deferrals=deferrals)

    def retry_run(self, message: RetryMessage) -> None:
        """Claim, re-read the run, repair it with the repair id frozen in the decision; at most once per attempt."""
        self._steps.retrying.retry_run(message)

    def send_email(self, message: EmailMessage) -> None:
        """Mail about the failure now, or have it wait for the next digest."""
        self._steps.mailing.send_email(message)

    def follow_up(self) -> int:
        """Close retries that have ended, put leases back, send digests and what is overdue; how much was moved."""
        return self._steps.following.follow_up()

    def park(self, message: FailedRunMessage | RetryMessage | EmailMessage, why: str) -> None:
        """Give an incident up that could not move for too long, and tell people."""
        self._steps.incidents.park(message, why)

    def note_wait(self, message: FailedRunMessage | RetryMessage | EmailMessage, until: datetime) -> None:
        """Note with its incident that the message waits until then."""
        self._steps.incidents.note_wait(message, until)

    @property
    def _steps(self) -> "Steps":
        if self._steps_or_none is None:
            raise PermanentError("this step needs a decision history and queues; monitor_jobs works without them")
        return self._steps_or_none

    def _steps_with(
        self,
        history: DecisionHistory,
        queues: ActionQueues,
        settings: Settings,
        *,
        may_start_runs: bool,
        may_lease_jobs: bool,
    ) -> "Steps":
        parts = Parts(self._runs, self._mails, history, queues, settings, self._now, self._guid)
        return Steps(parts, self._engine, may_start_runs=may_start_runs, may_lease_jobs=may_lease_jobs)

    # ── one pass without queues ─────────────────────────────────────────────────────────────────────────────────────

    def monitor_jobs(
        self,
        job_ids: Iterable[int] | None = None,
        escalation_emails: Sequence[str] | None = None,
        *,
        window: timedelta | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> Summary:
        """Find, decide and act in this process, about the runs that failed within the window (30 minutes by default).

        The way to run the agent inside a Databricks job, a container or cron. Without a history, attempts are counted
        from the runs' repair histories, and mails may repeat when windows overlap. A run that cannot be dealt with now
        is reported as `open` and does not hold up the others.
        """
        window = window or timedelta(minutes=self._settings.monitor_window_minutes)
        emails = tuple(escalation_emails) if escalation_emails else self._settings.escalation_emails
        queues = InlineQueues()
        history = self._history or InMemoryDecisionHistory()
        settings = self._settings.model_copy(update={"escalation_emails": emails})
        steps = self._steps_with(
            history,
            queues,
            settings,
            # New runs have no repair history: without a history of our own, nothing would count how many were started.
            may_start_runs=self._history is not None,
            may_lease_jobs=self._steps_or_none is not None,
        )
        failed = self._failed_within(window, frozenset(job_ids or ()), steps)
        incidents, unread = [], []
        for number, (workspace, run) in enumerate(failed, 1):
            if progress:
                progress(f"run {run.run_id} ({number} of {len(failed)})")
            problem = handle(steps, workspace, run.run_id, queues)
            incident = history.read_incident(workspace, run.run_id)
            if problem and not (incident and incident.decision):
                unread.append(unread_report(run, problem))
        self._send_gathered(steps)
        for workspace, run in failed:
            incident = history.read_incident(workspace, run.run_id)
            if incident and incident.decision:
                incidents.append(incident)
        return summarise(incidents, unread, at=self._now(), dry_run=self._settings.dry_run)

    def _failed_within(
        self, window: timedelta, job_ids: frozenset[int], steps: "Steps"
    ) -> list[tuple[str, RunSummary]]:
        now = self._now()
        started_after = now - window - timedelta(hours=self._settings.monitor_lookback_hours)
        wanted = job_ids or self._engine.limits.job_ids
        failed = []
        for workspace in self._runs.workspaces:
            completed = self._runs.completed_runs(workspace, started_after=started_after)
            within = [run for run in completed if run.end_time is not None and run.end_time >= now - window]
            steps.admission.note_runs_seen(workspace, len(within))
            failed += [(workspace, run) for run in within if run.is_failed and (not wanted or run.job_id in wanted)]
        return failed

    def _send_gathered(self, steps: "Steps") -> None:
        """Nobody comes later to send a digest: what was gathered in this pass is mailed at its end."""
        for workspace in self._runs.workspaces:
            try:
                steps.mailing.send_digest(workspace, even_if_not_due=True)
            except AgentError as error:
                logger.warning("digest could not be sent", extra={"workspace": workspace, "reason": redact(str(error))})

    # ── fine-tuning ─────────────────────────────────────────────────────────────────────────────────────────────────

    def prepare_training_data(self, run_history_file: str | Path, output_file: str | Path) -> int:
        """Write a fine-tuning file from a JSON array of `{error_message, decision, reason}`; how many examples."""
        from shared.training_data import write_training_data

        return write_training_data(Path(run_history_file), Path(output_file))

    def fine_tune_error_model(self, training_data_path: str | Path, model_name: str, suffix: str) -> str:
        """Start a fine-tuning job; its id."""
        return self._model().start_fine_tuning(Path(training_data_path), model=model_name, suffix=suffix)

    def get_fine_tune_status(self, job_id: str) -> Json:
        """`id, status, model, fine_tuned_model, error` of a fine-tuning job."""
        return self._model().fine_tuning_status(job_id)

    def _model(self) -> "AzureOpenAIClient":
        if self._openai is None:
            raise ConfigurationError("fine-tuning needs AZURE_OPENAI_ENDPOINT", names=("AZURE_OPENAI_ENDPOINT",))
        return self._openai


class Steps:
    """The steps, wired to one another."""

    def __init__(
        self, parts: Parts, engine: ErrorDecisionEngine, *, may_start_runs: bool, may_lease_jobs: bool
    ) -> None:
        learning = Learning(parts.history, parts.settings, parts.now, parts.guid)
        self.admission = Admission(parts.history, parts.settings, parts.now, parts.guid)
        self.incidents = Incidents(parts, self.admission, learning)
        leasing = Leasing(parts, self.incidents)
        self.finding = Finding(parts, self.incidents, self.admission, engine.limits.job_ids)
        self.deciding = Deciding(parts, self.incidents, self.admission, engine)
        self.retrying = Retrying(
            parts,
            self.incidents,
            self.admission,
            leasing,
            engine.limits,
            may_start_runs=may_start_runs,
            may_lease_jobs=may_lease_jobs,
        )
        self.mailing = Mailing(parts, self.incidents)
        self.following = Following(parts, self.incidents, leasing, self.mailing)


def handle(steps: Steps, workspace: str, run_id: int, queues: InlineQueues) -> str:
    """Take one run as far as it goes now; what stopped it, or nothing."""
    try:
        steps.finding.send_on(workspace, run_id)
        while taken := queues.take():
            queue, message = taken
            body = message.body.encode()
            if queue == FAILED_RUNS:
                steps.deciding.decide_action(FailedRunMessage.parse(body), deferrals=NO_MORE_WAITING)
            elif queue == RETRIES:
                steps.retrying.retry_run(RetryMessage.parse(body))
            else:
                steps.mailing.send_email(EmailMessage.parse(body))
    except AgentError as error:
        logger.warning("run left open", extra={"run_id": run_id, "reason": redact(str(error))})
        return str(error)
    return ""
