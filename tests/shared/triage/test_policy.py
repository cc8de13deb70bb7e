"""The policy has the last word: every reason to stand down, every limit, and what no input can make it do."""

from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.domain import (
    Attempt,
    AttemptOutcome,
    Category,
    Change,
    ChangeKind,
    DecisionKind,
    Mode,
    NewerRun,
    RunFacts,
)
from shared.triage.change_plan import ChangeBounds
from shared.triage.policy import (
    BOUND_TAGS,
    CHANGES_TAG,
    IDEMPOTENT_TAG,
    MAX_ATTEMPTS_TAG,
    MODE_TAG,
    OWNER_TAG,
    Limits,
    Proposal,
    Verdict,
    backoff_seconds,
    carry_out,
    mode_of,
    narrowed,
    permit,
    recipients_of,
    stand_down,
    withdrawn,
)
from tests.builders import (
    NOW,
    build_attempt,
    build_diagnosis,
    build_job_facts,
    build_newer_run,
    build_repair,
    build_run_facts,
    build_run_state,
)
from tests.shared.triage.clusters import a_job, facts_of

LIMITS = Limits(
    max_retry_attempts=3,
    retry_with_params_attempts=2,
    max_failure_age=timedelta(hours=6),
    backoff_base_seconds=30,
    backoff_cap_seconds=900,
    default_mode=Mode.FULL,
)
HALVED_BATCH = Change(ChangeKind.PARAM, "batch_size")
MORE_MEMORY = Change(ChangeKind.WORKER_MEMORY_UP)
RETRY = build_diagnosis()
CHANGED_RETRY = build_diagnosis(
    category=Category.DRIVER_MEMORY, recommended=DecisionKind.RETRY_WITH_PARAMS, changes=(HALVED_BATCH,)
)


def limits(**overrides: Any) -> Limits:
    fields = {name: getattr(LIMITS, name) for name in Limits.__dataclass_fields__}
    return Limits(**(fields | overrides))


def facts_with_batch_size(*, value: str = "1000", tags: dict[str, str] | None = None, **overrides: Any) -> RunFacts:
    job = build_job_facts(declared_parameters={"batch_size": value}, tags=tags or {})
    return build_run_facts(job=job, **overrides)


@dataclass(frozen=True)
class Case:
    """One run and the name of the rule for which it is left alone; None = it is not."""

    name: str
    want: str | None
    run: dict[str, Any] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    job: dict[str, Any] = field(default_factory=dict)
    newer: tuple[NewerRun, ...] = ()
    parent: str = ""
    limits: dict[str, Any] = field(default_factory=dict)


STAND_DOWNS = [
    Case("a failed run", None),
    Case("active again", "running_again", run={"is_active": True, "is_failed": False}),
    Case("repaired meanwhile", "not_failed", run={"is_failed": False, "result_state": "SUCCESS"}),
    Case("a job of the list", None, limits={"job_ids": frozenset({77})}),
    Case("a job not of the list", "not_selected", limits={"job_ids": frozenset({78})}),
    Case("a one-time run where jobs are listed", "not_selected", {"job_id": None}, limits={"job_ids": frozenset({78})}),
    Case("the tag wanted", None, tags={"team": "a"}, limits={"job_tags": {"team": "a"}}),
    Case("another value of the tag", "not_selected", tags={"team": "b"}, limits={"job_tags": {"team": "a"}}),
    Case("the tag is missing", "not_selected", limits={"job_tags": {"team": "a"}}),
    Case("one of two tags", "not_selected", tags={"a": "1"}, limits={"job_tags": {"a": "1", "b": "2"}}),
    Case("switched off by its tag", "switched_off", tags={MODE_TAG: "off"}),
    Case("switched off by its tag, in capitals", "switched_off", tags={MODE_TAG: "OFF"}),
    Case("off by default", "switched_off", limits={"default_mode": Mode.OFF}),
    Case("off by default, on by its tag", None, tags={MODE_TAG: "retry"}, limits={"default_mode": Mode.OFF}),
    Case("owned by a parent", "healed_by_parent", parent="Azure Data Factory"),
    Case("a continuous job", "continuous_job", job={"is_continuous": True}),
    Case("paused by a person", "paused_job", job={"is_paused": True}),
    Case("a trigger paused by a person", "paused_job", run={"trigger": "FILE_ARRIVAL"}, job={"is_paused": True}),
    Case("started by hand while paused", None, run={"trigger": "ONE_TIME"}, job={"is_paused": True}),
    Case("a newer run succeeded", "newer_run_succeeded", newer=(build_newer_run(),)),
    Case("a newer run is under way", "newer_run_active", newer=(build_newer_run(is_active=True, result_state=None),)),
    Case("a newer run failed too", None, newer=(build_newer_run(result_state="FAILED"),)),
    Case("a newer run of other parameters", None, newer=(build_newer_run(job_parameters={"day": "2"}),)),
    Case(
        "a newer run of the same parameters",
        "newer_run_succeeded",
        run={"job_parameters": {"day": "2"}},
        newer=(build_newer_run(result_state="FAILED"), build_newer_run(job_parameters={"day": "2"})),
    ),
    Case("the first reason counts", "running_again", run={"is_active": True}, parent="Airflow"),
]


@pytest.mark.parametrize("case", STAND_DOWNS, ids=lambda case: case.name)
def test_a_run_is_left_alone_for_a_reason_that_has_a_name(case: Case) -> None:
    facts = build_run_facts(
        run=build_run_state(**case.run),
        job=build_job_facts(tags=case.tags, **case.job),
        newer_runs=case.newer,
        parent=case.parent,
    )

    found = stand_down(facts, limits(**case.limits))

    assert (found.rule if found else None) == case.want
    assert found is None or found.reason


@dataclass(frozen=True)
class LimitCase:
    """A retry that the diagnosis calls for, and the limit that forbids it; None = it is permitted."""

    name: str
    want: str | None
    changed: bool = False
    attempts: int = 0
    changed_attempts: int = 0
    repairs: int = 0
    age: timedelta = timedelta()
    tags: dict[str, str] = field(default_factory=dict)
    value: str = "1000"
    limits: dict[str, Any] = field(default_factory=dict)


LIMIT_CASES = [
    LimitCase("fresh", None),
    LimitCase("two of three", None, attempts=2),
    LimitCase("three of three", "retry_limit", attempts=3),
    LimitCase("more than three", "retry_limit", attempts=4),
    LimitCase("repairs made by others count", "retry_limit", repairs=3),
    LimitCase("repairs and attempts are the same retries", None, attempts=2, repairs=2),
    LimitCase("no retries at all", "retry_limit", limits={"max_retry_attempts": 0}),
    LimitCase("the tag allows fewer", "retry_limit", attempts=1, tags={MAX_ATTEMPTS_TAG: "1"}),
    LimitCase("the tag allows none", "retry_limit", tags={MAX_ATTEMPTS_TAG: "0"}),
    LimitCase("the tag cannot allow more", "retry_limit", attempts=3, tags={MAX_ATTEMPTS_TAG: "9"}),
    LimitCase("a number of retries that is none", "unreadable_tag", tags={MAX_ATTEMPTS_TAG: "-1"}),
    LimitCase("a changed retry", None, changed=True),
    LimitCase("one changed retry made", None, changed=True, attempts=1, changed_attempts=1),
    LimitCase("two changed retries made", "changed_retry_limit", changed=True, attempts=2, changed_attempts=2),
    LimitCase("two changed retries made, now a plain one", None, attempts=2, changed_attempts=2),
    LimitCase("no changed retries at all", "changed_retry_limit", True, limits={"retry_with_params_attempts": 0}),
    LimitCase("just young enough", None, age=timedelta(hours=6)),
    LimitCase("too old", "too_old", age=timedelta(hours=6, seconds=1)),
    LimitCase("not idempotent", "not_idempotent", tags={IDEMPOTENT_TAG: "False"}),
    LimitCase("idempotent", None, tags={IDEMPOTENT_TAG: "true"}),
    LimitCase("idempotent or not", "unreadable_tag", tags={IDEMPOTENT_TAG: "perhaps"}),
    LimitCase("nothing left to halve", "change_needs_a_person", changed=True, value="1"),
    LimitCase("age comes first", "too_old", attempts=3, age=timedelta(days=3), tags={IDEMPOTENT_TAG: "false"}),
]


@pytest.mark.parametrize("case", LIMIT_CASES, ids=lambda case: case.name)
def test_a_limit_turns_a_retry_into_a_mail(case: LimitCase) -> None:
    diagnosis = CHANGED_RETRY if case.changed else RETRY
    run = build_run_state(
        end_time=NOW - case.age, repairs=tuple(build_repair(repair_id=500 + n) for n in range(case.repairs))
    )
    attempts = [build_attempt(number=n + 1, with_changes=n < case.changed_attempts) for n in range(case.attempts)]
    facts = facts_with_batch_size(run=run, tags=case.tags, value=case.value)

    verdict = permit(Proposal(diagnosis, facts, attempts, limits(**case.limits), NOW), jitter=0.5)

    if case.want is None:
        assert verdict.decision is diagnosis.recommended
        assert verdict.rules == ()
    else:
        assert verdict.decision is DecisionKind.ESCALATE_EMAIL
        assert verdict.rules == (f"policy.{case.want}",)
        assert verdict.delay_seconds == 0
        assert verdict.changes == diagnosis.changes, "the mail carries the suggestion"
        assert verdict.reason.startswith(diagnosis.reason)


@pytest.mark.parametrize("kind", [DecisionKind.ESCALATE_EMAIL, DecisionKind.SKIP])
def test_what_is_not_a_retry_needs_no_permission(kind: DecisionKind) -> None:
    facts = build_run_facts(tags={MAX_ATTEMPTS_TAG: "0", IDEMPOTENT_TAG: "false"})

    verdict = permit(Proposal(build_diagnosis(recommended=kind), facts, (), LIMITS, NOW), jitter=0.5)

    assert (verdict.decision, verdict.rules, verdict.delay_seconds) == (kind, (), 0.0)


def test_a_permitted_change_comes_with_the_value_that_the_retry_will_use() -> None:
    verdict = permit(Proposal(CHANGED_RETRY, facts_with_batch_size(), (), LIMITS, NOW), jitter=0.5)

    assert verdict.changes == (Change(ChangeKind.PARAM, "batch_size", "500"),)
    assert [(change.target, change.new) for change in verdict.setting_changes] == [("parameter:batch_size", "500")]


def more_memory(facts: RunFacts, *attempts: Attempt, bounds: ChangeBounds | None = None) -> Verdict:
    diagnosis = build_diagnosis(recommended=DecisionKind.RETRY_WITH_PARAMS, changes=(MORE_MEMORY, HALVED_BATCH))
    allowed = limits(bounds=bounds or ChangeBounds())
    return permit(Proposal(diagnosis, facts, attempts, allowed, NOW), jitter=0.5)


def test_a_permitted_change_of_the_cluster_comes_with_what_becomes_what() -> None:
    verdict = more_memory(facts_of(a_job()))

    assert verdict.decision is DecisionKind.RETRY_WITH_PARAMS
    assert verdict.changes == (MORE_MEMORY, Change(ChangeKind.PARAM, "batch_size", "500"))
    assert [(change.old, change.new) for change in verdict.setting_changes] == [
        ("Standard_E8ds_v5", "Standard_E16ds_v5"),
        ("1000", "500"),
    ]


def test_a_change_that_is_not_possible_is_suggested_to_a_person_with_the_reason() -> None:
    verdict = more_memory(facts_of(a_job()), bounds=ChangeBounds(max_node_memory_gb=64))

    assert verdict.decision is DecisionKind.ESCALATE_EMAIL
    assert verdict.rules == ("policy.change_needs_a_person",)
    assert verdict.changes == (MORE_MEMORY, HALVED_BATCH)
    assert verdict.setting_changes == ()
    assert "is not one that is made by itself. The job cluster main cannot have more memory" in verdict.reason


@pytest.mark.parametrize(
    ("outcome", "want"),
    [
        (AttemptOutcome.FAILED_AGAIN, "Standard_E32ds_v5"),
        (AttemptOutcome.CANCELLED, "Standard_E16ds_v5"),
        (AttemptOutcome.SUPERSEDED, "Standard_E16ds_v5"),
    ],
)
def test_a_change_that_did_not_help_is_taken_one_step_further(outcome: AttemptOutcome, want: str) -> None:
    attempt = build_attempt(with_changes=True, changes=(MORE_MEMORY.word, "param:batch_size"), outcome=outcome)

    verdict = more_memory(facts_of(a_job()), attempt)

    assert [change.new for change in verdict.setting_changes] == [want, "500"]


def test_a_plain_retry_changes_nothing() -> None:
    diagnosis = build_diagnosis(changes=(MORE_MEMORY,))

    verdict = permit(Proposal(diagnosis, facts_of(a_job()), (), LIMITS, NOW), jitter=0.5)

    assert (verdict.decision, verdict.changes, verdict.setting_changes) == (DecisionKind.RETRY, (), ())


def test_without_a_run_only_the_limits_speak() -> None:
    verdict = permit(Proposal(CHANGED_RETRY, None, (), LIMITS, NOW), jitter=0.5)

    assert (verdict.decision, verdict.changes) == (DecisionKind.RETRY_WITH_PARAMS, (HALVED_BATCH,))


MAX_COST, MAX_WORKERS, MAX_MEMORY, MAX_HOURS = BOUND_TAGS
MORE_WORKERS, MORE_TIME = Change(ChangeKind.MORE_WORKERS), Change(ChangeKind.TIMEOUT_UP)


@pytest.mark.parametrize(
    ("change", "tags", "want"),
    [
        (MORE_WORKERS, {MAX_WORKERS: "99"}, 3),
        (MORE_WORKERS, {MAX_WORKERS: "2"}, "change_needs_a_person"),
        (MORE_WORKERS, {MAX_WORKERS: "2.5"}, "change_needs_a_person"),
        (MORE_WORKERS, {MAX_COST: "1.2"}, "change_needs_a_person"),
        (MORE_WORKERS, {MAX_COST: "1.4"}, 3),
        (MORE_MEMORY, {MAX_MEMORY: "128"}, "Standard_E16ds_v5"),
        (MORE_MEMORY, {MAX_MEMORY: "127"}, "change_needs_a_person"),
        (MORE_MEMORY, {MAX_MEMORY: "9999"}, "Standard_E16ds_v5"),
        (MORE_TIME, {MAX_HOURS: "1.5"}, 5400),
        (MORE_TIME, {MAX_HOURS: "1"}, "change_needs_a_person"),
        (HALVED_BATCH, {MAX_COST: "0"}, "change_needs_a_person"),
        (MORE_WORKERS, {CHANGES_TAG: "more_workers"}, 3),
        (MORE_WORKERS, {CHANGES_TAG: "param, More_Workers"}, 3),
        (MORE_WORKERS, {CHANGES_TAG: "param+more_workers"}, 3),
        (HALVED_BATCH, {CHANGES_TAG: "param"}, "500"),
        (MORE_WORKERS, {CHANGES_TAG: "worker_memory_up"}, "change_not_allowed"),
        (MORE_WORKERS, {CHANGES_TAG: ""}, "change_not_allowed"),
        (MORE_WORKERS, {CHANGES_TAG: "more_workers, everything"}, "unreadable_tag"),
        *(
            (MORE_WORKERS, {tag: value}, "unreadable_tag")
            for tag in BOUND_TAGS
            for value in ("", "many", "-1", "nan", "inf", "1e3", "٣", "3,5")
        ),
    ],
)
def test_a_tag_narrows_what_may_be_changed(change: Change, tags: dict[str, str], want: object) -> None:
    settings = a_job(timeout_seconds=3600)
    known = facts_of(settings)
    assert known.job is not None
    facts = replace(known, job=replace(known.job, tags=tags))
    diagnosis = build_diagnosis(recommended=DecisionKind.RETRY_WITH_PARAMS, changes=(change,))

    verdict = permit(Proposal(diagnosis, facts, (), LIMITS, NOW), jitter=0.5)

    if verdict.decision is DecisionKind.RETRY_WITH_PARAMS:
        assert [made.new for made in verdict.setting_changes] == [want]
    else:
        assert verdict.decision is DecisionKind.ESCALATE_EMAIL
        assert verdict.rules == (f"policy.{want}",)
        assert verdict.changes == (change,), "it is suggested"


def test_a_tag_about_changes_is_no_hindrance_to_a_plain_retry() -> None:
    facts = build_run_facts(tags={MAX_WORKERS: "many", CHANGES_TAG: "?"})

    assert permit(Proposal(RETRY, facts, (), LIMITS, NOW), jitter=0.5).decision is DecisionKind.RETRY


@given(st.dictionaries(st.sampled_from(list(BOUND_TAGS)), st.integers(0, 10**9).map(str)))
def test_no_tag_widens_a_bound(tags: dict[str, str]) -> None:
    bounds = narrowed(LIMITS.bounds, tags)

    assert bounds.max_workers <= LIMITS.bounds.max_workers
    assert bounds.max_cost_factor <= LIMITS.bounds.max_cost_factor
    assert bounds.max_node_memory_gb <= LIMITS.bounds.max_node_memory_gb
    assert bounds.max_timeout_hours <= LIMITS.bounds.max_timeout_hours


tag_values = st.one_of(
    st.sampled_from(["", "0", "1", "2", "3", "9", "99", "-1", "٣", "full", "off", "true", "false"]),
    st.text(max_size=20),
)
tag_maps = st.dictionaries(
    st.sampled_from([MODE_TAG, OWNER_TAG, MAX_ATTEMPTS_TAG, IDEMPOTENT_TAG, CHANGES_TAG, *BOUND_TAGS, "team"]),
    tag_values,
    max_size=6,
)


@given(
    tags=tag_maps,
    attempts=st.integers(0, 8),
    changed=st.integers(0, 8),
    repairs=st.integers(0, 8),
    most=st.integers(0, 5),
    most_changed=st.integers(0, 5),
    diagnosis=st.sampled_from([RETRY, CHANGED_RETRY]),
)
def test_no_tag_makes_more_retries_than_the_limits_allow(
    tags: dict[str, str],
    attempts: int,
    changed: int,
    repairs: int,
    most: int,
    most_changed: int,
    diagnosis: Any,
) -> None:
    made = [build_attempt(number=n + 1, with_changes=n < changed) for n in range(attempts)]
    run = build_run_state(repairs=tuple(build_repair(repair_id=500 + n) for n in range(repairs)))
    bounds = limits(max_retry_attempts=most, retry_with_params_attempts=most_changed)

    verdict = permit(
        Proposal(diagnosis, facts_with_batch_size(run=run, tags=tags), made, bounds, NOW),
        jitter=0.5,
    )
    plain = permit(Proposal(diagnosis, facts_with_batch_size(run=run), made, bounds, NOW), jitter=0.5)

    if verdict.decision.is_retry:
        assert max(attempts, repairs) < most
        assert plain.decision is verdict.decision, "a tag never permits what is forbidden without it"
    if verdict.decision is DecisionKind.RETRY_WITH_PARAMS:
        assert min(attempts, changed) < most_changed


@given(made=st.integers(0, 10), jitter=st.floats(0, 1, exclude_max=True))
def test_the_backoff_stays_between_nothing_and_the_cap(made: int, jitter: float) -> None:
    delay = backoff_seconds(made, LIMITS, jitter)

    assert 0 <= delay <= min(LIMITS.backoff_cap_seconds, LIMITS.backoff_base_seconds * 2**made)


@pytest.mark.parametrize(
    ("tag", "default", "want"),
    [
        ("", Mode.OBSERVE, Mode.OBSERVE),
        ("full", Mode.OBSERVE, Mode.FULL),
        ("Retry", Mode.OBSERVE, Mode.RETRY),
        ("observe", Mode.FULL, Mode.OBSERVE),
        ("off", Mode.FULL, Mode.OFF),
        ("everything", Mode.RETRY, Mode.OBSERVE),
        ("everything", Mode.FULL, Mode.OBSERVE),
        ("everything", Mode.OFF, Mode.OFF),
    ],
)
def test_the_jobs_own_mode_wins_where_it_is_one(tag: str, default: Mode, want: Mode) -> None:
    assert mode_of({MODE_TAG: tag} if tag else {}, default) is want


@pytest.mark.parametrize(
    ("mode", "carried_out"),
    [
        (Mode.OFF, set()),
        (Mode.OBSERVE, set()),
        (Mode.RETRY, {DecisionKind.RETRY}),
        (Mode.FULL, {DecisionKind.RETRY, DecisionKind.RETRY_WITH_PARAMS}),
    ],
)
def test_what_a_mode_carries_out(mode: Mode, carried_out: set[DecisionKind]) -> None:
    always = {DecisionKind.ESCALATE_EMAIL, DecisionKind.SKIP}

    done = {kind for kind in DecisionKind if carry_out(kind, mode, dry_run=False) == (True, "")}

    assert done == carried_out | always
    for kind in set(DecisionKind) - done:
        assert str(mode) in carry_out(kind, mode, dry_run=False)[1]


@pytest.mark.parametrize(
    ("kind", "tags", "mode", "dry_run", "rule"),
    [
        (DecisionKind.RETRY, {}, Mode.FULL, False, None),
        (DecisionKind.RETRY, {}, Mode.RETRY, False, None),
        (DecisionKind.RETRY_WITH_PARAMS, {}, Mode.FULL, False, None),
        (DecisionKind.RETRY, {IDEMPOTENT_TAG: "true"}, Mode.FULL, False, None),
        (DecisionKind.RETRY, {}, Mode.OFF, False, "switched_off"),
        (DecisionKind.RETRY, {IDEMPOTENT_TAG: "false"}, Mode.OFF, True, "switched_off"),
        (DecisionKind.RETRY, {}, Mode.OBSERVE, False, "mode_changed"),
        (DecisionKind.RETRY_WITH_PARAMS, {}, Mode.RETRY, False, "mode_changed"),
        (DecisionKind.RETRY, {}, Mode.FULL, True, "mode_changed"),
        (DecisionKind.RETRY, {IDEMPOTENT_TAG: "false"}, Mode.FULL, False, "not_idempotent"),
        (DecisionKind.RETRY, {IDEMPOTENT_TAG: "perhaps"}, Mode.FULL, False, "unreadable_tag"),
    ],
)
def test_what_withdraws_a_retry_that_was_decided_upon(
    kind: DecisionKind, tags: dict[str, str], mode: Mode, dry_run: bool, rule: str | None
) -> None:
    found = withdrawn(kind, tags, mode, dry_run=dry_run)
    assert (found.rule if found else None) == rule


@pytest.mark.parametrize("mode", Mode)
def test_a_dry_run_carries_nothing_out(mode: Mode) -> None:
    for kind in DecisionKind:
        done, why = carry_out(kind, mode, dry_run=True)
        assert not done
        assert "dry run" in why


OPERATOR = ("ops@example.com",)


@pytest.mark.parametrize(
    ("owner", "want"),
    [
        ("", OPERATOR),
        ("orders", ("a@example.com", "b@elsewhere.org")),
        (" orders ", ("a@example.com", "b@elsewhere.org")),
        ("nobody", OPERATOR),
        ("unknown-alias", OPERATOR),
        ("ann@example.com", ("ann@example.com",)),
        ("ann@EXAMPLE.com", ("ann@EXAMPLE.com",)),
        ("ann@evil.test", OPERATOR),
        ("ann@sub.example.com", OPERATOR),
        ("ann@notexample.com", OPERATOR),
        ("@example.com", OPERATOR),
        ("eve@evil.test,ann@example.com", OPERATOR),
        ("eve@evil.test;ann@example.com", OPERATOR),
        ("eve@evil.test ann@example.com", OPERATOR),
        ("<eve@evil.test>@example.com", OPERATOR),
        ("eve%evil.test@example.com\nBcc: eve@example.com", OPERATOR),
    ],
)
def test_who_is_told(owner: str, want: tuple[str, ...]) -> None:
    told = recipients_of(
        {OWNER_TAG: owner} if owner else {},
        owners={"orders": "a@example.com, b@elsewhere.org", "nobody": " "},
        default=OPERATOR,
        allowed_domains=("Example.com",),
    )

    assert told == want


def test_without_allowed_domains_no_address_on_a_job_is_used() -> None:
    told = recipients_of({OWNER_TAG: "ann@example.com"}, owners={}, default=OPERATOR, allowed_domains=())

    assert told == OPERATOR
