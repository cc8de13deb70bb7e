"""Which failures get a mail of their own, and that every sum adds up."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from shared.mail_groups import MailBook, MailLimits, by_cause, choose, claim_digest, finish_digest
from tests.builders import build_decision, build_incident

NOW = datetime(2026, 11, 24, 3, 0, tzinfo=UTC)
LIMITS = MailLimits()
EMPTY = MailBook("w")


def test_the_first_failure_of_a_cause_is_mailed_at_once_and_asking_again_says_the_same() -> None:
    book, own = choose(EMPTY, "f", "w:1:original", NOW, LIMITS)
    assert own
    assert choose(book, "f", "w:1:original", NOW, LIMITS) == (book, True)


def test_what_follows_waits_for_a_digest_that_comes_soon_and_then_once_an_interval() -> None:
    book, _ = choose(EMPTY, "f", "w:1:original", NOW, LIMITS)
    book, own = choose(book, "f", "w:2:original", NOW, LIMITS)
    assert not own
    assert book.digest_due == NOW + LIMITS.group_wait
    sent = finish_digest(claim_digest(book, [2], NOW + LIMITS.group_wait))
    assert sent.digest_due is None
    later, own = choose(sent, "f", "w:3:original", NOW + timedelta(minutes=1), LIMITS)
    assert not own
    assert later.digest_due == NOW + LIMITS.group_wait + LIMITS.interval


def test_a_cause_is_mailed_at_once_again_after_the_repeat_time() -> None:
    book, _ = choose(EMPTY, "f", "w:1:original", NOW, LIMITS)
    assert not choose(book, "f", "w:2:original", NOW + LIMITS.repeat - timedelta(seconds=1), LIMITS)[1]
    assert choose(book, "f", "w:2:original", NOW + LIMITS.repeat, LIMITS)[1]


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 600)), min_size=1, max_size=200))
def test_never_more_mails_at_once_in_an_hour_than_allowed(failures: list[tuple[int, int]]) -> None:
    book, now, at_once = EMPTY, NOW, []
    for number, (cause, seconds) in enumerate(failures):
        now += timedelta(seconds=seconds)
        book, own = choose(book, f"f{cause}", f"w:{number}:original", now, LIMITS)
        if own:
            at_once.append(now)
        else:
            assert book.digest_due is not None
        assert sum(now - time < timedelta(hours=1) for time in at_once) <= LIMITS.at_once_per_hour


@given(st.lists(st.integers(0, 5), max_size=60))
def test_the_groups_of_a_digest_add_up(causes: list[int]) -> None:
    incidents = [
        replace(build_incident(run_id=n), decision=replace(build_decision(), fingerprint=f"f{cause}"))
        for n, cause in enumerate(causes)
    ]
    groups = by_cause(incidents)
    assert sum(group.count for group in groups) == len(incidents)
    assert [group.count for group in groups] == sorted((group.count for group in groups), reverse=True)
    assert len(groups) == len(set(causes))
