"""What is remembered of causes: results of retries, answers of the model, and how many tokens it was asked with."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

from shared.domain import Decision, Diagnosis
from shared.errors import ConflictError
from shared.ports import DecisionHistory
from shared.settings import Settings
from shared.triage import experience
from shared.triage.experience import Experience

TRIES = 8
CHARACTERS_PER_TOKEN = 3
"""Low on purpose (English prose has about four): the cap is not to be passed."""


class Learning:
    """Reads and writes experience, with compare-and-swap. Losing a race costs a repetition, never an entry."""

    def __init__(
        self, history: DecisionHistory, settings: Settings, now: Callable[[], datetime], guid: Callable[[], str]
    ) -> None:
        self._history = history
        self._window = timedelta(minutes=settings.ai_window_minutes)
        self._tokens_per_day = settings.ai_tokens_per_day
        self._now = now
        self._guid = guid

    def recall(self, workspace: str, fingerprint: str) -> Experience:
        return self._history.read_experience(workspace, fingerprint)

    def was_asked(self, known: Experience) -> bool:
        """Whether the model was asked about this cause within the window, so that its answer is used again."""
        return known.was_asked_within(self._window, self._now())

    def keep_answer(self, workspace: str, fingerprint: str, answer: Diagnosis | None) -> None:
        self._change(workspace, fingerprint, lambda known: experience.note_answer(known, answer, self._now()))

    def note_result(self, workspace: str, key: str, decision: Decision, *, worked: bool) -> None:
        """Keep how the retry of that name went."""
        words = tuple(change.word for change in decision.changes)
        self._change(
            workspace,
            decision.fingerprint,
            lambda known: experience.note_result(known, key, decision.decision, words, worked=worked),
        )

    def reserve_tokens(self, characters: int) -> bool:
        """Book the tokens of a question of that length before it is asked; False where the cap would be passed."""
        wanted = characters // CHARACTERS_PER_TOKEN + 1
        day = self._now().date().isoformat()
        for _ in range(TRIES):
            meter = self._history.read_token_meter(day)
            if meter.used + wanted > self._tokens_per_day:
                return False
            try:
                self._history.save_token_meter(replace(meter, used=meter.used + wanted, write_guid=self._guid()))
            except ConflictError:
                continue
            return True
        raise ConflictError(f"the token meter of {day} changes too often")

    def _change(self, workspace: str, fingerprint: str, change: Callable[[Experience], Experience]) -> None:
        for _ in range(TRIES):
            known = self._history.read_experience(workspace, fingerprint)
            try:
                self._history.save_experience(replace(change(known), write_guid=self._guid()))
            except ConflictError:
                continue
            return
        raise ConflictError(f"the experience with cause {fingerprint} changes too often")
