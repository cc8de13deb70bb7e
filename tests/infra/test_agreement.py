"""Bicep and code say the same: settings, queues, tables, functions, schedules, rights."""

import json
import re
import tomllib
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest
import yaml
from cronsim import CronSim

from agent.app_check import ROUTE
from shared import bootstrap, decision_history, messages, schedules
from shared.domain import Mode
from shared.setting_values import RULES, Choice, Number, Table
from shared.settings import Settings, environment_name
from tests.functions.test_function_app import bindings
from tests.infra.bicep import ROOT, Tree, all_files, decorators, read

MAIN = read("main.bicep")
APP = read("modules/functionApp.bicep")
SETTINGS_IN_MAIN = (
    "choiceSettings",
    "jobIdSettings",
    "domainSettings",
    "jobTagSettings",
    "ownerSettings",
    "modelSettings",
    "secretSettings",
    "ownSettings",
)
TABLE_SETTINGS = {"jobTagSettings": ("jobTags", "JOB_TAGS"), "ownerSettings": ("owners", "OWNERS")}
LIST_SETTINGS = {
    "jobIdSettings": ("jobIds", "JOB_IDS"),
    "domainSettings": ("allowedRecipientDomains", "ALLOWED_RECIPIENT_DOMAINS"),
}
WHERE_GIVEN = {**TABLE_SETTINGS, **LIST_SETTINGS}
"""Variables that set something only where their parameter is given, and that parameter and setting."""

HOST_SETTINGS = {
    "AzureWebJobsStorage__blobServiceUri": "host storage, by identity",
    "AzureWebJobsStorage__credential": "… which is a managed identity",
    "AzureWebJobsStorage__clientId": "… namely this one",
    "SERVICE_BUS_CONNECTION__credential": "the triggers' connection, by identity",
    "SERVICE_BUS_CONNECTION__clientId": "… namely this one",
    "APPLICATIONINSIGHTS_CONNECTION_STRING": "where telemetry goes",
    "APPLICATIONINSIGHTS_AUTHENTICATION_STRING": "… by identity",
    "PYTHON_APPLICATIONINSIGHTS_ENABLE_TELEMETRY": "the worker exports telemetry itself",
    "PYTHON_THREADPOOL_THREAD_COUNT": "threads for sync functions",
}
"""Settings that the Functions host or worker reads, and what for."""

KEY_SETTINGS = {"SERVICE_BUS_CONNECTION", "TABLES_CONNECTION_STRING", "ACS_ACCESS_KEY", "AZURE_OPENAI_KEY"}
"""Keys and connection strings: for your own machine only."""

SET_ON_PLAN = {"FUNCTIONS_WORKER_RUNTIME", "FUNCTIONS_EXTENSION_VERSION", "WEBSITE_RUN_FROM_PACKAGE"}
"""Flex Consumption takes them from functionAppConfig and refuses them as app settings."""

ROLES = {
    "b7e6dc6d-f1e8-4753-8033-0f276bb0955b": ("Storage Blob Data Owner", "storageAccount"),
    "0a9a7e1f-b9d0-4cc4-a60d-0319b160aaa3": ("Storage Table Data Contributor", "storageAccount"),
    "4f6d3b9b-027b-4f4c-9142-0e5a2a2247e0": ("Service Bus Data Receiver", "namespace"),
    "69a216fc-b8fb-44d8-bc22-1f3c2cd27a39": ("Service Bus Data Sender", "namespace"),
    "090c5cfd-751d-490a-894a-3ce6f1109419": ("Service Bus Data Owner", "namespace"),
    "3913510d-42f4-4e42-8a64-420c390055eb": ("Monitoring Metrics Publisher", "appInsights"),
    "09976791-48a7-449e-bb21-39d1a415f350": ("Communication and Email Service Owner", "communicationService"),
    "4633458b-17de-408a-b874-0445c86b69e6": ("Key Vault Secrets User", "vault"),
    "5e0bd9bd-7b93-4f28-af87-19fc36ad61bd": ("Cognitive Services OpenAI User", "account"),
}
"""Azure's built-in roles that the identity has: id, name, and the one resource it is for."""


def settings_of(variable: str) -> Tree:
    """What a variable sets; where that depends on its parameter, what it sets where that is given."""
    value: Tree = MAIN.variable(variable)
    found: Tree = value["operator"]["operands"]["false_value"] if variable in WHERE_GIVEN else value
    return found


def settings_in_main() -> set[str]:
    return {name for variable in SETTINGS_IN_MAIN for name in settings_of(variable)}


def union_of(call: Tree) -> list[str]:
    """What a call of union() joins, in order; what comes later wins."""
    assert call["function"]["type"] == "union"
    joined = call["function"]["parameters"].values()
    return [str(name) for value in joined for name in (value if isinstance(value, list) else [value])]


# --- Settings


def test_app_settings_are_those_that_the_code_and_the_host_read() -> None:
    assert settings_in_main() <= {environment_name(field) for field in Settings.model_fields}
    assert set(APP.variable("hostSettings")) == set(HOST_SETTINGS)


def test_the_app_gets_every_setting_without_which_it_does_not_work() -> None:
    for group in bootstrap.REQUIRED_BY_APP:
        assert set(group) & settings_in_main(), group


def test_nothing_of_this_machine_and_nothing_that_the_plan_refuses_is_set() -> None:
    names = settings_in_main() | set(APP.variable("hostSettings"))
    assert not names & (KEY_SETTINGS | SET_ON_PLAN)


def test_all_settings_reach_the_app_and_further_ones_cannot_replace_them() -> None:
    handed_over = MAIN.modules["app"]["config"]["params"]["agentSettings"]
    assert union_of(handed_over) == ["extraAppSettings", *SETTINGS_IN_MAIN]
    (settings,) = [resource for resource in APP.resources if resource.type == "Microsoft.Web/sites/config"]
    assert settings.value("name") == "appsettings"
    assert union_of(settings.value("properties")) == ["agentSettings", "hostSettings"]


def test_threads_are_as_many_as_on_your_own_machine() -> None:
    local = json.loads((ROOT / "local.settings.json.example").read_text())["Values"]
    threads = "PYTHON_THREADPOOL_THREAD_COUNT"
    assert APP.variable("hostSettings")[threads] == local[threads]


def test_modes_are_those_of_the_code_and_the_default_only_observes() -> None:
    mode = MAIN.parameters["defaultMode"]
    assert decorators(mode)["allowed"] == [str(one) for one in Mode]
    assert mode["default"] == Settings.model_fields["default_mode"].default == Mode.OBSERVE


@pytest.mark.parametrize(
    ("parameter", "setting"),
    [("defaultMode", "DEFAULT_MODE"), ("aiMode", "AI_MODE"), ("maxRetryAttempts", "MAX_RETRY_ATTEMPTS")],
)
def test_a_parameter_may_be_what_its_setting_may_be(parameter: str, setting: str) -> None:
    limits, rule = decorators(MAIN.parameters[parameter]), RULES[setting]
    if isinstance(rule, Number):
        assert (limits["min_value"], limits["max_value"]) == (rule.low, rule.high)
    else:
        assert isinstance(rule, Choice)
        assert set(limits["allowed"]) == set(rule.words)


@pytest.mark.parametrize(("variable", "parameter", "setting"), [(v, *names) for v, names in TABLE_SETTINGS.items()])
def test_json_settings_are_objects_for_whoever_deploys(variable: str, parameter: str, setting: str) -> None:
    assert MAIN.parameters[parameter]["type"] == "object"
    call = settings_of(variable)[setting]["function"]
    assert (call["type"], list(call["parameters"].values())) == ("string", [parameter])
    assert isinstance(RULES[setting], Table)


@pytest.mark.parametrize(("variable", "parameter"), [(v, names[0]) for v, names in WHERE_GIVEN.items()])
def test_what_is_not_given_leaves_what_extra_app_settings_say(variable: str, parameter: str) -> None:
    """Else an upgrade would empty JOB_TAGS or JOB_IDS where they stand there, and every job would be looked after."""
    choice = MAIN.variable(variable)["operator"]
    asked = choice["operands"]["condition"]["function"]
    assert (choice["type"], asked["type"], list(asked["parameters"].values())) == ("conditional", "empty", [parameter])
    assert choice["operands"]["true_value"] == {}


def test_secrets_are_references_to_the_names_in_the_key_vault() -> None:
    kept = {resource.value("name") for resource in read("modules/keyVault.bicep").resources} - {"name", "to-workspace"}
    referred = set(re.findall(r"SecretName=([a-z-]+)\)", MAIN.text))
    assert referred == kept == {"databricks-token", "databricks-client-secret"}


# --- Queues and tables


def queue_properties(queue: dict[str, Any]) -> dict[str, Any]:
    """What Bicep makes of one entry of the queues' definition."""
    (resource,) = read("modules/serviceBus.bicep").of_type("Microsoft.ServiceBus/namespaces/queues")

    def filled(value: Any) -> Any:
        if isinstance(value, str):
            return re.sub(r"\$\{queue\.(\w+)\}", lambda found: str(queue[found[1]]), value)
        if isinstance(value, dict):
            return queue[value["operator"]["operands"]["operand_2"]]
        return value

    return {"name": filled(resource.value("name"))} | {k: filled(v) for k, v in resource.value("properties").items()}


def queue_definitions() -> list[dict[str, Any]]:
    file = read("modules/serviceBus.bicep")
    path = file.variable("queues")["function"]["parameters"]["file_path"]
    definitions: list[dict[str, Any]] = json.loads((file.path.parent / path).read_text())
    return definitions


def test_queues_are_made_from_the_definition_of_the_local_stack() -> None:
    assert [queue["name"] for queue in queue_definitions()] == list(messages.QUEUES)


@pytest.mark.parametrize("queue", queue_definitions(), ids=lambda queue: queue["name"])
def test_queues_drop_duplicates_and_keep_what_cannot_be_delivered(queue: dict[str, Any]) -> None:
    assert queue_properties(queue) == {
        "name": queue["name"],
        "requiresDuplicateDetection": True,
        "duplicateDetectionHistoryTimeWindow": "PT3600S",
        "lockDuration": "PT60S",
        "maxDeliveryCount": 10,
        "defaultMessageTimeToLive": "PT1209600S",
        "deadLetteringOnMessageExpiration": True,
    }


def test_tables_are_those_of_the_history() -> None:
    tables = read("modules/storage.bicep").variable("tables")
    assert tables == [decision_history.INCIDENTS, decision_history.EVENTS, decision_history.STATE]
    assert MAIN.variable("tablePrefix") == Settings.model_fields["table_prefix"].default
    (made,) = read("modules/storage.bicep").of_type("Microsoft.Storage/storageAccounts/tableServices/tables")
    assert made.value("name") == "${tablePrefix}${table}"


# --- Functions


def test_queue_functions_use_a_connection_and_queues_that_exist() -> None:
    triggers = [binding for binding in bindings().values() if "queueName" in binding]
    assert {binding["queueName"] for binding in triggers} == set(messages.QUEUES)
    names = settings_in_main() | set(APP.variable("hostSettings"))
    for connection in {binding["connection"] for binding in triggers}:
        for part in ("fullyQualifiedNamespace", "credential", "clientId"):
            assert f"{connection}__{part}" in names


def test_always_ready_groups_exist() -> None:
    groups = set(re.findall(r"\{ name: '([^']+)', instanceCount:", APP.text))
    kinds = {binding["type"] for binding in bindings().values()}
    assert "httpTrigger" in kinds
    assert groups
    assert groups <= {"http"} | {f"function:{name}" for name in bindings()}


def test_the_runtime_is_the_python_of_the_project() -> None:
    (site,) = APP.of_type("Microsoft.Web/sites")
    runtime = site.value("properties.functionAppConfig.runtime")
    assert runtime == {"name": "python", "version": (ROOT / ".python-version").read_text().strip()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"].startswith(f">={runtime['version']}")


def test_health_and_check_answer_where_they_are_asked() -> None:
    prefix = json.loads((ROOT / "host.json").read_text())["extensions"]["http"]["routePrefix"]
    assert MAIN.outputs["HEALTH_URL"]["value"].endswith(f"/{prefix}/{bindings()['health']['route']}")
    assert f"/{prefix}/{bindings()['check']['route']}" == ROUTE
    assert "output APP_URL string = app.outputs.url" in MAIN.text


def test_azd_finds_the_app_that_bicep_makes() -> None:
    project = yaml.safe_load((ROOT / "azure.yaml").read_text())
    ((name, service),) = project["services"].items()
    assert name == MAIN.modules["app"]["config"]["params"]["serviceName"]
    assert service == {"project": ".", "language": "python", "host": "function"}
    assert project["requiredVersions"]["azd"].startswith(">= ")
    assert (ROOT / project["infra"]["path"] / f"{project['infra']['module']}.bicep").is_file()
    assert "'azd-service-name': serviceName" in APP.text
    assert MAIN.variable("tags") == {"'azd-env-name'": "environmentName"}


# --- Schedules


def minutes_between(schedule: str) -> set[float]:
    """The minutes between the next hundred ticks of an NCRONTAB, whose first field is seconds."""
    seconds, *fields = schedule.split()
    assert seconds.isdigit()
    ticks = CronSim(" ".join(fields), datetime(2026, 1, 1, tzinfo=UTC))
    times = [next(ticks) for _ in range(100)]
    return {(later - earlier).total_seconds() / 60 for earlier, later in pairwise(times)}


@pytest.mark.parametrize("minutes", decorators(MAIN.parameters["findFailuresMinutes"])["allowed"])
def test_every_allowed_interval_is_kept_all_day(minutes: int) -> None:
    schedule = MAIN.variable("ownSettings")["FIND_FAILURES_SCHEDULE"].replace("${findFailuresMinutes}", str(minutes))
    assert minutes_between(schedule) == {minutes}


def test_intervals_are_those_of_the_code() -> None:
    default = MAIN.parameters["findFailuresMinutes"]["default"]
    schedule = MAIN.variable("ownSettings")["FIND_FAILURES_SCHEDULE"].replace("${findFailuresMinutes}", str(default))
    assert schedule == schedules.FIND_FAILURES
    alerts = read("modules/alerts.bicep")
    assert minutes_between(schedules.FOLLOW_UP) == {alerts.variable("followUpMinutes")}
    assert minutes_between(schedules.AUDIT) == {alerts.variable("auditMinutes")}


# --- Rights


def test_the_identity_has_the_rights_that_are_listed_here_and_no_other() -> None:
    given: dict[str, tuple[str, str]] = {}
    for file in all_files():
        for right in file.of_type("Microsoft.Authorization/roleAssignments"):
            resource_id = right.value("properties.roleDefinitionId.function.parameters")
            assert resource_id["resource_type"] == "Microsoft.Authorization/roleDefinitions"
            role = file.variable(resource_id["resource_name_1"])
            assert right.value("name.function.parameters.extra_string_2") == resource_id["resource_name_1"]
            name, _, reason = right.value("properties.description").partition(":")
            assert len(reason.split()) >= 5
            assert role not in given
            given[role] = (name.removesuffix(", asked for by a parameter"), right.value("scope"))
    assert given == ROLES


def test_data_owner_of_the_queues_replaces_receiver_and_sender() -> None:
    declared = read("modules/roles.bicep").tree["resources"]
    assert declared["ownMessages"]["config"]["condition"] == "serviceBusDataOwner"
    for narrower in ("receiveMessages", "sendMessages"):
        condition = declared[narrower]["config"]["condition"]["operator"]
        assert condition == {"type": "not", "operands": {"bool_value": "serviceBusDataOwner"}}
    assert MAIN.parameters["serviceBusDataOwner"]["default"] is False
