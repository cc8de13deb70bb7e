"""A retry stands back where the schedule starts the same work before it could end, or where a person paused the job."""

from datetime import timedelta
from typing import Any

import pytest

from shared.domain import DecisionKind
from shared.triage.policy import Limits, Proposal, permit, stand_down
from tests.builders import NOW, build_diagnosis, build_job_facts, build_run_facts, build_run_state

LIMITS = Limits(3, 2, timedelta(hours=6), 30, 900)
HOURLY = {"schedule": {"quartz_cron_expression": "0 0 * * * ?", "timezone_id": "UTC"}}
UNTIL_NEXT_HOUR = timedelta(minutes=60 - NOW.minute, seconds=-NOW.second)


@pytest.mark.parametrize(
    ("run", "job", "want"),
    [
        ({}, {}, DecisionKind.SKIP),
        ({"start_time": NOW - timedelta(minutes=1), "end_time": NOW}, {}, DecisionKind.RETRY),
        ({"trigger": "ONE_TIME"}, {}, DecisionKind.RETRY),
        ({"job_parameters": {"day": "2026-01-01"}}, {}, DecisionKind.RETRY),
        ({}, {"settings": {}}, DecisionKind.RETRY),
    ],
)
def test_the_next_scheduled_run_comes_first(run: dict[str, Any], job: dict[str, Any], want: DecisionKind) -> None:
    long_run = {
        "trigger": "PERIODIC",
        "job_parameters": {},
        "start_time": NOW - UNTIL_NEXT_HOUR - timedelta(minutes=5),
        "end_time": NOW,
    }
    facts = build_run_facts(
        run=build_run_state(**(long_run | run)),
        job=build_job_facts(**({"settings": HOURLY, "declared_parameters": {}} | job)),
    )
    proposal = Proposal(build_diagnosis(recommended=DecisionKind.RETRY, changes=()), facts, (), LIMITS, NOW)
    assert permit(proposal, jitter=0.0).decision is want


@pytest.mark.parametrize(("trigger", "rule"), [("PERIODIC", "paused_job"), ("ONE_TIME", None)])
def test_a_job_that_a_person_paused_is_left_alone(trigger: str, rule: str | None) -> None:
    facts = build_run_facts(run=build_run_state(trigger=trigger), job=build_job_facts(is_paused=True))
    found = stand_down(facts, LIMITS)
    assert (found.rule if found else None) == rule
