"""Commands that mend what is missing: exact, whole, safe to paste, and for the roles that Bicep gives."""

import json
import shlex
import subprocess
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import role_commands
from shared.role_commands import EMAIL, MODEL, SERVICE_BUS, TABLES, AzureService, Grant, Principal
from shared.settings import Settings
from tests.infra.bicep import all_files

SERVICES = (SERVICE_BUS, TABLES, EMAIL, MODEL)
CLIENT_ID = "11111111-2222-3333-4444-555555555555"
PRINCIPAL = Principal(CLIENT_ID, is_service_principal=True)

RECORDED = """
az() { case "$*" in "role assignment"*) printf '%s\\n' "$@" | tr '\\n' '\\t'; echo;; *) echo "[$*]";; esac; }
azd() { echo "value-of-$3"; }
databricks() { printf '%s\\n' "$@" | tr '\\n' '\\t'; echo; }
"""
"""Stands in for the programs: prints each call, its arguments with a tab after each."""


def settings_with(**values: Any) -> Settings:
    none = dict.fromkeys(
        ("azure_client_id", "acs_access_key", "azure_openai_key", "service_bus_connection", "tables_connection_string"),
        "",
    )
    endpoints = {
        "service_bus_namespace": "sb-abc.servicebus.windows.net",
        "tables_endpoint": "https://stabc.table.core.windows.net/",
        "acs_endpoint": "https://acs-abc.europe.communication.azure.com/",
        "azure_openai_endpoint": "https://cog-abc.openai.azure.com/",
        "databricks_token": "",
        "databricks_client_id": "",
    }
    fields = none | endpoints | values
    # The namespace is set by its alias, the name of the environment variable.
    return Settings(SERVICE_BUS_CONNECTION__fullyQualifiedNamespace=fields.pop("service_bus_namespace"), **fields)


def calls_of(script: str) -> list[list[str]]:
    """The calls of `az role assignment` and `databricks` that bash makes of a script."""
    shell = ["bash", "--noprofile", "--norc", "-eu", "-c", RECORDED + script]
    done = subprocess.run(shell, capture_output=True, text=True, timeout=10, check=True)
    return [line.rstrip("\t").split("\t") for line in done.stdout.splitlines()]


def granted(call: list[str]) -> tuple[str, str, dict[str, str]]:
    """Type, id and the one entry of a call of `databricks permissions update`."""
    words = call[:2] + call[4:5]
    assert words == ["permissions", "update", "--json"]
    (entry,) = json.loads(call[5])["access_control_list"]
    return call[2], call[3], entry


# --- Azure


def test_roles_are_those_that_bicep_gives() -> None:
    given_by_bicep = {}
    for file in all_files():
        for right in file.of_type("Microsoft.Authorization/roleAssignments"):
            role = file.variable(right.value("properties.roleDefinitionId.function.parameters")["resource_name_1"])
            given_by_bicep[role] = right.value("properties.description").partition(":")[0]
    named = {role.id: role.name.removeprefix("Azure ") for service in SERVICES for role in service.roles}
    assert named.items() <= given_by_bicep.items()


EXPECTED = {
    SERVICE_BUS.what: (
        ["Azure Service Bus Data Sender", "Azure Service Bus Data Receiver"],
        "[resource list --resource-type Microsoft.ServiceBus/namespaces --name sb-abc --query [].id --output tsv]",
    ),
    TABLES.what: (
        ["Storage Table Data Contributor"],
        "[resource list --resource-type Microsoft.Storage/storageAccounts --name stabc --query [].id --output tsv]",
    ),
    EMAIL.what: (
        ["Communication and Email Service Owner"],
        "[resource list --resource-type Microsoft.Communication/communicationServices --name acs-abc --query [].id"
        " --output tsv]",
    ),
    MODEL.what: (
        ["Cognitive Services OpenAI User"],
        "[cognitiveservices account list --query [?properties.customSubDomainName=='cog-abc'].id --output tsv]",
    ),
}


@pytest.mark.parametrize("service", SERVICES, ids=lambda service: service.what)
def test_each_role_of_a_service_is_assigned_on_the_resource_of_its_endpoint(service: AzureService) -> None:
    roles, scope = EXPECTED[service.what]
    script = role_commands.role_assignments(service, settings_with(azure_client_id=CLIENT_ID))
    start = ["role", "assignment", "create", "--role"]
    calls = calls_of(script)
    assert calls[len(roles) :] == [[*start, role, "--assignee", CLIENT_ID, "--scope", scope] for role in roles]
    assert [call[4] for call in calls[: len(roles)]] == list(roles), "whoever runs the check is not the app"
    assert all(call[5] == "--assignee-object-id" and call[-1] == scope for call in calls[: len(roles)])


def test_without_a_client_id_the_person_who_is_signed_in_gets_the_role() -> None:
    script = role_commands.role_assignments(TABLES, settings_with())
    (call,) = calls_of(script)
    person = "[ad signed-in-user show --query id --output tsv]"
    assert call[5:9] == ["--assignee-object-id", person, "--assignee-principal-type", "User"]
    assert "az login" in script


@pytest.mark.parametrize(
    ("service", "key", "value"),
    [
        (SERVICE_BUS, "SERVICE_BUS_CONNECTION", "Endpoint=sb://a/;SharedAccessKey=secret-value"),
        (TABLES, "TABLES_CONNECTION_STRING", "AccountKey=secret-value"),
        (EMAIL, "ACS_ACCESS_KEY", "c2VjcmV0LXZhbHVl"),
        (MODEL, "AZURE_OPENAI_KEY", "secret-value"),
    ],
)
def test_where_a_key_is_refused_no_role_would_help(service: AzureService, key: str, value: str) -> None:
    text = role_commands.role_assignments(service, settings_with(**{key.lower(): value}))
    assert text.startswith(f"{key} is refused")
    assert "az role" not in text
    assert value not in text


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:10002/devstoreaccount1", "http://localhost:1", ""])
def test_a_host_that_is_none_of_azure_leaves_a_gap_to_fill_in(endpoint: str) -> None:
    script = role_commands.role_assignments(TABLES, settings_with(tables_endpoint=endpoint))
    (call,) = calls_of(script)
    assert call[-1] == "<resource id of the storage account>"


@given(endpoint=st.text(st.characters(codec="ascii", exclude_characters="[]"), max_size=30))
def test_an_endpoint_never_becomes_a_command(endpoint: str) -> None:
    scope = role_commands.scope_of(TABLES, f"https://{endpoint}.table.core.windows.net")
    gap = '"<resource id of the storage account>"'
    assert scope == gap or scope.partition("--name ")[2].partition(" ")[0].replace("-", "").isalnum()


@pytest.mark.parametrize("service", SERVICES, ids=lambda service: service.what)
def test_where_nothing_answers_the_setting_and_its_host_are_named(service: AzureService) -> None:
    settings = settings_with()
    text = role_commands.unreachable(service, settings)
    assert f"nslookup {role_commands.host_of(getattr(settings, service.endpoint))}" in text
    assert service.look_at in text


def test_where_a_connection_string_is_used_that_is_what_to_look_at() -> None:
    settings = settings_with(service_bus_namespace="", service_bus_connection="Endpoint=sb://x/;SharedAccessKey=k")
    assert role_commands.unreachable(SERVICE_BUS, settings).startswith("look at SERVICE_BUS_CONNECTION;")


# --- Settings


def test_a_missing_setting_is_set_in_azure_by_a_command_and_here_in_a_file() -> None:
    text = role_commands.where_to_set(("SENDER_EMAIL", "TABLES_ENDPOINT or TABLES_CONNECTION_STRING"))
    command = next(line for line in text.splitlines() if line.startswith("az "))
    assert command == (
        'az functionapp config appsettings set --name "$(azd env get-value FUNCTION_APP_NAME)" --resource-group'
        ' "$(azd env get-value AZURE_RESOURCE_GROUP)" --settings'
        " SENDER_EMAIL='<value>' TABLES_ENDPOINT='<value>'"
    )
    assert "SENDER_EMAIL, TABLES_ENDPOINT or TABLES_CONNECTION_STRING, in .env" in text
    assert "local.settings.json" in text


@pytest.mark.parametrize(
    ("name", "set_in_azure"),
    [
        ("SERVICE_BUS_CONNECTION or SERVICE_BUS_CONNECTION__fullyQualifiedNamespace", "<value>"),
        ("DATABRICKS_TOKEN or DATABRICKS_CLIENT_ID", "<value>"),
        ("DATABRICKS_CLIENT_SECRET", "@Microsoft.KeyVault(VaultName=<vault>;SecretName=<secret>)"),
        ("ACS_ACCESS_KEY", "@Microsoft.KeyVault(VaultName=<vault>;SecretName=<secret>)"),
    ],
)
def test_a_secret_is_never_typed_into_a_command(name: str, set_in_azure: str) -> None:
    command = next(line for line in role_commands.where_to_set((name,)).splitlines() if line.startswith("az "))
    assert shlex.split(command)[-1] == f"{name.rpartition(' or ')[2]}={set_in_azure}"


# --- Databricks


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"databricks_token": "secret-value"}, "DATABRICKS_TOKEN is refused"),
        ({"databricks_client_id": CLIENT_ID}, f"service-principals create --application-id {CLIENT_ID} "),
        ({"azure_client_id": CLIENT_ID}, f"service-principals create --application-id {CLIENT_ID} "),
        ({}, "service-principals create --application-id '<application id of the identity>' "),
    ],
)
def test_a_refused_sign_in_depends_on_how_one_signs_in(values: dict[str, str], expected: str) -> None:
    text = role_commands.databricks_sign_in(settings_with(**values))
    assert expected in text
    assert "secret-value" not in text


def test_one_missing_permission_is_one_exact_command() -> None:
    script = role_commands.permission_commands(PRINCIPAL, [Grant("jobs", "123", "CAN_MANAGE_RUN")])
    entry = f'{{"service_principal_name":"{CLIENT_ID}","permission_level":"CAN_MANAGE_RUN"}}'
    assert script == f"databricks permissions update jobs 123 --json '{{\"access_control_list\":[{entry}]}}'"


def test_a_user_is_named_as_a_user() -> None:
    script = role_commands.permission_commands(Principal("o'neil@example.com", False), [Grant("jobs", "1", "CAN_VIEW")])
    (call,) = calls_of(script)
    assert granted(call) == ("jobs", "1", {"user_name": "o'neil@example.com", "permission_level": "CAN_VIEW"})


def test_of_many_five_are_commands_and_a_loop_does_the_rest() -> None:
    missing = [Grant("jobs", str(n), "CAN_MANAGE_RUN" if n % 2 else "CAN_MANAGE") for n in range(1, 10)]
    missing += [Grant("cluster-policies", "P1", "CAN_USE"), Grant("instance-pools", "pool-1", "CAN_ATTACH_TO")]
    script = role_commands.permission_commands(PRINCIPAL, missing)
    lines = script.splitlines()
    assert [line.split()[0] for line in lines] == ["databricks"] * 5 + ["for", "for"] + ["databricks"] * 2
    done = [granted(call) for call in calls_of(script)]
    assert sorted((kind, id_, entry["permission_level"]) for kind, id_, entry in done) == sorted(
        (grant.object_type, grant.object_id, grant.level) for grant in missing
    )
    assert {entry["service_principal_name"] for *_, entry in done} == {CLIENT_ID}


def test_of_several_workspaces_the_right_one_is_named() -> None:
    script = role_commands.permission_commands(
        PRINCIPAL, [Grant("jobs", "1", "CAN_VIEW")], host="https://adb-1.2.azuredatabricks.net"
    )
    assert script.splitlines()[0] == "export DATABRICKS_HOST=https://adb-1.2.azuredatabricks.net"


def test_the_identity_is_made_known_to_the_right_workspace() -> None:
    script = role_commands.service_principal_command(CLIENT_ID, host="https://adb-1.2.azuredatabricks.net")
    assert script.splitlines() == [
        "export DATABRICKS_HOST=https://adb-1.2.azuredatabricks.net",
        f"databricks service-principals create --application-id {CLIENT_ID} --display-name failure-agent --active",
    ]


@given(name=st.text(min_size=1), object_id=st.text(min_size=1))
def test_no_name_can_break_out_of_its_command(name: str, object_id: str) -> None:
    script = role_commands.permission_commands(Principal(name, False), [Grant("jobs", object_id, "CAN_VIEW")])
    words = shlex.split(script)
    assert len(words) == 7
    assert words[4] == object_id
    assert json.loads(words[6])["access_control_list"][0]["user_name"] == name
