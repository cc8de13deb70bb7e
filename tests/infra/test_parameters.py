"""A rehearsal of `azd up`: what azd makes of infra/main.parameters.json, held against what main.bicep accepts."""

import json
import re
from typing import Any

import pytest

from tests.infra.bicep import INFRA, Tree, decorators, read

MAIN = read("main.bicep")
FILE: dict[str, Any] = json.loads((INFRA / "main.parameters.json").read_text())["parameters"]
PLACEHOLDER = re.compile(r"\$\{(?P<variable>\w+)(?:=(?P<default>[^}]*))?\}")

ASKED = {
    "AZURE_ENV_NAME": "prod",
    "AZURE_LOCATION": "westeurope",
    "DATABRICKS_HOST": "https://adb-1234567890123456.7.azuredatabricks.net",
    "ESCALATION_EMAILS": "data-platform@example.com, on-call@example.com",
}
"""What azd asks for by itself (name, region) or because nothing has it as a default."""


OWNERS = {"orders": "orders@example.com, lead@example.com"}


def given_by_azd(environment: dict[str, str]) -> dict[str, Any]:
    """The parameters of the deployment as azd works them out; those it would ask for are left out.

    azd replaces `${NAME=default}` and then converts: a text that is no number or truth value, and an empty text where
    the default is empty or none, count as not given; an empty text replaces a default that is not empty. Of an object
    the text is read as JSON, and refused where it is none (azd ≥ 1.23.4, loadParameters in bicep_provider.go).
    """
    given: dict[str, Any] = {}
    for name, entry in FILE.items():
        value, default = entry["value"], MAIN.parameters[name]["default"]
        if isinstance(value, str):
            text = PLACEHOLDER.sub(lambda found: environment.get(found["variable"]) or found["default"] or "", value)
            value = converted(text, MAIN.parameters[name]["type"], default)
        if value is not None:
            given[name] = value
    return given


def converted(text: str, kind: str, default: Any) -> Any:
    match kind:
        case "bool":
            return {"true": True, "false": False}.get(text)
        case "int":
            return int(text) if re.fullmatch(r"-?\d+", text) else None
        case "object":
            return json.loads(text) if text else None
        case _:
            return text if text or default else None


def objections(name: str, parameter: Tree, value: Any) -> list[str]:
    """What Azure Resource Manager would object to."""
    limits = decorators(parameter)
    kinds = {"string": str, "int": int, "bool": bool, "object": dict}
    if type(value) is not kinds[parameter["type"]]:
        return [f"{name}: {value!r} is no {parameter['type']}"]
    size = len(value) if isinstance(value, str) else value
    low = limits.get("min_length", limits.get("min_value"))
    high = limits.get("max_length", limits.get("max_value"))
    wrong = (
        ("allowed" in limits and value not in limits["allowed"])
        or (low is not None and size < low)
        or (high is not None and size > high)
    )
    return [f"{name}: {value!r} is outside {limits}"] if wrong else []


def rehearse(environment: dict[str, str]) -> tuple[set[str], list[str]]:
    """Which parameters azd would have to ask for, and what the deployment would object to."""
    given = given_by_azd(environment)
    asked = {name for name, found in MAIN.parameters.items() if name not in given and found["default"] is None}
    return asked, [line for name, value in given.items() for line in objections(name, MAIN.parameters[name], value)]


def test_the_file_names_exactly_the_parameters() -> None:
    assert list(FILE) == list(MAIN.parameters)


def test_azd_asks_for_four_values_and_no_more() -> None:
    asked, _ = rehearse({})
    assert asked == {"environmentName", "location", "databricksHost", "escalationEmails"}


def test_with_these_the_deployment_has_nothing_to_object_to() -> None:
    assert rehearse(ASKED) == (set(), [])
    given = given_by_azd(ASKED)
    assert given["defaultMode"] == "observe"
    assert given["escalationEmails"] == ASKED["ESCALATION_EMAILS"]


@pytest.mark.parametrize(("name", "parameter"), MAIN.parameters.items(), ids=MAIN.parameters)
def test_a_placeholder_repeats_a_default_that_is_a_text(name: str, parameter: Tree) -> None:
    """Else azd would replace it by an empty text."""
    value, default = FILE[name]["value"], parameter["default"]
    if value == {}:
        assert parameter["type"] == "object"
        return
    found = PLACEHOLDER.fullmatch(value)
    assert found is not None
    assert found["default"] == (default if parameter["type"] == "string" and default else None)


@pytest.mark.parametrize(
    ("variable", "value", "parameter", "expected"),
    [
        ("DEFAULT_MODE", "retry", "defaultMode", "retry"),
        ("MODEL_SOURCE", "none", "modelSource", "none"),
        ("MODEL_CAPACITY", "120", "modelCapacity", 120),
        ("ALWAYS_READY_HTTP", "1", "alwaysReadyHttp", 1),
        ("SERVICE_BUS_DATA_OWNER", "true", "serviceBusDataOwner", True),
        ("DIAGNOSTIC_SETTINGS", "false", "diagnosticSettings", False),
        ("CUSTOM_MAIL_DOMAIN", "agent.example.com", "customMailDomain", "agent.example.com"),
        ("OWNERS", '{"orders": "orders@example.com, lead@example.com"}', "owners", OWNERS),
        ("JOB_TAGS", '{"team": "orders"}', "jobTags", {"team": "orders"}),
        ("AGENT_DATABRICKS_TOKEN", "dapi-not-a-token", "databricksToken", "dapi-not-a-token"),
    ],
)
def test_values_of_the_environment_arrive(variable: str, value: str, parameter: str, expected: object) -> None:
    assert rehearse(ASKED | {variable: value}) == (set(), [])
    assert given_by_azd(ASKED | {variable: value})[parameter] == expected


@pytest.mark.parametrize(
    ("variable", "value", "objection"),
    [
        ("DEFAULT_MODE", "everything", "defaultMode"),
        ("MODEL_CAPACITY", "0", "modelCapacity"),
        ("ALWAYS_READY_HTTP", "99", "alwaysReadyHttp"),
        ("FIND_FAILURES_MINUTES", "7", "findFailuresMinutes"),
        ("OWNERS", "[]", "owners"),
        ("DATABRICKS_HOST", "adb", "databricksHost"),
    ],
)
def test_wrong_values_are_refused(variable: str, value: str, objection: str) -> None:
    _, found = rehearse(ASKED | {variable: value})
    assert [line.partition(":")[0] for line in found] == [objection]


def test_a_secret_of_the_shell_is_never_taken_by_accident() -> None:
    """azd reads the shell's variables too, and many have a token there for other tools."""
    variables = {found["variable"] for entry in FILE.values() for found in PLACEHOLDER.finditer(str(entry["value"]))}
    assert not variables & {"DATABRICKS_TOKEN", "DATABRICKS_CLIENT_ID", "DATABRICKS_CLIENT_SECRET"}


def test_outputs_come_back_as_the_parameters_that_they_were() -> None:
    """azd keeps outputs as variables, which the next deployment reads as parameters of the same name."""
    outputs = MAIN.outputs
    for name, entry in FILE.items():
        found = PLACEHOLDER.fullmatch(str(entry["value"]))
        if found and found["variable"] in outputs:
            assert outputs[found["variable"]]["value"] == name
