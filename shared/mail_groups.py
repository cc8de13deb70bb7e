"""Which failures get a mail of their own and which share one: no mailbox is flooded, and every sum adds up. Pure.

The first failure of a cause (one fingerprint) is mailed at once. What follows is gathered: a digest goes out shortly
after the first that is gathered, then at most one per interval. Mails at once are limited by the hour, whatever the
causes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from shared.domain import CauseGroup, Incident

HOUR = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class MailLimits:
    """`group_wait` before the first digest, `interval` between two, `repeat` until a cause is mailed at once again."""

    group_wait: timedelta = timedelta(seconds=30)
    interval: timedelta = timedelta(minutes=15)
    repeat: timedelta = timedelta(hours=4)
    at_once_per_hour: int = 4


@dataclass(frozen=True, slots=True)
class OpenDigest:
    """A digest whose runs are settled and whose mails are being sent; not tried again before `not_before`."""

    number: int
    run_ids: tuple[int, ...]
    claimed_at: datetime
    not_before: datetime


@dataclass(frozen=True, slots=True)
class MailBook:
    """What was mailed, per workspace. `at_once` maps a fingerprint to its latest mail of its own: time and failure."""

    workspace: str
    at_once: dict[str, tuple[datetime, str]] = field(default_factory=dict)
    digest_due: datetime | None = None
    digest_sent_at: datetime | None = None
    digests: int = 0
    open_digest: OpenDigest | None = None
    write_guid: str = ""
    etag: str = ""


def choose(
    book: MailBook, fingerprint: str, failure_id: str, now: datetime, limits: MailLimits
) -> tuple[MailBook, bool]:
    """The book with the failure entered, and whether it gets a mail of its own now; asked again, it says the same."""
    last = book.at_once.get(fingerprint)
    if last and last[1] == failure_id:
        return book, True
    recent = {name: entry for name, entry in book.at_once.items() if now - entry[0] < max(limits.repeat, HOUR)}
    in_last_hour = sum(now - entry[0] < HOUR for entry in recent.values())
    is_new = last is None or now - last[0] >= limits.repeat
    if is_new and in_last_hour < limits.at_once_per_hour:
        return replace(book, at_once={**recent, fingerprint: (now, failure_id)}), True
    return expect_digest(replace(book, at_once=recent), now, limits), False


def expect_digest(book: MailBook, now: datetime, limits: MailLimits) -> MailBook:
    """The book with a digest due: shortly where the last one is long past, else an interval after it."""
    if book.digest_due is not None:
        return book
    due = now + limits.group_wait
    if book.digest_sent_at is not None:
        due = max(due, book.digest_sent_at + limits.interval)
    return replace(book, digest_due=due)


def claim_digest(book: MailBook, run_ids: Iterable[int], now: datetime) -> MailBook:
    """Settle which runs the next digest reports, before any of its mails is sent."""
    number = book.digests + 1
    return replace(
        book,
        digests=number,
        digest_due=None,
        digest_sent_at=now,
        open_digest=OpenDigest(number, tuple(sorted(run_ids)), now, now),
    )


def reclaim_digest(book: MailBook, now: datetime) -> MailBook:
    """Take over a digest that was cut off; it reports the same runs under the same number."""
    digest = book.open_digest
    return replace(book, open_digest=replace(digest, claimed_at=now)) if digest else book


def put_off_digest(book: MailBook, until: datetime) -> MailBook:
    """The service cannot take the digest's mails before that time."""
    digest = book.open_digest
    return replace(book, open_digest=replace(digest, not_before=until)) if digest else book


def finish_digest(book: MailBook) -> MailBook:
    return replace(book, open_digest=None)


def by_cause(incidents: Sequence[Incident], *, examples: int = 3, jobs: int = 10) -> tuple[CauseGroup, ...]:
    """Incidents grouped by fingerprint, the largest group first; the counts add up to the number of incidents."""
    groups: dict[str, list[Incident]] = {}
    for incident in incidents:
        groups.setdefault(incident.decision.fingerprint if incident.decision else "", []).append(incident)
    made = []
    for fingerprint, members in groups.items():
        decision = members[0].decision
        names = tuple(dict.fromkeys(member.job_name for member in members))
        made.append(
            CauseGroup(
                fingerprint=fingerprint,
                cause=decision.cause if decision else "",
                category=str(decision.category) if decision else "",
                reason=decision.reason if decision else "",
                count=len(members),
                jobs=names[:jobs],
                examples=tuple(members[:examples]),
            )
        )
    return tuple(sorted(made, key=lambda group: -group.count))
