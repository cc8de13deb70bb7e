"""Step 4, mail: one for the first failure of a cause, digests for what follows, one for a job that was left changed."""

import hashlib
from dataclasses import replace
from datetime import datetime, timedelta

from shared import mail_groups, telemetry
from shared.domain import (
    AttemptOutcome,
    Category,
    Decision,
    DecisionKind,
    DigestMail,
    EscalationMail,
    Incident,
    IncidentState,
    Lease,
    LeaseNews,
    LeaseReport,
    SettingChange,
)
from shared.errors import OutcomeUnknownError, PermanentError, ThrottledError, TransientError
from shared.incidents import Incidents, Parked, Parts
from shared.mail_groups import MailBook, MailLimits, OpenDigest
from shared.messages import EmailMessage
from shared.settings import Settings
from shared.triage.changes import place_and_name
from shared.triage.redaction import redact

logger = telemetry.logger(__name__)


class Mailing:
    """Tells people."""

    def __init__(self, parts: Parts, incidents: Incidents) -> None:
        self._parts = parts
        self._incidents = incidents
        self._limits = mail_limits(parts.settings)

    def send_email(self, message: EmailMessage) -> None:
        """Mail about one failure now, or have it wait for the next digest.

        Claim, send, mark done; a send whose answer was lost is looked up at the service before it is sent again.
        """
        incident = self._parts.history.read_incident(message.workspace, message.run_id)
        if incident is None:
            raise PermanentError(f"no incident for run {message.run_id}: there is nothing to mail about")
        decision = incident.decision
        if (
            incident.failure_id != message.failure_id
            or decision is None
            or (decision.decision.is_retry and decision.carried_out)
            or incident.state not in (IncidentState.DECIDED, IncidentState.ACTING)
        ):
            return
        self._incidents.stop_if_paused()
        key = f"{message.failure_id}:{message.kind}"
        if incident.mail_claim != key and not self._gets_its_own(incident, decision):
            self._incidents.save(replace(incident, state=IncidentState.GATHERED, due_at=self._parts.now()))
            return
        if incident.mail_claim == key:
            if self._incidents.is_fresh(incident.mail_claimed_at):
                raise OutcomeUnknownError(f"run {incident.run_id}: an earlier mail may be under way")
            if self._was_accepted(incident, key):
                self._mailed(incident, key)
                return
        now = self._parts.now()
        incident = self._incidents.save(
            replace(incident, mail_claim=key, mail_claimed_at=now, state=IncidentState.ACTING, due_at=now)
        )
        self._send(incident, decision, message.kind, key)

    def _was_accepted(self, incident: Incident, key: str) -> bool:
        try:
            return self._parts.mails.was_accepted(key)
        except PermanentError as error:
            why = f"it cannot be found out whether the mail was sent: {error}"
            self._incidents.give_up(incident, Parked.MAIL_IN_DOUBT, why)
            raise

    def _send(self, incident: Incident, decision: Decision, kind: str, key: str) -> None:
        self._stop_if_claim_ran_out(key, incident.mail_claimed_at)
        try:
            self._parts.mails.send(mail_of(incident, decision, kind, key))
        except OutcomeUnknownError:
            raise
        except TransientError:
            self._incidents.save(replace(incident, mail_claim="", mail_claimed_at=None, state=IncidentState.DECIDED))
            raise
        except PermanentError as error:
            self._incidents.give_up(incident, Parked.MAIL_REFUSED, f"the mail could not be sent: {error}")
            raise
        self._mailed(incident, key)

    def _stop_if_claim_ran_out(self, key: str, claimed_at: datetime | None) -> None:
        """Right before a mail is sent: another worker may be sending it since, so it is to be looked up again."""
        if not self._incidents.is_fresh(claimed_at):
            raise OutcomeUnknownError(f"mail {key}: the claim to send it has run out")

    def _mailed(self, incident: Incident, key: str) -> None:
        incident = replace(incident, mailed=(*incident.mailed, key))
        self._incidents.close(incident, end_of(incident), "mailed", recipients=len(incident.recipients))

    def _gets_its_own(self, incident: Incident, decision: Decision) -> bool:
        """Enter the failure in the mail book. What is long past only ever goes into a digest."""
        book = self._parts.history.read_mail_book(incident.workspace)
        now = self._parts.now()
        if "policy.too_old" in decision.rules:
            entered, own = mail_groups.expect_digest(book, now, self._limits), False
        else:
            entered, own = mail_groups.choose(book, decision.fingerprint, incident.failure_id, now, self._limits)
        if entered != book:
            self._save_book(entered)
        return own

    # ── digests ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def send_digest(self, workspace: str, *, even_if_not_due: bool = False) -> bool:
        """Send the workspace's digest if it is due, or finish one that was cut off. Whether anything was done.

        Which runs it reports is stored before the first of its mails is sent (one mail per group of recipients), so
        that a digest that is cut off is finished with the same runs and the same keys.
        """
        book = self._parts.history.read_mail_book(workspace)
        now = self._parts.now()
        is_early = book.digest_due is not None and now < book.digest_due and not even_if_not_due
        if book.open_digest is None and is_early:
            return False
        gathered = {
            incident.run_id: incident
            for incident in self._parts.history.open_incidents(workspace)
            if incident.state is IncidentState.GATHERED
        }
        resumed = book.open_digest is not None
        if book.open_digest is None:
            if not gathered:
                return False
            self._incidents.stop_if_paused()
            book = self._save_book(mail_groups.claim_digest(book, gathered, now))
        digest = book.open_digest
        assert digest is not None
        if now < digest.not_before or (resumed and self._incidents.is_fresh(digest.claimed_at)):
            return False
        self._incidents.stop_if_paused()
        if resumed:  # two ticks may find it cut off at the same time
            book = self._save_book(mail_groups.reclaim_digest(book, now))
        reported = [gathered[run_id] for run_id in digest.run_ids if run_id in gathered]
        try:
            self._send_parts(workspace, book.open_digest or digest, reported, resumed=resumed)
        except TransientError as error:
            self._save_book(mail_groups.put_off_digest(book, now + self._wait_after(error)))
            raise
        self._save_book(mail_groups.finish_digest(book))
        return True

    def _send_parts(self, workspace: str, digest: OpenDigest, reported: list[Incident], *, resumed: bool) -> None:
        """One mail per group of recipients; each one's incidents are closed as soon as it is handed over."""
        groups: dict[tuple[str, ...], list[Incident]] = {}
        for incident in reported:
            groups.setdefault(incident.recipients, []).append(incident)
        for recipients, incidents in groups.items():
            key = f"digest:{workspace}:{digest.number}:{short_hash(recipients)}"
            try:
                if not (resumed and self._parts.mails.was_accepted(key)):
                    mail = self._digest_mail(workspace, key, recipients, incidents)
                    self._stop_if_claim_ran_out(key, digest.claimed_at)
                    self._parts.mails.send(mail)
            except PermanentError as error:
                for incident in incidents:
                    self._incidents.give_up(incident, Parked.MAIL_REFUSED, f"the mail could not be sent: {error}")
                continue
            for incident in incidents:
                self._mailed(incident, key)

    def _digest_mail(
        self, workspace: str, key: str, recipients: tuple[str, ...], incidents: list[Incident]
    ) -> DigestMail:
        since = self._parts.now() - max(self._limits.interval, timedelta(hours=1))
        closed = self._parts.history.closed_incidents(workspace, updated_after=since)
        return DigestMail(
            key=key,
            workspace=workspace,
            recipients=recipients,
            groups=mail_groups.by_cause(incidents),
            total=len(incidents),
            recovered=sum(incident.state is IncidentState.RECOVERED for incident in closed),
        )

    # ── leases ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def report_lease(self, lease: Lease) -> bool:
        """Send what people are to be told about a lease, once. Whether anything was done."""
        report = lease.report
        if report is None or self._parts.now() < report.due:
            return False
        incident = self._parts.history.read_incident(lease.workspace, lease.run_id)
        if incident is None:
            raise PermanentError(f"no incident for run {lease.run_id}: there is nobody to tell about its lease")
        self._incidents.stop_if_paused()
        mail = self._lease_mail(lease, report.news, incident)
        is_told = self._report_was_accepted(lease, mail) if report.claimed else False
        if is_told is False:
            lease, is_told = self._send_about(lease, report, mail)
        self._save_lease(replace(lease, report=None, reported=(*lease.reported, report.news)))
        if is_told:
            self._incidents.record(incident, "lease_reported", news=str(report.news), recipients=len(mail.recipients))
        else:
            telemetry.parked("lease_report_refused")
            self._incidents.record(incident, "lease_report_failed", news=str(report.news))
        return True

    def _report_was_accepted(self, lease: Lease, mail: EscalationMail) -> bool | None:
        """Whether the mail was accepted earlier; None where that can never be found out: it is not sent twice."""
        try:
            return self._parts.mails.was_accepted(mail.key)
        except PermanentError as error:
            log_given_up(lease, error)
            return None

    def _send_about(self, lease: Lease, report: LeaseReport, mail: EscalationMail) -> tuple[Lease, bool]:
        """Claim, send; the lease as it is stored then, and whether the mail went: one that never can is given up."""
        settles = timedelta(seconds=self._parts.settings.claim_settle_seconds)
        now = self._parts.now()
        lease = self._save_lease(replace(lease, report=replace(report, claimed=True, due=now + settles)))
        self._stop_if_claim_ran_out(mail.key, now)
        try:
            self._parts.mails.send(mail)
        except OutcomeUnknownError:
            raise
        except TransientError as error:
            due = self._parts.now() + self._wait_after(error)
            self._save_lease(replace(lease, report=replace(report, claimed=False, due=due)))
            raise
        except PermanentError as error:
            log_given_up(lease, error)
            return lease, False
        return lease, True

    def _lease_mail(self, lease: Lease, news: LeaseNews, incident: Incident) -> EscalationMail:
        cause, reason = LEASE_TEXTS[news]
        concerned = lease.changes if news is LeaseNews.REFUSED else changed_by_others(lease)
        values = "; ".join(map(value_of_lease, (change for change in concerned if change.edits_job)))
        decision = Decision(
            failure_id=incident.failure_id,
            decision=DecisionKind.ESCALATE_EMAIL,
            recommended=DecisionKind.ESCALATE_EMAIL,
            category=Category.CONFIGURATION,
            reason=f"{reason} {values}",
            confidence=1.0,
            rules=(f"lease.{news}",),
            fingerprint="",
            excerpt=lease.refusal if news is LeaseNews.REFUSED else "",
            cause=cause,
        )
        incident = replace(incident, recipients=incident.recipients or self._parts.settings.escalation_emails)
        key = f"lease:{lease.workspace}:{lease.job_id}:{lease.run_id}:{lease.attempt}:{news}"
        return mail_of(incident, decision, "lease", key)

    def _save_lease(self, lease: Lease) -> Lease:
        return self._parts.history.save_lease(replace(lease, write_guid=self._parts.guid()))

    def _wait_after(self, error: TransientError) -> timedelta:
        """As long as the service asks for, else as long as is usual."""
        wait = error.retry_after_seconds if isinstance(error, ThrottledError) else None
        return timedelta(seconds=wait if wait is not None else self._parts.settings.defer_base_seconds)

    def _save_book(self, book: MailBook) -> MailBook:
        return self._parts.history.save_mail_book(replace(book, write_guid=self._parts.guid()))


LEASE_TEXTS = {
    LeaseNews.REFUSED: (
        "the job's settings could not be put back after a retry",
        "For a retry of this run the job's settings were changed, and Databricks refuses to take the old values back."
        " The agent goes on trying once an hour. Please put them back by hand, where they are still those of the"
        " retry:",
    ),
    LeaseNews.LEFT: (
        "settings of the job were changed by somebody during a retry, and left so",
        "For a retry of this run the job's settings were changed. Somebody has changed these since, so they were not"
        " put back; please look whether they are as they should be:",
    ),
}
"""Cause and reason of the mails about a lease; the values follow."""


def changed_by_others(lease: Lease) -> tuple[SettingChange, ...]:
    return tuple(change for change in lease.changes if place_and_name(change) in lease.foreign)


def value_of_lease(change: SettingChange) -> str:
    """`job cluster main: new_cluster.num_workers (2 before, 4 for the retry)`."""
    old = "not set" if change.old is None else change.old
    return f"{place_and_name(change)} ({old} before, {change.new} for the retry)"


def mail_limits(settings: Settings) -> MailLimits:
    return MailLimits(
        group_wait=timedelta(seconds=settings.group_wait_seconds),
        interval=timedelta(minutes=settings.digest_interval_minutes),
        repeat=timedelta(hours=settings.mail_repeat_hours),
        at_once_per_hour=settings.mails_at_once_per_hour,
    )


def end_of(incident: Incident) -> IncidentState:
    """How an incident ends that people are told about: with or without retries that failed."""
    failed = any(attempt.outcome is AttemptOutcome.FAILED_AGAIN for attempt in incident.attempts)
    return IncidentState.FAILED_AGAIN if failed else IncidentState.ESCALATED


def mail_of(incident: Incident, decision: Decision, kind: str, key: str) -> EscalationMail:
    return EscalationMail(
        kind=kind,
        key=key,
        workspace=incident.workspace,
        run_id=incident.watched_run_id,
        job_id=incident.job_id,
        job_name=incident.job_name,
        page_url=incident.page_url,
        failed_at=incident.failed_at,
        decision=decision,
        attempts=incident.attempts,
        recipients=incident.recipients,
        mode=incident.mode,
    )


def log_given_up(lease: Lease, error: PermanentError) -> None:
    logger.error(
        "mail about a changed job could not be sent",
        extra={
            "workspace": lease.workspace,
            "run_id": lease.run_id,
            "job_id": lease.job_id,
            "reason": redact(str(error)),
        },
    )


def short_hash(recipients: tuple[str, ...]) -> str:
    return hashlib.sha256("\n".join(recipients).encode()).hexdigest()[:12]
