"""The safeguards as the steps use them: read, decide, store with compare-and-swap."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

from shared import telemetry
from shared.errors import ConflictError
from shared.ports import DecisionHistory
from shared.settings import Settings
from shared.triage import safeguards
from shared.triage.policy import StandDown
from shared.triage.safeguards import RetryRecord, SafeguardLimits, Safeguards, Wait

TRIES = 8
"""A lost race is read again so often; then the message is delivered again."""


class Admission:
    """Asks the workspace's safeguards, and tells them what happened."""

    def __init__(
        self, history: DecisionHistory, settings: Settings, now: Callable[[], datetime], guid: Callable[[], str]
    ) -> None:
        self._history = history
        self._limits = safeguard_limits(settings)
        self._now = now
        self._guid = guid

    def note_runs_seen(self, workspace: str, count: int) -> None:
        if count:
            self._change(workspace, lambda s: safeguards.note_runs_seen(s, count, self._now(), self._limits))

    def note_failure(self, workspace: str, fingerprint: str) -> None:
        self._change(workspace, lambda s: safeguards.note_failure(s, fingerprint, self._now(), self._limits))

    def note_outcome(self, workspace: str, key: str, *, succeeded: bool) -> None:
        self._change(
            workspace,
            lambda s: safeguards.note_outcome(s, key, succeeded=succeeded, now=self._now(), limits=self._limits),
        )

    def admit(self, workspace: str, wanted: RetryRecord) -> Wait | StandDown | None:
        """None where the retry may be made now (its slot is then taken); else why it must wait or may never be."""
        for _ in range(TRIES):
            state = self._history.read_safeguards(workspace)
            answer = safeguards.admit(state, wanted, self._now(), self._limits)
            if not isinstance(answer, Safeguards):
                return answer
            if self._saved(state, answer):
                if answer != state:
                    telemetry.spend_reserved(workspace, wanted.hours)
                return None
        raise ConflictError(f"workspace {workspace}: the safeguards change too often")

    def _change(self, workspace: str, change: Callable[[Safeguards], Safeguards]) -> None:
        for _ in range(TRIES):
            state = self._history.read_safeguards(workspace)
            if self._saved(state, change(state)):
                return
        raise ConflictError(f"workspace {workspace}: the safeguards change too often")

    def _saved(self, before: Safeguards, after: Safeguards) -> bool:
        if after == before:
            return True
        try:
            self._history.save_safeguards(replace(after, write_guid=self._guid()))
        except ConflictError:
            return False
        telemetry.breakers_open(after.workspace, sum(b.opened_at is not None for b in after.breakers.values()))
        return True


def safeguard_limits(settings: Settings) -> SafeguardLimits:
    return SafeguardLimits(
        budget_share=settings.retry_budget_share,
        budget_floor=settings.retry_budget_floor,
        budget_window=timedelta(minutes=settings.retry_budget_window_minutes),
        max_concurrent=settings.max_concurrent_retries,
        slot_wait=timedelta(seconds=settings.slot_wait_seconds),
        per_job_and_day=settings.retries_per_job_and_day,
        extra_hours_per_day=settings.retry_hours_per_day,
        breaker_failures=settings.breaker_failures,
        breaker_window=timedelta(minutes=settings.breaker_window_minutes),
        breaker_failed_retries=settings.breaker_failed_retries,
        canary_interval=timedelta(minutes=settings.canary_interval_minutes),
        canary_attempts=settings.canary_attempts,
    )
