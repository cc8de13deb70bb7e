"""What is remembered of causes: results of retries, answers of the model, and how many tokens it was asked with."""

import threading
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
SLACK_SECONDS = 15

PATIENCE = 3
"""So many times a message waits for the model before the rules decide alone."""

CHARACTERS_PER_TOKEN = 3
"""Low on purpose (English prose has about four): the cap is not to be passed."""


class Outage:
    """Whether the model as a whole gives no answers: one failed question speaks for those about all other causes.

    While it rests, nobody asks; after the rest, which doubles, one asker at a time tries. Whoever tries and is not
    heard of for `longest_try` has died. Safe for several threads.

    Each process has its own, in memory: it bounds how many call slots of that process wait for a model that is silent.
    Every process finds that out with its first question, so a shared row would spare few questions and cost a read for
    each; and how often a cause is asked about is bounded for all processes together, in its experience.
    """

    def __init__(
        self, now: Callable[[], datetime], *, first_rest: timedelta, longest_rest: timedelta, longest_try: timedelta
    ) -> None:
        self._now = now
        self._first_rest = first_rest
        self._longest_rest = longest_rest
        self._longest_try = longest_try
        self._lock = threading.Lock()
        self._failures = 0
        self._rests_until: datetime | None = None
        self._silent_until: datetime | None = None

    def lets_ask(self) -> bool:
        """Whether the model may be asked. During an outage True is the turn to try, given to one asker at a time."""
        with self._lock:
            if self._silent_until is None:
                return True
            now = self._now()
            if now < self._silent_until:
                return False
            self._silent_until = now + self._longest_try
            return True

    def note_failure(self) -> None:
        """The model did not answer. Questions that were under way together count as one."""
        with self._lock:
            now = self._now()
            if self._rests_until and now < self._rests_until:
                return
            self._failures += 1
            self._rests_until = now + doubled(self._first_rest, self._failures, longest=self._longest_rest)
            self._silent_until = self._rests_until

    def note_answer(self) -> None:
        """The model answers, if only to say that it is busy: whoever wants to may ask."""
        with self._lock:
            self._failures = 0
            self._rests_until = self._silent_until = None


class Learning:
    """Reads and writes experience, with compare-and-swap. Losing a race costs a repetition, never an entry.

    A question is begun before the model is asked and ended after, so that two workers with failures of one cause ask
    once. One that was begun and not ended in the time that an answer can take is free again.

    `wait_seconds`: so long a message waits for the answer to a question that somebody else has in hand, before it looks
    again. `PATIENCE` such waits outlast the longest question, which ends with its invocation at the latest.
    """

    def __init__(
        self, history: DecisionHistory, settings: Settings, now: Callable[[], datetime], guid: Callable[[], str]
    ) -> None:
        self._history = history
        self._window = timedelta(minutes=settings.ai_window_minutes)
        self._first_rest = timedelta(seconds=settings.defer_base_seconds)
        all_tries = settings.azure_openai_timeout_seconds * (1 + settings.azure_openai_max_retries)
        self._longest_question = timedelta(seconds=min(all_tries, settings.invocation_seconds) + SLACK_SECONDS)
        self.wait_seconds = self._longest_question.total_seconds() / PATIENCE
        self.outage = Outage(
            now,
            first_rest=self._first_rest,
            longest_rest=timedelta(seconds=settings.defer_cap_seconds),
            longest_try=self._longest_question,
        )
        self._tokens_per_day = settings.ai_tokens_per_day
        self._now = now
        self._guid = guid

    def recall(self, workspace: str, fingerprint: str) -> Experience:
        return self._history.read_experience(workspace, fingerprint)

    def was_asked(self, known: Experience) -> bool:
        """Whether the model was asked about this cause so recently that it is not asked again.

        An answer, a void one too, stands for the window; a question that failed only for a wait that doubles up to it.
        """
        return known.was_asked_within(self._rest_after(known.failed_questions), self._now())

    def _rest_after(self, failed_questions: int) -> timedelta:
        if not failed_questions:
            return self._window
        return doubled(self._first_rest, failed_questions, longest=self._window)

    def begin_question(self, workspace: str, fingerprint: str) -> Experience | None:
        """Take the question about the cause; what is known of it then. None where somebody else has it in hand.

        Where the model was asked meanwhile (`was_asked`), nothing was taken.
        """
        for _ in range(TRIES):
            known = self._history.read_experience(workspace, fingerprint)
            now = self._now()
            if self.was_asked(known):
                return known
            if known.is_being_asked(now):
                return None
            taken = replace(known, asking_until=now + self._longest_question, write_guid=self._guid())
            try:
                return self._history.save_experience(taken)
            except ConflictError:
                continue
        raise ConflictError(f"the experience with cause {fingerprint} changes too often")

    def give_question_back(self, workspace: str, fingerprint: str) -> None:
        """The model was not asked after all: the next one may do it."""
        self._change(workspace, fingerprint, lambda known: replace(known, asking_until=None))

    def keep_answer(self, workspace: str, fingerprint: str, answer: Diagnosis | None) -> None:
        """End the question: the answer, or that it was void, stands for the window."""
        self._change(workspace, fingerprint, lambda known: experience.note_answer(known, answer, self._now()))

    def note_failed_question(self, taken: Experience) -> None:
        """End the question, which the model did not answer: it is asked again after a while, by one asker.

        `taken` = as `begin_question` gave it. Where another asked meanwhile, that one's answer or question stands.
        """
        self._change(
            taken.workspace,
            taken.fingerprint,
            lambda known: experience.note_failed_question(known, taken.asking_until, self._now()),
        )

    def note_result(self, workspace: str, key: str, decision: Decision, *, worked: bool) -> None:
        """Keep how the retry of that name went."""
        words = tuple(change.word for change in decision.changes)
        self._change(
            workspace,
            decision.fingerprint,
            lambda known: experience.note_result(known, key, decision.decision, words, worked=worked),
        )

    def reserve_tokens(self, characters: int) -> bool:
        """Book the tokens of a question of that length before it is asked; False where the cap would be passed.

        A question that was sent and had no answer keeps its tokens booked, on purpose: the service may have counted
        them, and the cap is not to be passed. What was refused or never sent is taken back (`return_tokens`).
        """
        return self._book(characters // CHARACTERS_PER_TOKEN + 1)

    def return_tokens(self, characters: int) -> None:
        """Take the booking of a question of that length back: nothing was spent on it."""
        self._book(-(characters // CHARACTERS_PER_TOKEN + 1))

    def _book(self, tokens: int) -> bool:
        day = self._now().date().isoformat()
        for _ in range(TRIES):
            meter = self._history.read_token_meter(day)
            if tokens > 0 and meter.used + tokens > self._tokens_per_day:
                return False
            used = max(0, meter.used + tokens)  # midnight may have passed since they were booked
            try:
                self._history.save_token_meter(replace(meter, used=used, write_guid=self._guid()))
            except ConflictError:
                continue
            return True
        raise ConflictError(f"the token meter of {day} changes too often")

    def _change(self, workspace: str, fingerprint: str, change: Callable[[Experience], Experience]) -> None:
        for _ in range(TRIES):
            known = self._history.read_experience(workspace, fingerprint)
            changed = change(known)
            if changed == known:
                return
            try:
                self._history.save_experience(replace(changed, write_guid=self._guid()))
            except ConflictError:
                continue
            return
        raise ConflictError(f"the experience with cause {fingerprint} changes too often")


def doubled(first: timedelta, times: int, *, longest: timedelta) -> timedelta:
    """The wait after so many failures, at least one: it doubles from the first to the longest."""
    factor: int = 2 ** min(times - 1, 20)
    return min(first * factor, longest)
