"""What values settings may have: the same for `Settings` and for the app at its start, in the same words."""

import json
import os
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import setting_values
from shared.domain import Mode
from shared.errors import ConfigurationError
from shared.setting_values import RULES, Number
from shared.settings import Settings, environment_name, load_settings

FIELDS = {environment_name(field): field for field in Settings.model_fields}


def settings_of(environment: dict[str, str]) -> Settings:
    """As the app loads them from just this environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "environ", environment)
        return load_settings()


def refusal(environment: dict[str, str]) -> tuple[tuple[str, ...], str] | None:
    """Which settings are refused when they are loaded, and the message; None where they are accepted."""
    try:
        settings_of(environment)
    except ConfigurationError as error:
        return error.names, str(error)
    return None


def test_every_setting_has_a_rule_and_every_rule_a_setting() -> None:
    assert set(RULES) == set(FIELDS)


@pytest.mark.parametrize("name", FIELDS)
def test_every_default_is_permitted(name: str) -> None:
    default = Settings.model_fields[FIELDS[name]].get_default(call_default_factory=True)
    assert setting_values.read(name, default) == default


@pytest.mark.parametrize("name", FIELDS)
def test_the_rule_is_of_the_kind_of_the_field(name: str) -> None:
    kind, rule = Settings.model_fields[FIELDS[name]].annotation, RULES[name]
    assert (kind in (int, float)) == isinstance(rule, Number)
    assert not isinstance(rule, Number) or rule.whole == (kind is int)


def test_modes_are_those_of_the_domain() -> None:
    assert RULES["DEFAULT_MODE"] == setting_values.Choice(tuple(Mode))


def test_limits_are_said_in_settings_and_here_once() -> None:
    assert [
        name for name, field in Settings.model_fields.items() if field.metadata and name not in TUPLES_AND_TABLES
    ] == []


TUPLES_AND_TABLES = {
    "databricks_host",
    "escalation_emails",
    "owners",
    "allowed_recipient_domains",
    "job_ids",
    "job_tags",
}
"""Fields whose only metadata is that pydantic-settings leaves their text alone."""

UUID = "11111111-2222-3333-4444-555555555555"
LIKELY = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=30),
    st.integers(-10, 10**6).map(str),
    st.floats().map(str),
    st.sampled_from(
        ["true", "observe", "never", "0 */5 * * * *", "a@b.example", "a.example", "https://a.example:443/x"]
    ),
    st.sampled_from(
        ["1_000", "1e3", "+3", "0x10", "٣", "3.0", "-0", "1e999", "Infinity", "a@b,c@d", "//", "https://a:b"]
    ),
    st.dictionaries(st.text(max_size=5), st.text(max_size=5) | st.integers(), max_size=3).map(json.dumps),
    st.lists(st.integers(0, 99), max_size=3).map(lambda ids: ",".join(map(str, ids))),
    st.sampled_from([" ", "\n", " a ", "observe\n", "a@b.example\n", "YWJj\n", " true"]),
)


@given(values=st.dictionaries(st.sampled_from(sorted(RULES)), LIKELY, min_size=1, max_size=5))
def test_the_start_lets_pass_what_the_settings_accept_and_nothing_else(values: dict[str, str]) -> None:
    wrong = setting_values.wrong(setting_values.given(values))
    assert refusal(values) == ((tuple(wrong), setting_values.wrong_text(wrong)) if wrong else None)


@pytest.mark.parametrize(
    "environment", [{"Max_Retry_Attempts": "x"}, {"service_bus_connection__fullyqualifiednamespace": "sb://x"}]
)
def test_the_case_of_a_name_does_not_count(environment: dict[str, str]) -> None:
    assert list(setting_values.wrong(setting_values.given(environment))) == [
        name for name in RULES if name.lower() in map(str.lower, environment)
    ]
    with pytest.raises(ConfigurationError):
        settings_of(environment)


def test_empty_and_unknown_variables_are_not_settings() -> None:
    assert setting_values.given({"MAX_WORKERS": "", "PATH": "/bin", "DRY_RUN": "true"}) == {"DRY_RUN": "true"}


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if isinstance(rule, Number) and rule.high])
def test_the_highest_number_is_permitted_and_no_date_runs_over(name: str) -> None:
    high = RULES[name].high  # type: ignore[attr-defined]
    value = setting_values.read(name, str(high))
    assert value == high
    unit = name.rpartition("_")[2].lower()
    if unit in ("seconds", "minutes", "hours", "days"):
        assert datetime(2026, 1, 1, tzinfo=UTC) - timedelta(**{unit: float(high)}) < datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        (
            "DATABRICKS_HOST",
            "adb-1.azuredatabricks.net/?o=1, http://127.0.0.1:80/",
            ("https://adb-1.azuredatabricks.net", "http://127.0.0.1:80"),
        ),
        ("ESCALATION_EMAILS", " a@example.com,, b@example.com ,", ("a@example.com", "b@example.com")),
        ("OWNERS", '{"orders": "a@example.com, b@example.com"}', {"orders": "a@example.com, b@example.com"}),
        ("JOB_TAGS", '{"team": "a", "empty": ""}', {"team": "a", "empty": ""}),
        ("DRY_RUN", "TRUE", True),
        ("DRY_RUN", "Y", True),
        ("DRY_RUN", "f", False),
        ("MAX_RETRY_ATTEMPTS", " 10 ", 10),
        ("MAX_RETRY_ATTEMPTS", "3.0", 3),
        (
            "ALLOWED_RECIPIENT_DOMAINS",
            "example.com, münchen.example, 例え.jp",
            ("example.com", "münchen.example", "例え.jp"),
        ),
        ("SERVICE_BUS_CONNECTION", "endpoint=sb://localhost;Key=a=", "endpoint=sb://localhost;Key=a="),
        ("DEFAULT_MODE", "observe ", "observe"),
        ("ACS_ACCESS_KEY", "YWJj\n", "YWJj"),
        ("ACS_ENDPOINT", " https://a.example\r\n", "https://a.example"),
        ("AZURE_CLIENT_ID", f" {UUID}\n", UUID),
        ("SENDER_EMAIL", "a@example.com\n", "a@example.com"),
        ("DATABRICKS_TOKEN", "a-token\n", "a-token"),
        ("BACKOFF_CAP_SECONDS", "0.5", 0.5),
        ("TABLES_CONNECTION_STRING", "UseDevelopmentStorage=true", "UseDevelopmentStorage=true"),
        ("AUDIT_SCHEDULE", "0  20 * * * *", "0 20 * * * *"),
    ],
)
def test_how_a_text_is_read(name: str, text: str, expected: object) -> None:
    assert setting_values.read(name, text) == expected
    assert getattr(settings_of({name: text}), FIELDS[name]) == expected


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("MAX_RETRY_ATTEMPTS", "11", "must be a whole number from 0 to 10"),
        ("MAX_WORKERS", "0", "must be a whole number, 1 or more"),
        ("MAX_COST_FACTOR", "0.5", "must be a number, 1 or more"),
        ("MAX_NODE_MEMORY_GB", "0", "must be a number above 0"),
        ("MAX_TIMEOUT_HOURS", "1e6", "must be a number above 0 and up to 8760"),
        ("AI_MODE", "Never", "must be one of always, unsure, never"),
        ("JOB_IDS", "1,two", "each, comma-separated, must be the number of a job"),
        ("OWNERS", "{", "must be a JSON object whose values are texts"),
        (
            "OWNERS",
            '{"orders": "nobody"}',
            "each value of the JSON object: each, comma-separated, must be a mail address such as team@example.com",
        ),
        (
            "SERVICE_BUS_CONNECTION__fullyQualifiedNamespace",
            "sb://a.servicebus.windows.net",
            "must be a host name such as name.servicebus.windows.net",
        ),
        (
            "SERVICE_BUS_CONNECTION",
            "a.servicebus.windows.net",
            "must be a connection string: parts Name=value, Endpoint among them, with semicolons between them",
        ),
        ("ACS_ACCESS_KEY", "not-base64", "must be base64: copy the whole key"),
        ("DRY_RUN", "maybe", "must be true or false"),
        ("MAX_RETRY_ATTEMPTS", "3.5", "must be a whole number from 0 to 10"),
        ("JOB_IDS", " ", "must not be blank: give a value, or remove the setting"),
        ("DATABRICKS_TOKEN", "\n", "must not be blank: give a value, or remove the setting"),
        ("ALLOWED_RECIPIENT_DOMAINS", "@example.com", "each, comma-separated, must be a domain such as example.com"),
        ("ALLOWED_RECIPIENT_DOMAINS", "*.example.com", "each, comma-separated, must be a domain such as example.com"),
        (
            "ALLOWED_RECIPIENT_DOMAINS",
            "a\u3000b.example",
            "each, comma-separated, must be a domain such as example.com",
        ),
    ],
)
def test_a_problem_says_what_would_be_right(name: str, value: str, problem: str) -> None:
    assert setting_values.wrong({name: value}) == {name: problem}


@pytest.mark.parametrize(
    ("reference", "role"),
    [
        ("@Microsoft.KeyVault(VaultName=a;SecretName=b)", "Key Vault Secrets User"),
        ("@Microsoft.AppConfiguration(Endpoint=https://a.azconfig.io; Key=b)", "App Configuration Data Reader"),
    ],
)
@pytest.mark.parametrize("name", ["DATABRICKS_TOKEN", "AZURE_OPENAI_KEY", "MAX_WORKERS"])
def test_a_reference_that_azure_did_not_resolve_is_refused_for_every_setting(
    name: str, reference: str, role: str
) -> None:
    problem = setting_values.wrong({name: reference})[name]
    assert "was not resolved" in problem
    assert role in problem
    assert "restart" in problem


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"AZURE_OPENAI_ENDPOINT": "https://a.example"}, [("AZURE_OPENAI_DEPLOYMENT",)]),
        ({"AZURE_OPENAI_ENDPOINT": "https://a.example", "AI_MODE": "unsure"}, [("AZURE_OPENAI_DEPLOYMENT",)]),
        ({"AZURE_OPENAI_ENDPOINT": "https://a.example", "AI_MODE": "never"}, []),
        ({"AZURE_OPENAI_ENDPOINT": "https://a.example", "AI_MODE": "never\n"}, []),
        ({"AZURE_OPENAI_ENDPOINT": "https://a.example", "AZURE_OPENAI_DEPLOYMENT": "a"}, []),
        ({"ACS_ENDPOINT": " http://a.example"}, [("ACS_ENDPOINT", "ACS_ACCESS_KEY")]),
    ],
)
def test_what_does_not_go_together(values: dict[str, str], names: list[tuple[str, ...]]) -> None:
    assert [clash.names for clash in setting_values.clashes(values)] == names


@pytest.mark.parametrize(
    "text",
    [
        "0 */5 * * * *",
        "1/2 * * * * *",
        "0 0 9-17 * * MON-FRI",
        "0 0 0 * June Sunday",
        "0 0,30 8 1,15 JAN *",
        "*/2 * * * * *",
        "0 0 0 1 1 0",
    ],
)
def test_schedules_that_a_timer_trigger_reads(text: str) -> None:
    assert setting_values.SCHEDULE.read(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "*/5 * * * *",
        "60 * * * * *",
        "0 0 24 * * *",
        "0 0 0 0 * *",
        "0 0 0 * 13 *",
        "0 0 0 * * 7",
        "0 0 0 L * *",
        "0 */0 * * * *",
        "00:05:00",
        "0 0 0 * * *,",
        "0 0 0 * * so",
        "0 0 0 * * sunnyday",
    ],
)
def test_schedules_that_no_timer_trigger_reads(text: str) -> None:
    with pytest.raises(ValueError, match="six fields"):
        setting_values.SCHEDULE.read(text)


@pytest.mark.parametrize("value", [None, True, object(), b"1", [], {"a": 1}])
@pytest.mark.parametrize("rule", [rule for rule in RULES.values() if isinstance(rule, Number)])
def test_what_is_no_number_is_refused_in_code_too(rule: Number, value: object) -> None:
    with pytest.raises(ValueError, match="must be a"):
        rule.read(value)
