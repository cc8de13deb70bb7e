"""Who is asking and what they may do: the answers to SCIM "Me" and "ServicePrincipals" and to reads of permissions.

Unless told otherwise everybody is one user, who may manage every job and pool and use every policy, with the token
``read-only`` only view jobs. ``POST /_standin/rights`` sets, as far as given: ``me`` (the answer to "Me"),
``service_principals`` (all that the workspace knows, at first none), ``permissions`` (access control lists by object,
such as ``jobs/101``), ``shown_to``. Whoever is in the group ``admins`` manages everything; others are shown the ids
of service principals alone (of users that is documented, of service principals assumed).

``shown_to`` is who may read permissions. By default ``managers``: no documentation says who may, the server that the
Databricks CLI is tested with answers 403 for a job to whoever does not manage it. ``all`` shows them to everybody.
A job with a list that does not name the asker is hidden: left out of jobs/list, 403 for jobs/get.

Left out: filters but ``applicationId eq "ID"``, pages of service principals, nested groups, inheritance, setting
permissions, permissions for anything but reading jobs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from aiohttp import web
from pydantic import BaseModel, ConfigDict, ValidationError

from local.databricks.job_settings import Json
from local.databricks.workspace import RequestRefusedError, Workspace

ADMINS = "admins"
MANAGING = {"CAN_MANAGE", "IS_OWNER"}


class _RightsBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    me: Json | None = None
    service_principals: list[Json] | None = None
    permissions: dict[str, list[Json]] | None = None
    shown_to: Literal["managers", "all"] | None = None


def _default_me() -> Json:
    return {
        "id": "7001",
        "userName": "failure-agent@example.com",
        "displayName": "failure-agent",
        "active": True,
        "groups": [{"display": "users", "type": "direct", "value": "7100"}],
    }


@dataclass
class Rights:
    """The handlers, and what they know beside the workspace."""

    workspace: Workspace
    me: Json = field(default_factory=_default_me)
    service_principals: list[Json] = field(default_factory=list)
    permissions: dict[str, list[Json]] = field(default_factory=dict)
    shown_to: Literal["managers", "all"] = "managers"

    def routes(self, api: str) -> list[web.RouteDef]:
        """All routes; ``api`` is the pattern of the path up to the version."""
        return [
            web.get(f"{api}/preview/scim/v2/Me", self.get_me),
            web.get(f"{api}/preview/scim/v2/ServicePrincipals", self.list_service_principals),
            web.get(f"{api}/permissions/{{type}}/{{id}}", self.get_permissions),
            web.post("/_standin/rights", self.set_rights),
        ]

    async def get_me(self, _request: web.Request) -> web.Response:
        """GET preview/scim/v2/Me."""
        return web.json_response(self.me, headers={"X-Databricks-Org-Id": self.workspace.workspace_id})

    async def list_service_principals(self, request: web.Request) -> web.Response:
        """GET preview/scim/v2/ServicePrincipals. One that nothing matches leaves ``Resources`` out."""
        text = request.query.get("filter", "")
        wanted = re.fullmatch(r'applicationId eq "([^"]+)"', text)
        if text and not wanted:
            raise RequestRefusedError(400, "INVALID_PARAMETER_VALUE", f"The stand-in does not know the filter {text}")
        found = [one for one in self.service_principals if not wanted or one.get("applicationId") == wanted[1]]
        start = int(request.query.get("startIndex", "1"))
        shown = found if ADMINS in self._names() else [{"id": one.get("id")} for one in found]
        page = shown if start == 1 else []
        head = {"totalResults": len(found), "startIndex": start, "itemsPerPage": len(page)}
        return web.json_response(head | ({"Resources": page} if page else {}))

    async def get_permissions(self, request: web.Request) -> web.Response:
        """GET permissions/TYPE/ID."""
        kind, object_id = request.match_info["type"], request.match_info["id"]
        if kind == "jobs":
            self.workspace.job(int(object_id))
        name = f"{kind}/{object_id}"
        entries = self._entries(name, request)
        if self.shown_to == "managers" and not MANAGING & self._levels(entries):
            message = f"{self.me['userName']} does not have Manage permissions on {name}."  # wording assumed
            raise RequestRefusedError(403, "PERMISSION_DENIED", message)
        return web.json_response(
            {"object_id": f"/{name}", "object_type": kind.removesuffix("s"), "access_control_list": entries}
        )

    async def set_rights(self, request: web.Request) -> web.Response:
        """POST /_standin/rights."""
        try:
            wanted = _RightsBody.model_validate_json(await request.read())
        except ValidationError as error:
            return web.json_response({"error": f"The rights are not valid, nothing was set: {error}"}, status=400)
        self.me = wanted.me or self.me
        if wanted.service_principals is not None:
            self.service_principals = wanted.service_principals
        self.permissions.update(wanted.permissions or {})
        self.shown_to = wanted.shown_to or self.shown_to
        return web.json_response({"permissions": len(self.permissions)})

    def may_view(self, job_id: int, request: web.Request) -> bool:
        """Whether the job is shown to the asker."""
        return bool(self._levels(self._entries(f"jobs/{job_id}", request)))

    def check_may_view(self, job_id: int, request: web.Request) -> None:
        """Refuse as jobs/get does, which checks this before it looks whether there is such a job."""
        if not self.may_view(job_id, request):
            message = (
                f"User {self.me['userName']} does not have View or Admin or Manage Run or Owner permissions"
                f" on job {job_id}"
            )
            raise RequestRefusedError(403, "PERMISSION_DENIED", message)

    def _entries(self, name: str, request: web.Request) -> list[Json]:
        """The access control list of an object."""
        if name in self.permissions:
            return self.permissions[name]
        only_reads = name.startswith("jobs/") and request.headers.get("Authorization") == "Bearer read-only"
        own = [{"permission_level": "CAN_VIEW" if only_reads else "CAN_MANAGE", "inherited": False}]
        if name.startswith("cluster-policies/"):
            own.append({"permission_level": "CAN_USE", "inherited": False})
        admins = [{"permission_level": "CAN_MANAGE", "inherited": True}]
        return [
            {"user_name": self.me["userName"], "all_permissions": own},
            {"group_name": ADMINS, "all_permissions": admins},
        ]

    def _names(self) -> set[str]:
        """What a list may call the asker: the name, or a group."""
        return {self.me["userName"], *(group["display"] for group in self.me.get("groups", []))}

    def _levels(self, entries: list[Json]) -> set[str]:
        """What the asker has by a list, directly or by a group."""
        names = self._names()
        if ADMINS in names:
            return {"CAN_MANAGE"}
        keys = ("user_name", "service_principal_name", "group_name")
        return {
            str(permission["permission_level"])
            for entry in entries
            if any(entry.get(key) in names for key in keys)
            for permission in entry["all_permissions"]
        }
