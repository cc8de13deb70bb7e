"""The summary of one pass: what counts as what, and its shape, which programs rely on."""

import json
from dataclasses import replace

import pytest

from shared.domain import Change, ChangeKind, DecisionKind, Incident, IncidentState, Mode, SettingChange
from shared.monitoring import Action, Actions, InlineQueues, outcome_of, summarise, unread_report
from shared.ports import OutgoingMessage
from tests.builders import NOW, build_decision, build_incident, build_run_summary

EMPTY = {"count": 0, "run_ids": "", "at": NOW.isoformat()}


def incident(decision: DecisionKind, state: IncidentState, *, carried_out: bool = True, run_id: int = 1001) -> Incident:
    return build_incident(
        run_id=run_id, state=state, decision=build_decision(decision=decision, carried_out=carried_out, run_id=run_id)
    )


RETRY, CHANGED, MAIL, SKIP = DecisionKind
STATES = IncidentState


@pytest.mark.parametrize(
    ("decided", "dry_run", "action", "outcome"),
    [
        (incident(RETRY, STATES.RETRYING), False, "retried", "open"),
        (incident(RETRY, STATES.RECOVERED), False, "retried", "recovered"),
        (incident(RETRY, STATES.SKIPPED), False, "skipped", "skipped"),
        (incident(RETRY, STATES.ESCALATED, carried_out=False), False, "escalated", "escalated"),
        (incident(RETRY, STATES.SKIPPED, carried_out=False), True, "retried", "open"),
        (incident(CHANGED, STATES.RETRYING), False, "retried_with_params", "open"),
        (incident(CHANGED, STATES.ESCALATED, carried_out=False), False, "escalated", "escalated"),
        (incident(CHANGED, STATES.SKIPPED, carried_out=False), True, "retried_with_params", "open"),
        (incident(MAIL, STATES.ESCALATED), False, "escalated", "escalated"),
        (incident(MAIL, STATES.FAILED_AGAIN), False, "escalated", "failed_again"),
        (incident(MAIL, STATES.PARKED), False, "escalated", "escalated"),
        (incident(MAIL, STATES.SKIPPED, carried_out=False), True, "escalated", "open"),
        (incident(SKIP, STATES.SKIPPED), False, "skipped", "skipped"),
        (incident(SKIP, STATES.SKIPPED, carried_out=False), True, "skipped", "open"),
    ],
)
def test_what_an_incident_counts_as(decided: Incident, dry_run: bool, action: str, outcome: str) -> None:
    summary = summarise([decided], at=NOW, dry_run=dry_run)

    counts = {name: found["count"] for name, found in summary["actions"].items()}  # type: ignore[index]
    assert counts == {name: int(name == action) for name in Actions.__annotations__}
    assert outcome_of(decided) == (outcome if not dry_run else "skipped")
    assert summary["runs"][0]["outcome"] == outcome


@pytest.mark.parametrize(
    ("decision", "mode", "dry_run", "is_told"),
    [
        (MAIL, Mode.FULL, True, True),
        (MAIL, Mode.OBSERVE, True, True),
        (SKIP, Mode.FULL, True, False),
        (SKIP, Mode.OFF, True, False),
        (RETRY, Mode.RETRY, True, False),
        (RETRY, Mode.OBSERVE, True, True),
        (CHANGED, Mode.FULL, True, False),
        (CHANGED, Mode.RETRY, True, True),
        (MAIL, Mode.FULL, False, True),
        (RETRY, Mode.OBSERVE, False, True),
        (RETRY, Mode.FULL, False, False),
        (SKIP, Mode.FULL, False, False),
    ],
)
def test_who_is_told_of_a_decision_and_of_a_dry_one_would_be(
    decision: DecisionKind, mode: Mode, dry_run: bool, is_told: bool
) -> None:
    carried_out = not dry_run and mode.carries_out(decision)
    state = STATES.SKIPPED if dry_run or decision is SKIP else STATES.ESCALATED if is_told else STATES.RETRYING
    decided = replace(
        incident(decision, state, carried_out=carried_out), mode=mode, recipients=("a@example.com", "b@example.com")
    )

    (report,) = summarise([decided], at=NOW, dry_run=dry_run)["runs"]

    assert report["recipients"] == (["a@example.com", "b@example.com"] if is_told else [])
    assert report["mode"] == mode


def test_the_changes_of_a_retry_are_reported_with_both_values() -> None:
    change = SettingChange(
        Change(ChangeKind.MORE_WORKERS), "job_cluster:main", ("new_cluster", "num_workers"), 2, 4, "More workers.", 2.0
    )
    decided = incident(CHANGED, STATES.RETRYING)
    assert decided.decision is not None
    decided = replace(decided, decision=replace(decided.decision, setting_changes=(change,)))

    (report,) = summarise([decided], at=NOW, dry_run=False)["runs"]

    assert report["setting_changes"] == ["job cluster main: num_workers 2 → 4, about 2 times the price. More workers."]


def test_every_action_is_flat_and_has_the_same_keys_even_when_it_is_empty() -> None:
    summary = summarise([], at=NOW, dry_run=False)

    assert dict(summary) == {
        "actions": {"retried": EMPTY, "retried_with_params": EMPTY, "escalated": EMPTY, "skipped": EMPTY},
        "runs": [],
    }
    assert set(Action.__annotations__) == set(EMPTY)


def test_run_ids_are_one_text_and_the_summary_is_json() -> None:
    runs = [incident(RETRY, STATES.RETRYING, run_id=n) for n in (12, 11)]

    summary = summarise(runs, [unread_report(build_run_summary(run_id=13), "busy")], at=NOW, dry_run=False)

    assert summary["actions"]["retried"] == {"count": 2, "run_ids": "12,11", "at": NOW.isoformat()}
    assert [report["run_id"] for report in json.loads(json.dumps(summary))["runs"]] == [12, 11, 13]


def test_an_incident_without_a_decision_is_not_reported() -> None:
    assert summarise([build_incident()], at=NOW, dry_run=False)["runs"] == []


def test_a_run_that_could_not_be_read_is_reported_like_the_others() -> None:
    unread = unread_report(build_run_summary(), "Databricks does not answer")
    (decided,) = summarise([incident(RETRY, STATES.RETRYING)], at=NOW, dry_run=False)["runs"]

    assert unread.keys() == decided.keys()
    assert {name: type(value) for name, value in unread.items()} == {
        name: type(value) for name, value in decided.items()
    }
    assert "Databricks does not answer" in unread["reason"]


def test_inline_queues_give_back_in_order() -> None:
    queues = InlineQueues()
    messages = [OutgoingMessage("{}", f"id-{n}") for n in range(3)]

    queues.send("retries", messages[:2])
    queues.send("emails", messages[2:])

    taken = [queues.take() for _ in range(4)]
    assert taken == [("retries", messages[0]), ("retries", messages[1]), ("emails", messages[2]), None]
