"""Settings: how the environment is read, and that what is wrong or missing is named, all of it, and never shown."""

from pathlib import Path

import pytest

from shared.domain import Mode
from shared.errors import ConfigurationError
from shared.settings import Settings, environment_name, load_settings


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(environment_name(name), raising=False)


def test_every_default_is_valid_and_nothing_is_carried_out_unless_set() -> None:
    settings = load_settings()

    assert settings.default_mode is Mode.OBSERVE
    assert (settings.max_retry_attempts, settings.retry_with_params_attempts) == (3, 2)
    assert settings.max_failure_age_hours == 6
    assert settings.databricks_host == ()


def test_lists_are_comma_separated_and_tables_are_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABRICKS_HOST", "adb-1.azuredatabricks.net/, https://dbc-2.cloud.databricks.com")
    monkeypatch.setenv("ESCALATION_EMAILS", " a@example.com,, b@example.com ,")
    monkeypatch.setenv("JOB_IDS", "123,456")
    monkeypatch.setenv("OWNERS", '{"orders": "o@example.com"}')
    monkeypatch.setenv("JOB_TAGS", '{"team": "a"}')

    settings = load_settings()

    assert settings.databricks_host == ("https://adb-1.azuredatabricks.net", "https://dbc-2.cloud.databricks.com")
    assert settings.escalation_emails == ("a@example.com", "b@example.com")
    assert settings.job_ids == ("123", "456")
    assert settings.owners == {"orders": "o@example.com"}
    assert settings.job_tags == {"team": "a"}


def test_empty_means_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_RETRY_ATTEMPTS", "")
    monkeypatch.setenv("DATABRICKS_HOST", "")

    assert load_settings().max_retry_attempts == 3
    assert load_settings().databricks_host == ()


def test_the_environment_wins_over_the_file_and_overrides_win_over_both(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / ".env"
    file.write_text("DEFAULT_MODE=full\nMAX_RETRY_ATTEMPTS=1\nSENDER_EMAIL=a@example.com\nUNKNOWN=1\n")
    monkeypatch.setenv("MAX_RETRY_ATTEMPTS", "2")

    settings = load_settings(file, {"sender_email": "b@example.com"})

    assert settings.default_mode is Mode.FULL
    assert settings.max_retry_attempts == 2
    assert settings.sender_email == "b@example.com"


def test_every_wrong_setting_is_named_and_no_value_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_RETRY_ATTEMPTS", "s3cret-number")
    monkeypatch.setenv("DEFAULT_MODE", "s3cret-mode")
    monkeypatch.setenv("JOB_IDS", "12,s3cret-job")
    monkeypatch.setenv("BACKOFF_CAP_SECONDS", "-1")

    with pytest.raises(ConfigurationError) as wrong:
        load_settings()

    assert set(wrong.value.names) == {"MAX_RETRY_ATTEMPTS", "DEFAULT_MODE", "JOB_IDS", "BACKOFF_CAP_SECONDS"}
    assert all(name in str(wrong.value) for name in wrong.value.names)
    assert "s3cret" not in str(wrong.value)


@pytest.mark.parametrize("name", ["OWNERS", "JOB_TAGS"])
def test_a_table_that_is_not_json_is_one_clear_error(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "s3cret: not json")

    with pytest.raises(ConfigurationError, match=name) as wrong:
        load_settings()

    assert "s3cret" not in str(wrong.value)


def test_every_missing_setting_is_named_in_one_error() -> None:
    settings = load_settings(None, {"acs_endpoint": "https://acs.example.com"})

    with pytest.raises(ConfigurationError) as missing:
        settings.require(("databricks_host",), ("service_bus_connection", "service_bus_namespace"), ("acs_endpoint",))

    assert missing.value.names == (
        "DATABRICKS_HOST",
        "SERVICE_BUS_CONNECTION or SERVICE_BUS_CONNECTION__fullyQualifiedNamespace",
    )


def test_one_of_a_group_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVICE_BUS_CONNECTION__fullyQualifiedNamespace", "bus.servicebus.windows.net")

    settings = load_settings()
    settings.require(("service_bus_connection", "service_bus_namespace"))

    assert settings.service_bus_namespace == "bus.servicebus.windows.net"
