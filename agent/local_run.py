"""What can be seen of a running local stack from outside: incidents, effects, and whether anything is left to do."""

import json
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from local.stack import Stack
from shared import bootstrap
from shared.domain import Incident
from shared.errors import TransientError
from shared.monitoring import outcome_of
from shared.settings import Settings, load_settings


@dataclass(frozen=True, slots=True)
class ExpectedRun:
    """A run of the scenario that is to fail, and what is to become of it (empty = anything terminal)."""

    run_id: int
    job: str
    outcome: str
    decision: str


@dataclass(frozen=True, slots=True)
class RunRow:
    """One run as it stands."""

    run_id: int
    job: str
    cause: str
    decision: str
    attempts: int
    outcome: str
    expected: str
    as_expected: bool


def expected_runs(scenario: Path) -> list[ExpectedRun]:
    """The runs of a scenario file that name what is expected of them."""
    content = json.loads(scenario.read_text())
    return [
        ExpectedRun(
            run_id=run["run_id"],
            job=job["name"],
            outcome=run["expected"].get("outcome", ""),
            decision=run["expected"].get("decision", ""),
        )
        for job in content["jobs"]
        for run in job.get("runs", [])
        if "expected" in run
    ]


def settings_of(stack: Stack) -> Settings:
    """The settings that the stack's app runs with."""
    fields = {name.lower(): value for name, value in stack.settings.items()}
    return load_settings(overrides={name: value for name, value in fields.items() if name in Settings.model_fields})


class Observer:
    """Reads the history and the stand-ins of one stack."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        settings = settings_of(stack)
        self._history = bootstrap.history(settings)
        self._workspaces = bootstrap.workspaces(settings)

    def incident(self, run_id: int) -> Incident | None:
        for workspace in self._workspaces:
            if found := self._history.read_incident(workspace, run_id):
                return found
        return None

    def rows(self, expected: list[ExpectedRun]) -> list[RunRow]:
        return [row_of(run, self.incident(run.run_id)) for run in expected]

    def open_count(self) -> int:
        return sum(len(self._history.open_incidents(workspace)) for workspace in self._workspaces)

    def closed_count(self) -> int:
        long_ago = datetime.fromtimestamp(0, UTC)
        return sum(len(self._history.closed_incidents(w, updated_after=long_ago)) for w in self._workspaces)

    def is_idle(self) -> bool:
        """Nothing is open, and no message waits, is locked or is scheduled."""
        if self.open_count():
            return False
        queues = read_json(f"{self._stack.url('service_bus_status')}/_standin/queues")["queues"]
        return not any(queue["active"] or queue["scheduled"] or queue["locked"] for queue in queues)

    def effects(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for part in ("databricks", "email"):
            found += read_json(f"{self._stack.url(part)}/_standin/effects")["effects"]
        return found

    def mails(self) -> list[Path]:
        return sorted(self._stack.mail_folder.glob("*.html"))


def row_of(run: ExpectedRun, incident: Incident | None) -> RunRow:
    decision = incident.decision if incident else None
    outcome = outcome_of(incident) if incident else "open"
    decided = str(decision.decision) if decision else ""
    matches = outcome == run.outcome if run.outcome else outcome != "open"
    return RunRow(
        run_id=run.run_id,
        job=run.job,
        cause=decision.cause if decision else "",
        decision=decided,
        attempts=len(incident.attempts) if incident else 0,
        outcome=outcome,
        expected=run.outcome,
        as_expected=matches and (not run.decision or decided == run.decision),
    )


def duplicates(effects: list[dict[str, Any]]) -> int:
    """Accepted repairs, run-nows and mails beyond the first of each key."""
    keys = [(e["kind"], e["key"]) for e in effects if e["accepted"] and e["kind"] != "job_update"]
    return len(keys) - len(set(keys))


def refused(effects: list[dict[str, Any]]) -> int:
    return sum(not effect["accepted"] for effect in effects)


def read_json(url: str) -> Mapping[str, Any]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            content: Mapping[str, Any] = json.load(answer)
            return content
    except OSError as error:
        raise TransientError(f"{url}: {error}") from error
