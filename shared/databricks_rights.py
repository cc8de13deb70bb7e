"""What the app's identity may do in a Databricks workspace, as far as the workspace tells it. Reads only.

Read: SCIM `Me`; the jobs it is to look after (JOB_IDS, else the first 25 of jobs/list); `permissions/TYPE/ID` of each,
and, for jobs in mode full, of their cluster policies and pools. So a check makes at most about 250 calls.

At a desk `Me` is the person signed in, often an admin, whose rights say nothing about the app. So where AZURE_CLIENT_ID
names another identity, that service principal is looked up and judged by what the person sees.

No documentation says who may read permissions. The server that the Databricks CLI is tested with answers 403 for a job
to whoever lacks CAN_MANAGE on it, so an identity with just enough rights may not see which: that is told, and is no
failure. That a job is shown proves CAN_VIEW in any case.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from shared.databricks_api import WorkspaceApi
from shared.domain import Json, Mode
from shared.errors import AgentError, NotAuthorisedError, RunNotFoundError
from shared.role_commands import Grant, Principal
from shared.settings import Settings
from shared.triage.policy import mode_of
from shared.workspace_hosts import workspace_name

ME = "/api/2.0/preview/scim/v2/Me"
SERVICE_PRINCIPALS = "/api/2.0/preview/scim/v2/ServicePrincipals"
PERMISSIONS = "/api/2.0/permissions"
JOBS = "/api/2.2/jobs"
SAMPLE = 25
MOST_NAMED_JOBS = 100
MOST_COMPUTE = 25
PARALLEL_READS = 8
NAMED_IN_A_TEXT = 5

ADMINS, EVERYBODY = "admins", "users"
"""Groups that every workspace has; all its users and service principals are in the second."""

APPLICATION_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)

LEVELS: Mapping[str, tuple[str, ...]] = {
    "jobs": ("CAN_VIEW", "CAN_MANAGE_RUN", "CAN_MANAGE", "IS_OWNER"),
    "cluster-policies": ("CAN_USE",),
    "instance-pools": ("CAN_ATTACH_TO", "CAN_MANAGE"),
}
"""By kind of object, from the least to the most; each permits what those before it permit."""

NEEDED_ON_JOB: Mapping[Mode, str] = {
    Mode.OBSERVE: "CAN_VIEW",
    Mode.RETRY: "CAN_MANAGE_RUN",
    Mode.FULL: "CAN_MANAGE",
}
"""To decide, to repair, to edit the job's settings."""

NOUNS = {"jobs": "job", "cluster-policies": "cluster policy", "instance-pools": "instance pool"}

Progress = Callable[[str], object]


class MissingRightsError(NotAuthorisedError):
    """The identity lacks rights that its work needs; `missing` are to be granted to `principal`.

    `host` is the workspace where there are several, else empty.
    """

    def __init__(self, message: str, *, principal: Principal, missing: tuple[Grant, ...], host: str) -> None:
        super().__init__(message)
        self.principal = principal
        self.missing = missing
        self.host = host


class UnknownIdentityError(NotAuthorisedError):
    """The workspace has no service principal of the app's identity.

    `host` is the workspace where there are several, else empty.
    """

    def __init__(self, message: str, *, application_id: str, host: str) -> None:
        super().__init__(message)
        self.application_id = application_id
        self.host = host


@dataclass(frozen=True, slots=True)
class Standing:
    """What is needed on one object and what is held: `level` (empty = nothing), by a group or directly (empty).

    Where the object's permissions cannot be read, `level` is what is proven otherwise.
    """

    needed: Grant
    level: str
    group: str = ""
    readable: bool = True

    @property
    def suffices(self) -> bool:
        order = LEVELS[self.needed.object_type]
        return self.level in order and order.index(self.level) >= order.index(self.needed.level)


@dataclass(frozen=True, slots=True)
class Rights:
    """What was found: whose rights, which jobs were looked at (in words), and the standing on each object.

    `onlooker` is who looked where that is another than `principal`.
    """

    principal: Principal
    looked_at: str
    standings: tuple[Standing, ...] = ()
    onlooker: Principal | None = None

    @property
    def missing(self) -> tuple[Grant, ...]:
        return tuple(one.needed for one in self.standings if one.readable and not one.suffices)

    @property
    def unknown(self) -> tuple[Grant, ...]:
        """What is needed and may or may not be there."""
        return tuple(one.needed for one in self.standings if not one.readable and not one.suffices)

    def text(self) -> str:
        """All of it in one line."""
        who = f"{self.principal}, as {self.onlooker.short} sees it" if self.onlooker else str(self.principal)
        parts = [who, self.looked_at, *held_texts(self.standings)]
        if self.unknown:
            first = self.unknown[0]
            parts.append(
                f"cannot be read (403): whether it has {counted(self.unknown)}; somebody who manages them sees it with"
                f" `databricks permissions get {first.object_type} {first.object_id}`"
            )
        if self.missing:
            parts.append(f"missing: {counted(self.missing)}")
        return "; ".join(parts)


def check_rights(api: WorkspaceApi, settings: Settings, progress: Progress) -> str:
    """What is held, in one line, or that it may not be read.

    Raises MissingRightsError where something is missing for certain, UnknownIdentityError where the workspace has no
    such service principal, TransientError where nothing answers.
    """
    try:
        rights = examine(api, settings, progress)
    except UnknownIdentityError:
        raise
    except NotAuthorisedError as error:
        return f"cannot be read: {error}"
    if rights.missing:
        host = host_of_several(api, settings)
        raise MissingRightsError(rights.text(), principal=rights.principal, missing=rights.missing, host=host)
    return rights.text()


def examine(api: WorkspaceApi, settings: Settings, progress: Progress) -> Rights:
    """Who the app is in the workspace and what it may do there; `progress` is told how far it is.

    Raises UnknownIdentityError, NotAuthorisedError where not even that may be read, TransientError where the workspace
    does not answer.
    """
    me = principal_of(api.get(ME, {}))
    identity = identity_of(settings)
    at_a_desk = bool(identity) and me.name.lower() != identity.lower()
    principal, onlooker = (look_up(api, settings, me), me) if at_a_desk else (me, None)
    if ADMINS in principal.groups:
        what = "admin of the workspace: may manage everything, which is more than it needs"
        return Rights(principal, what, onlooker=onlooker)
    with ThreadPoolExecutor(PARALLEL_READS, thread_name_prefix="read-rights") as pool:
        try:
            return _Examination(api, settings, principal, onlooker, progress, pool).rights()
        except AgentError:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def identity_of(settings: Settings) -> str:
    """The application id of the app's managed identity; empty where it signs in to Databricks by other means."""
    return "" if settings.databricks_token or settings.databricks_client_id else settings.azure_client_id


def look_up(api: WorkspaceApi, settings: Settings, onlooker: Principal) -> Principal:
    """The app's identity as the workspace knows it.

    Raises UnknownIdentityError where there is none, NotAuthorisedError where `onlooker` may not see whether there
    is or what it is: others than admins are shown names and ids alone (documented of users), so no groups.
    """
    wanted = identity_of(settings)
    try:
        answer = api.get(SERVICE_PRINCIPALS, {"filter": f"applicationId eq {json.dumps(wanted)}"})
    except NotAuthorisedError as error:
        raise NotAuthorisedError(
            f"{onlooker.short} may not look up service principal {wanted}; an admin of the workspace may: {error}"
        ) from error
    found: Json | None = next(iter(answer.get("Resources") or []), None)
    if found is None:
        raise UnknownIdentityError(
            f"missing: workspace {api.name} has no service principal {wanted} (AZURE_CLIENT_ID), as {onlooker.short}"
            " sees it; the app cannot sign in",
            application_id=wanted,
            host=host_of_several(api, settings),
        )
    if not found.get("applicationId"):
        raise NotAuthorisedError(
            f"{onlooker.short} is not shown the groups of service principal {wanted}; an admin of the workspace is"
        )
    return principal_of(found)


def host_of_several(api: WorkspaceApi, settings: Settings) -> str:
    """The URL of the workspace where DATABRICKS_HOST names several, else empty."""
    hosts = settings.databricks_host
    return next(host for host in hosts if workspace_name(host) == api.name) if len(hosts) > 1 else ""


@dataclass(frozen=True, slots=True)
class _Job:
    """A job that the agent is to look after; without settings it is hidden from who looks."""

    job_id: str
    mode: Mode
    settings: Json | None

    @property
    def needed(self) -> Grant:
        return Grant("jobs", self.job_id, NEEDED_ON_JOB[self.mode])


@dataclass(frozen=True, slots=True)
class _Examination:
    api: WorkspaceApi
    settings: Settings
    principal: Principal
    onlooker: Principal | None
    progress: Progress
    pool: ThreadPoolExecutor

    def rights(self) -> Rights:
        jobs, looked_at = self._named_jobs() if self.settings.job_ids else self._sample()
        on_jobs = self._standings([job.needed for job in jobs if job.settings is not None])
        if self.onlooker and not self.settings.job_ids:
            on_jobs, kept_away = without_those_kept_away(on_jobs)
            looked_at += kept_away
        # A job that is hidden from the identity itself lacks the right; from another it may have it or not.
        hidden = [Standing(job.needed, "", readable=self.onlooker is None) for job in jobs if job.settings is None]
        judged = {one.needed.object_id for one in on_jobs}
        full = [job.settings for job in jobs if job.settings and job.mode is Mode.FULL and job.job_id in judged]
        compute = compute_needed(full)
        if len(compute) > MOST_COMPUTE:
            looked_at += f"; of {len(compute)} cluster policies and pools the first {MOST_COMPUTE}"
        on_compute = self._standings(compute[:MOST_COMPUTE])
        return Rights(self.principal, looked_at, (*hidden, *on_jobs, *on_compute), self.onlooker)

    def _standings(self, wanted: Sequence[Grant]) -> list[Standing]:
        standings = []
        for done, standing in enumerate(self.pool.map(self._standing, wanted), 1):
            self.progress(f"{done} of {len(wanted)} permissions read")
            standings.append(standing)
        return standings

    def _named_jobs(self) -> tuple[list[_Job], str]:
        ids = self.settings.job_ids[:MOST_NAMED_JOBS]
        answers = []
        for done, answer in enumerate(self.pool.map(self._named_job, ids), 1):
            self.progress(f"{done} of {len(ids)} jobs read")
            answers.append(answer)
        absent = [job_id for job_id, answer in zip(ids, answers, strict=True) if answer is None]
        which = "the jobs" if len(ids) == len(self.settings.job_ids) else f"the first {MOST_NAMED_JOBS} jobs"
        gone = f" (not in this workspace: {some(absent)})" if absent else ""
        return self._looked_after([answer for answer in answers if answer]), f"looked at {which} of JOB_IDS{gone}"

    def _named_job(self, job_id: str) -> tuple[str, Json | None] | None:
        """The job's id and settings, without settings where it is hidden; None where there is no such job."""
        try:
            return job_id, settings_of(self.api.get(f"{JOBS}/get", {"job_id": job_id}))
        except NotAuthorisedError:
            return job_id, None
        except RunNotFoundError:
            return None

    def _sample(self) -> tuple[list[_Job], str]:
        answer = self.api.get(f"{JOBS}/list", {"limit": SAMPLE, "expand_tasks": True})
        listed = [(str(raw.get("job_id")), settings_of(raw)) for raw in answer.get("jobs", [])]
        jobs = self._looked_after(listed)
        whoever = self.onlooker.short if self.onlooker else "it"
        if not listed:
            needs = "it needs CAN_VIEW on those it is to look after (docs/databricks_access.md)"
            return jobs, f"{whoever} sees no job: {needs}"
        which = f"all jobs that {whoever} sees"
        if answer.get("has_more"):
            which = f"the first {len(listed)} of jobs/list, a sample"
        others = f" (without {len(listed) - len(jobs)} that it does not look after)" if len(jobs) < len(listed) else ""
        return jobs, f"looked at {which}{others}"

    def _looked_after(self, jobs: Sequence[tuple[str, Json | None]]) -> list[_Job]:
        """Those with the tags of JOB_TAGS whose mode is not off. A hidden job has the default mode."""
        found = []
        for job_id, settings in jobs:
            tags = {str(key): str(value) for key, value in ((settings or {}).get("tags") or {}).items()}
            mode = mode_of(tags, self.settings.default_mode)
            chosen = settings is None or self.settings.job_tags.items() <= tags.items()
            if chosen and mode is not Mode.OFF:
                found.append(_Job(job_id, mode, settings))
        return found

    def _standing(self, needed: Grant) -> Standing:
        """The standing on an object. A job that is shown to the identity itself may be viewed, whatever they say."""
        proven = "CAN_VIEW" if needed.object_type == "jobs" and self.onlooker is None else ""
        try:
            raw = self.api.get(f"{PERMISSIONS}/{needed.object_type}/{needed.object_id}", {})
        except (NotAuthorisedError, RunNotFoundError):
            return Standing(needed, proven, readable=False)
        level, group = held(raw.get("access_control_list") or [], self.principal, LEVELS[needed.object_type])
        return Standing(needed, level or proven, group)


def without_those_kept_away(standings: list[Standing]) -> tuple[list[Standing], str]:
    """Without the jobs that the identity certainly may not view, and that they are left out, in words.

    An admin sees jobs that are kept from the agent on purpose. Where it may view none at all, none is on purpose.
    """
    away = [one.needed.object_id for one in standings if one.readable and not one.level]
    if not away or len(away) == len(standings):
        return standings, ""
    left = [one for one in standings if one.level or not one.readable]
    return left, f" (without {len(away)} that it may not view, so leaves alone: {some(away)})"


def principal_of(me: Json) -> Principal:
    """From SCIM. In `Me` a service principal's userName is its application id, a UUID, by which its CLI tells it too.

    An entry of `ServicePrincipals` has it as applicationId and no userName.
    """
    name = str(me.get("userName") or me.get("applicationId") or "")
    groups = frozenset(str(group.get("display") or "") for group in me.get("groups") or []) - {""}
    return Principal(name, bool(me.get("applicationId") or APPLICATION_ID.fullmatch(name)), groups)


def held(access_control_list: Sequence[Json], principal: Principal, order: Sequence[str]) -> tuple[str, str]:
    """The highest level that is held and the group it comes by (empty = directly, which wins a tie)."""
    own_name = "service_principal_name" if principal.is_service_principal else "user_name"
    groups = principal.groups | {EVERYBODY}
    best, by_group = -1, ""
    for entry in sorted(access_control_list, key=lambda entry: entry.get(own_name) != principal.name):
        group = "" if entry.get(own_name) == principal.name else str(entry.get("group_name") or "")
        if group not in groups and entry.get(own_name) != principal.name:
            continue
        levels = [permission.get("permission_level") for permission in entry.get("all_permissions") or []]
        rank = max((order.index(level) for level in levels if level in order), default=-1)
        if rank > best:
            best, by_group = rank, group
    return (order[best], by_group) if best >= 0 else ("", "")


def compute_needed(jobs: Sequence[Json]) -> list[Grant]:
    """What must be usable so that the clusters in these job settings may be changed, each policy and pool once."""
    clusters = [cluster for settings in jobs for cluster in clusters_of(settings)]
    policies = [cluster.get("policy_id") for cluster in clusters]
    pools = [cluster.get(name) for cluster in clusters for name in ("instance_pool_id", "driver_instance_pool_id")]
    return [
        *(Grant("cluster-policies", str(policy_id), "CAN_USE") for policy_id in dict.fromkeys(policies) if policy_id),
        *(Grant("instance-pools", str(pool_id), "CAN_ATTACH_TO") for pool_id in dict.fromkeys(pools) if pool_id),
    ]


def clusters_of(settings: Json) -> Iterator[Json]:
    """The clusters that a job defines: shared by its tasks, of one task, or of the task of a for-each task."""
    tasks = settings.get("tasks") or []
    inner = [(task.get("for_each_task") or {}).get("task") or {} for task in tasks]
    for holder in (*(settings.get("job_clusters") or []), *tasks, *inner):
        if cluster := holder.get("new_cluster"):
            yield cluster


def held_texts(standings: Sequence[Standing]) -> list[str]:
    """On how many objects of a kind which level is held, and how."""
    counts = Counter(
        (one.needed.object_type, one.level, f"by group {one.group}" if one.group else "directly")
        for one in standings
        if one.readable and one.level
    )
    return [
        f"{level} on {count} {noun(object_type, count)} ({how})" for (object_type, level, how), count in counts.items()
    ]


def counted(grants: Sequence[Grant]) -> str:
    """Such as `CAN_MANAGE on 2 jobs (101, 102), CAN_USE on 1 cluster policy (P1)`."""
    ids: dict[tuple[str, str], list[str]] = {}
    for grant in grants:
        ids.setdefault((grant.object_type, grant.level), []).append(grant.object_id)
    return ", ".join(
        f"{level} on {len(found)} {noun(object_type, len(found))} ({some(found)})"
        for (object_type, level), found in ids.items()
    )


def noun(object_type: str, count: int) -> str:
    return NOUNS[object_type] if count == 1 else object_type.replace("-", " ")


def some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:NAMED_IN_A_TEXT]) + (", …" if len(ids) > NAMED_IN_A_TEXT else "")


def settings_of(raw: Json) -> Json:
    """The settings in a job of the Jobs API."""
    settings: Json = raw.get("settings") or {}
    return settings
