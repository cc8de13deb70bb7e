"""`agent storm`: many failed runs on the local stack while its host is killed again and again.

The host is the only part that is killed, and by SIGKILL: nothing of it can clean up. What must hold is said by the
figures: nothing is done twice, no failure is lost, no job keeps a changed setting.
"""

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Annotated, Any
from urllib.request import Request, urlopen

import typer
from rich.table import Table

from agent.local_run import ExpectedRun, Observer, RunRow, duplicates, read_json, refused, settings_of
from agent.output import ExitCode, messages, print_json, print_table, reported_errors
from agent.start import FOLDER, end_on_sigterm, launch
from local.stack import QUEUES, Stack
from shared import bootstrap
from shared.domain import Lease, LeaseState
from shared.errors import TransientError

type Json = dict[str, Any]

LONGEST_CALM_SECONDS = 240
"""How long after the last kill every incident must have come to its end."""
HOST_BACK_SECONDS = 60
SHORTEST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 1.0, 10.0
"""A kill comes at a random time within these bounds after the host is up: before its first tick, or in full flight."""
LOCK_SECONDS = 2
SETTINGS = {"BACKOFF_BASE_SECONDS": "1", "BACKOFF_CAP_SECONDS": "1", "CLAIM_SETTLE_SECONDS": "3"}
"""Short enough to end in minutes. A write of a host that is gone reaches a stand-in on this machine within 3 s."""

FIRST_ID = 700_000
NODE = {"node_type_id": "Standard_DS3_v2", "spark_version": "16.4.x-scala2.12", "num_workers": 2}
TIMEOUT = "java.net.SocketTimeoutException: Read timed out"
OUT_OF_MEMORY = (
    "org.apache.spark.SparkException: Job aborted due to stage failure: Task 3 in stage 22.0 failed 4 times, most "
    "recent failure: Lost task 3.3 in stage 22.0 (TID 151) (10.139.64.9 executor 1): "
    "java.lang.OutOfMemoryError: Java heap space\n\tat java.util.Arrays.copyOf(Arrays.java:3332)"
)
CANCELLED = {
    "error": "Run cancelled.",
    "result_state": "CANCELED",
    "termination_code": "USER_CANCELED",
    "state_message": "Run cancelled by a.nowak@contoso.example from the runs page.",
}


@dataclass(frozen=True, slots=True)
class Cause:
    """A way for a run to fail, and what heals it; `weight` is its share of the mix.

    Where jobs have several such runs, their retries compete for the job.
    """

    name: str
    weight: int
    failure: Mapping[str, str]
    heals_when: Mapping[str, object]
    runs_per_job: int = 1


CAUSES = (
    Cause("heals-at-once", 6, {"error": TIMEOUT}, {"kind": "after_attempts", "attempts": 1}),
    Cause("heals-later", 4, {"error": TIMEOUT}, {"kind": "after_attempts", "attempts": 2}),
    Cause("needs-memory", 4, {"error": OUT_OF_MEMORY}, {"kind": "worker_memory_gb_at_least", "gb": 28}, 2),
    Cause("needs-a-person", 3, {"error": "ModuleNotFoundError: No module named 'lightgbm'"}, {"kind": "never"}),
    Cause("cancelled", 2, CANCELLED, {"kind": "never"}),
    Cause("never-heals", 1, {"error": TIMEOUT}, {"kind": "never"}),
)


@dataclass(frozen=True, slots=True)
class Figures:
    """What came of a storm.

    `duplicates` are accepted effects beyond the first of each key, `refused` writes answered with an error, `lost`
    failures without an incident or whose incident did not end, `leases_open` jobs that are still changed or leased,
    `mails` the mails accepted; `seconds` count from the first failure's start.
    """

    failures: int
    kills: int
    duplicates: int
    refused: int
    lost: int
    terminal: int
    leases_open: int
    mails: int
    seconds: float

    @property
    def as_promised(self) -> bool:
        return self.terminal == self.failures and not (self.duplicates or self.lost or self.leases_open)


def storm(
    failures: Annotated[int, typer.Option(min=1, max=10_000, help="Failed runs to play.")] = 300,
    kills: Annotated[int, typer.Option(min=0, max=200, help="How often the host is killed.")] = 20,
    seed: Annotated[int, typer.Option(help="Decides the mix of failures and the times of the kills.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Kill the host at random times during many failures on a local stack, and count what was done twice or lost.

    Exit code 0 only if nothing was, every incident came to its end, and every changed job was put back.
    """
    end_on_sigterm()
    with reported_errors(as_json=as_json):
        stack = Stack(FOLDER, base_port=0, queues=short_locks(FOLDER / "queues.json"), settings=SETTINGS)
        try:
            launch(stack)
            figures = Storm(stack).play(failures, kills, Random(seed))  # noqa: S311 - it mixes failures, no secrets
        finally:
            stack.stop()
    if as_json:
        print_json(asdict(figures))
    else:
        table = Table(*asdict(figures))
        table.add_row(*(str(value) for value in asdict(figures).values()))
        print_table(table)
    raise typer.Exit(ExitCode.AS_EXPECTED if figures.as_promised else ExitCode.EXPECTATION_FAILED)


class Storm:
    """One storm on a stack that is up."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._observer = Observer(stack)
        settings = settings_of(stack)
        self._history = bootstrap.history(settings)
        self._workspaces = bootstrap.workspaces(settings)
        self._settings_at_first: dict[int, Json] = {}
        self._loaded_runs = 0
        self._began = time.monotonic()

    def play(self, failures: int, kills: int, random: Random) -> Figures:
        """Load the failures in as many parts as there are kills, kill the host during each, and wait for the end."""
        wait_for(self._has_ticked, HOST_BACK_SECONDS, "the host did not look for failed runs")
        jobs = failing_jobs(failures, random)
        waits = [random.uniform(SHORTEST_WAIT_SECONDS, LONGEST_WAIT_SECONDS) for _ in range(kills)]
        parts = [jobs[number :: max(kills, 1)] for number in range(max(kills, 1))]
        self._began = time.monotonic()
        for number, wait in enumerate(waits):
            self._load_next(parts)
            time.sleep(wait)
            self._wait_until_busy(parts)
            self._kill_host()
            self._say(f"kill {number + 1} of {kills}")
        while parts:
            self._load_next(parts)
        self._wait_until_calm(failures)
        seconds = round(time.monotonic() - self._began, 1)
        return figures_of(
            self._observer.rows(expected_of(jobs)),
            effects_in(self._stack.effects_file),
            kills=kills,
            leases_open=len(still_changed(self._leases(), self._settings_at_first, self._settings_now())),
            seconds=seconds,
        )

    def _has_ticked(self) -> bool:
        """The first tick ever only notes the time: what failed before it is nobody's business."""
        return all(self._history.read_scan(workspace) for workspace in self._workspaces)

    def _wait_until_busy(self, parts: list[list[Json]]) -> None:
        """Until an incident is open, for the death of an idle host proves little. Where all have ended, load more.

        Gives up after a while: a failure that is never found is counted at the end.
        """
        deadline = time.monotonic() + HOST_BACK_SECONDS
        while not self._observer.open_count() and time.monotonic() < deadline:
            if self._observer.closed_count() == self._loaded_runs:
                if not parts:
                    return
                self._load_next(parts)
            time.sleep(0.2)

    def _load_next(self, parts: list[list[Json]]) -> None:
        if not parts:
            return
        jobs = parts.pop(0)
        url = f"{self._stack.url('databricks')}/_standin/scenario"
        request = Request(url, json.dumps({"jobs": jobs}).encode(), {"Content-Type": "application/json"})
        try:
            urlopen(request, timeout=10).close()
        except OSError as error:
            raise TransientError(f"{url}: {error}") from error
        self._loaded_runs += sum(len(job["runs"]) for job in jobs)
        self._settings_at_first |= {job["job_id"]: self._settings_of(job["job_id"]) for job in jobs}

    def _kill_host(self) -> None:
        """SIGKILL the host, and wait until another one is up."""
        killed = host_pid(self._stack.folder)
        os.kill(killed, signal.SIGKILL)
        wait_for(
            lambda: host_pid(self._stack.folder) != killed,
            HOST_BACK_SECONDS,
            f"the host did not come back after a kill; see {self._stack.folder / 'logs' / 'host.log'}",
        )

    def _wait_until_calm(self, failures: int) -> None:
        """Until every incident has ended, no message is left and no lease is open, or the time is up."""
        deadline = time.monotonic() + LONGEST_CALM_SECONDS
        said = 0.0
        while time.monotonic() < deadline:
            try:
                if self._observer.closed_count() >= failures and self._observer.is_idle() and not self._leases():
                    return
                if time.monotonic() - said > 5:
                    self._say("waiting for the end")
                    said = time.monotonic()
            except TransientError:
                pass  # asked again
            time.sleep(0.5)

    def _say(self, what: str) -> None:
        messages.print(
            f"{time.monotonic() - self._began:4.0f} s · {what} · {self._observer.open_count()} open · "
            f"{self._observer.closed_count()} at their end",
            highlight=False,
        )

    def _leases(self) -> list[Lease]:
        return [lease for workspace in self._workspaces for lease in self._history.open_leases(workspace)]

    def _settings_of(self, job_id: int) -> Json:
        settings: Json = read_json(f"{self._stack.url('databricks')}/_standin/jobs/{job_id}")["settings"]
        return settings

    def _settings_now(self) -> dict[int, Json]:
        return {job_id: self._settings_of(job_id) for job_id in self._settings_at_first}


def failing_jobs(failures: int, random: Random) -> list[Json]:
    """Jobs of a scenario with runs that fail; causes and times at random.

    Runs of one job start together: one that started while the job is changed for another one's retry would not fail.
    """
    jobs: list[Json] = []
    latest: dict[str, Json] = {}
    for number, cause in enumerate(random.choices(CAUSES, weights=[cause.weight for cause in CAUSES], k=failures)):
        job = latest.get(cause.name)
        if job is None or len(job["runs"]) >= cause.runs_per_job:
            job = latest[cause.name] = job_without_runs(FIRST_ID + number, cause.name)
            jobs.append(job)
            start = random.uniform(0.5, LONGEST_WAIT_SECONDS)
        else:
            start = job["runs"][0]["start_offset_seconds"]
        job["runs"].append(failing_run(FIRST_ID + number, cause, start=start))
    return jobs


def job_without_runs(job_id: int, cause: str) -> Json:
    settings = {
        "max_concurrent_runs": 2,
        "job_clusters": [{"job_cluster_key": "main", "new_cluster": NODE}],
        "tasks": [
            {"task_key": "load", "job_cluster_key": "main", "notebook_task": {"notebook_path": "/Prod/load"}},
        ],
    }
    return {"job_id": job_id, "name": f"{cause}-{job_id}", "settings": settings, "runs": []}


def failing_run(run_id: int, cause: Cause, *, start: float) -> Json:
    """A run with one task; `start` in seconds after it is loaded."""
    task = {"task_key": "load", "failure": dict(cause.failure), "heals_when": dict(cause.heals_when)}
    return {"run_id": run_id, "start_offset_seconds": round(start, 2), "duration_seconds": 0.5, "tasks": [task]}


def expected_of(jobs: Iterable[Json]) -> list[ExpectedRun]:
    """The runs of the jobs; each is to come to some end."""
    return [ExpectedRun(run["run_id"], job["name"], outcome="", decision="") for job in jobs for run in job["runs"]]


def figures_of(rows: list[RunRow], effects: list[Json], *, kills: int, leases_open: int, seconds: float) -> Figures:
    lost = sum(row.outcome == "open" for row in rows)
    accepted = Counter(effect["kind"] for effect in effects if effect["accepted"])
    return Figures(
        failures=len(rows),
        kills=kills,
        duplicates=duplicates(effects),
        refused=refused(effects),
        lost=lost,
        terminal=len(rows) - lost,
        leases_open=leases_open,
        mails=accepted["email"],
        seconds=seconds,
    )


def still_changed(leases: Iterable[Lease], at_first: Mapping[int, Json], now: Mapping[int, Json]) -> set[int]:
    """Ids of the jobs with a lease that is not put back, or with other settings than at first."""
    leased = {lease.job_id for lease in leases if lease.state not in (LeaseState.RESTORED, LeaseState.CLOSED)}
    return leased | {job_id for job_id, settings in at_first.items() if now[job_id] != settings}


def effects_in(file: Path) -> list[Json]:
    """The effects that the stand-ins wrote down before each answer left; the file outlives them."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def short_locks(target: Path) -> Path:
    """Write a queues file whose messages are free again soon after their receiver was killed."""
    queues = [queue | {"lock_seconds": LOCK_SECONDS} for queue in json.loads(QUEUES.read_text())]
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(queues, indent=2) + "\n")
    return target


def host_pid(folder: Path) -> int:
    """Process id of the host that is up now."""
    return int(json.loads((folder / "stack.json").read_text())["host"]["pid"])


def wait_for(condition: Callable[[], bool], seconds: float, otherwise: str) -> None:
    """Return as soon as the condition holds; raises TransientError saying `otherwise` after so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TransientError(otherwise)
        time.sleep(0.1)
