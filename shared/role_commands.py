"""What to type where a right or a setting is missing: commands of the Azure CLI, azd and the Databricks CLI. Pure.

Sources: reference of `az role assignment create`, `az functionapp config appsettings set` and `azd env get-value`;
Databricks CLI ≥ 0.205, `databricks permissions update REQUEST_OBJECT_TYPE REQUEST_OBJECT_ID --json`, which adds to what
an object's permissions say (`permissions set` would replace them).
"""

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from shared.settings import Settings, environment_name

COMMANDS_IN_FULL = 5
"""So many grants on objects of one kind are commands of their own; the rest is a loop."""

KEPT_ON_YOUR_MACHINE = frozenset({"SERVICE_BUS_CONNECTION", "TABLES_CONNECTION_STRING", "DATABRICKS_TOKEN"})
"""Settings with a key, of which each has an alternative without one."""

NOBODY_SIGNED_IN = "# nobody signed in yet? az login"
PERSON_HERE = (
    '--assignee-object-id "$(az ad signed-in-user show --query id --output tsv)" --assignee-principal-type User'
)
IDENTITY_OF_AZD = '"$(azd env get-value IDENTITY_CLIENT_ID)"'
FOR_THE_APP = "# the app's own identity, if it lacks them too (infra/ assigns them)"

SECRET_NAME = re.compile(r"_(KEY|TOKEN|SECRET)$")


@dataclass(frozen=True, slots=True)
class Role:
    """A built-in role of Azure: its name, and its id, which is the same in every tenant."""

    name: str
    id: str


@dataclass(frozen=True, slots=True)
class AzureService:
    """A service that the app calls with its identity.

    `lookup` finds the resource id by `{name}`, the first label of the host in the setting `endpoint` (a field's name).
    `key` is the setting that takes the identity's place where it is set. `look_at` helps where nothing answers.
    """

    what: str
    endpoint: str
    key: str
    roles: tuple[Role, ...]
    lookup: str
    look_at: str


def by_name(resource_type: str) -> str:
    """The lookup of a resource whose own name is the first label of its host."""
    return f'az resource list --resource-type {resource_type} --name {{name}} --query "[].id"'


SERVICE_BUS = AzureService(
    what="Service Bus namespace",
    endpoint="service_bus_namespace",
    key="service_bus_connection",
    roles=(
        Role("Azure Service Bus Data Sender", "69a216fc-b8fb-44d8-bc22-1f3c2cd27a39"),
        Role("Azure Service Bus Data Receiver", "4f6d3b9b-027b-4f4c-9142-0e5a2a2247e0"),
    ),
    lookup=by_name("Microsoft.ServiceBus/namespaces"),
    look_at="port 5671 (AMQP) must be open from here, and the queues must exist: infra/ makes them",
)
TABLES = AzureService(
    what="storage account",
    endpoint="tables_endpoint",
    key="tables_connection_string",
    roles=(Role("Storage Table Data Contributor", "0a9a7e1f-b9d0-4cc4-a60d-0319b160aaa3"),),
    lookup=by_name("Microsoft.Storage/storageAccounts"),
    look_at="with a private endpoint the account answers in its network alone; on your machine Azurite must run",
)
EMAIL = AzureService(
    what="Communication Services resource",
    endpoint="acs_endpoint",
    key="acs_access_key",
    roles=(Role("Communication and Email Service Owner", "09976791-48a7-449e-bb21-39d1a415f350"),),
    lookup=by_name("Microsoft.Communication/communicationServices"),
    look_at="port 443 must be open from here, and SENDER_EMAIL's domain must be linked to the resource",
)
MODEL = AzureService(
    what="Azure OpenAI account",
    endpoint="azure_openai_endpoint",
    key="azure_openai_key",
    roles=(Role("Cognitive Services OpenAI User", "5e0bd9bd-7b93-4f28-af87-19fc36ad61bd"),),
    lookup="az cognitiveservices account list --query \"[?properties.customSubDomainName=='{name}'].id\"",
    look_at="with a private endpoint the account answers in its network alone; rules decide without it meanwhile",
)


@dataclass(frozen=True, slots=True)
class Principal:
    """Whom Databricks knows: a service principal (`name` is its application id) or a user, and the groups."""

    name: str
    is_service_principal: bool
    groups: frozenset[str] = frozenset()

    @property
    def short(self) -> str:
        """Without the groups."""
        return f"{'service principal' if self.is_service_principal else 'user'} {self.name}"

    def __str__(self) -> str:
        groups = f" (groups: {', '.join(sorted(self.groups))})" if self.groups else ""
        return f"{self.short}{groups}"


@dataclass(frozen=True, slots=True)
class Grant:
    """A level on one object; `object_type` as the Permissions API names it: jobs, cluster-policies, instance-pools."""

    object_type: str
    object_id: str
    level: str


def role_assignments(service: AzureService, settings: Settings, *, in_the_app: bool = False) -> str:
    """The commands that give the roles, one a line; where a key is used instead: that the key is wrong.

    To the app's identity alone where the connection was tried in the app. Else to whoever is signed in here, as whom it
    was tried, and, where AZURE_CLIENT_ID names it, to the app.
    """
    if getattr(settings, service.key):
        name = environment_name(service.key)
        return f"{name} is refused: copy it again, or leave it out to sign in with the identity"
    scope = scope_of(service, getattr(settings, service.endpoint))
    app = f"--assignee {shlex.quote(settings.azure_client_id) if settings.azure_client_id else IDENTITY_OF_AZD}"
    if in_the_app:
        return "\n".join(assignments(service, app, scope))
    lines = [NOBODY_SIGNED_IN, *assignments(service, PERSON_HERE, scope)]
    if settings.azure_client_id:
        lines += [FOR_THE_APP, *assignments(service, app, scope)]
    return "\n".join(lines)


def assignments(service: AzureService, assignee: str, scope: str) -> list[str]:
    return [f'az role assignment create --role "{role.name}" {assignee} --scope {scope}' for role in service.roles]


def scope_of(service: AzureService, endpoint: str) -> str:
    """The resource's id, looked up by the name in its endpoint; a gap to fill in where the host is none of Azure's."""
    name, _, domain = host_of(endpoint).partition(".")
    if not domain or not re.fullmatch(r"(?=.*[a-z])[a-z0-9-]+", name):
        return f'"<resource id of the {service.what}>"'
    return f'"$({service.lookup.format(name=name)} --output tsv)"'


def host_of(endpoint: str) -> str:
    """The host of a URL, or of a bare `host` or `host:port`; empty where there is none."""
    return urlsplit(endpoint if "://" in endpoint else f"//{endpoint}").hostname or ""


def unreachable(service: AzureService, settings: Settings) -> str:
    """What to look at where the service does not answer, or not as it should."""
    host = host_of(getattr(settings, service.endpoint))
    name = environment_name(service.key if getattr(settings, service.key) and not host else service.endpoint)
    resolves = f" (does it resolve: nslookup {shlex.quote(host)})" if host else ""
    return f"look at {name}{resolves}; {service.look_at}"


def where_to_set(names: Sequence[str]) -> str:
    """How to set what is missing or wrong: in Azure, and on this machine. A name may be alternatives joined by `or`."""
    values = " ".join(f"{name}={placeholder(name)}" for name in map(for_azure, names))
    return (
        "# in Azure: a parameter of infra/; or at once, until the next azd provision\n"
        'az functionapp config appsettings set --name "$(azd env get-value FUNCTION_APP_NAME)"'
        f' --resource-group "$(azd env get-value AZURE_RESOURCE_GROUP)" --settings {values}\n'
        f"# on this machine: {', '.join(names)}, in .env (python -m agent) or local.settings.json, Values (func)"
    )


def for_azure(name: str) -> str:
    """Of alternatives the first without a key."""
    alternatives = name.split(" or ")
    return next((one for one in alternatives if one not in KEPT_ON_YOUR_MACHINE), alternatives[0])


def placeholder(name: str) -> str:
    """Where the value goes. A secret is only ever referred to: a command line ends up in the shell's history."""
    if SECRET_NAME.search(name):
        return "'@Microsoft.KeyVault(VaultName=<vault>;SecretName=<secret>)'"
    return "'<value>'"


def databricks_sign_in(settings: Settings) -> str:
    """What to do where a workspace does not accept the sign-in."""
    if settings.databricks_token:
        return "DATABRICKS_TOKEN is refused: it has expired or belongs to another workspace; make a new one there"
    if client := settings.databricks_client_id:
        return f"# or DATABRICKS_CLIENT_SECRET is wrong\n{service_principal_command(client)}"
    hint = "" if settings.azure_client_id else f"{NOBODY_SIGNED_IN}\n"
    return hint + service_principal_command(settings.azure_client_id or "<application id of the identity>")


def service_principal_command(application_id: str, *, host: str = "") -> str:
    """The command that makes a service principal known to a workspace; `host` names it where there are several."""
    client = shlex.quote(application_id)
    command = f"databricks service-principals create --application-id {client} --display-name failure-agent --active"
    return "\n".join([*choice_of_workspace(host), command])


def choice_of_workspace(host: str) -> list[str]:
    """The line that has the Databricks CLI talk to `host`; none where it is empty."""
    return [f"export DATABRICKS_HOST={shlex.quote(host)}"] if host else []


def databricks_unreachable(settings: Settings) -> str:
    """What to look at where a workspace does not answer."""
    hosts = [shlex.quote(host) for host in map(host_of, settings.databricks_host) if host]
    resolves = f" (do they resolve: nslookup {'; nslookup '.join(hosts)})" if hosts else ""
    return f"look at DATABRICKS_HOST{resolves}; an IP access list or a private link may keep this network out"


def permission_commands(principal: Principal, missing: Sequence[Grant], *, host: str = "") -> str:
    """The commands that grant what is missing, one a line; more than five of a kind: five and a loop for each level.

    `host` names the workspace where there are several.
    """
    lines = choice_of_workspace(host)
    for object_type in dict.fromkeys(grant.object_type for grant in missing):
        grants = [grant for grant in missing if grant.object_type == object_type]
        for grant in grants[:COMMANDS_IN_FULL]:
            lines.append(permission_command(principal, object_type, shlex.quote(grant.object_id), grant.level))
        rest = grants[COMMANDS_IN_FULL:]
        for level in dict.fromkeys(grant.level for grant in rest):
            ids = " ".join(shlex.quote(grant.object_id) for grant in rest if grant.level == level)
            command = permission_command(principal, object_type, '"$id"', level)
            lines.append(f"for id in {ids}; do {command}; done")
    return "\n".join(lines)


def permission_command(principal: Principal, object_type: str, object_id: str, level: str) -> str:
    """One command; `object_id` is quoted for the shell already."""
    key = "service_principal_name" if principal.is_service_principal else "user_name"
    body = {"access_control_list": [{key: principal.name, "permission_level": level}]}
    text = shlex.quote(json.dumps(body, separators=(",", ":")))
    return f"databricks permissions update {object_type} {object_id} --json {text}"
