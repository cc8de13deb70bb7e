"""Every setting of the app, with its default, unit (in the name) and meaning. Read by `bootstrap` only.

What values each may have is said in `setting_values`, and nowhere else.
"""

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from shared import schedules, setting_values
from shared.domain import Mode
from shared.errors import ConfigurationError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

CommaSeparated = Annotated[tuple[str, ...], NoDecode]
JsonTable = Annotated[dict[str, str], NoDecode]


class Settings(BaseSettings):
    """Environment variables have the fields' names in upper case. Empty means not set."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True, hide_input_in_errors=True)

    # Databricks
    databricks_host: CommaSeparated = Field((), description="Workspace URL; several: comma-separated, then no token.")
    databricks_token: str = Field("", description="Personal access token; absent = service principal or identity.")
    databricks_client_id: str = Field("", description="Service principal for OAuth.")
    databricks_client_secret: str = Field("", description="Its secret.")
    databricks_timeout_seconds: int = Field(30, description="Longest wait for one answer of Databricks.")
    databricks_retry_seconds: int = Field(60, description="Longest time the SDK repeats a call by itself.")

    # Azure OpenAI
    azure_openai_endpoint: str = Field("", description="No endpoint = decisions by rules alone.")
    azure_openai_deployment: str = Field("", description="Name of the model deployment.")
    azure_openai_key: str = Field("", description="Absent = Entra identity.")
    azure_openai_timeout_seconds: int = Field(30, description="Longest wait for one answer of the model.")
    azure_openai_max_retries: int = Field(1, description="How often the SDK repeats a call by itself.")
    ai_tokens_per_day: int = Field(1_000_000, description="Then rules decide alone until midnight UTC.")
    ai_window_minutes: float = Field(60, description="The model is asked once per cause and window.")
    ai_mode: Literal["always", "unsure", "never"] = Field(
        "unsure", description="When the model is asked: always, unsure (the rules are not sure) or never."
    )

    # E-mail
    acs_endpoint: str = Field("", description="Azure Communication Services endpoint.")
    acs_access_key: str = Field("", description="Absent = Entra identity.")
    acs_timeout_seconds: int = Field(30, description="Longest wait for one answer of the e-mail service.")
    sender_email: str = Field("", description="Sender address; must belong to the e-mail service's domain.")
    escalation_emails: CommaSeparated = Field((), description="Who is told when no owner is known.")
    owners: JsonTable = Field(
        default_factory=dict, description="JSON: alias of the tag failure-agent-owner → addresses, comma-separated."
    )
    allowed_recipient_domains: CommaSeparated = Field((), description="Domains that an address on a job may have.")

    # Queues and history
    service_bus_connection: str = Field("", description="Connection string (local only).")
    service_bus_namespace: str = Field(
        "",
        validation_alias="SERVICE_BUS_CONNECTION__fullyQualifiedNamespace",
        description="Namespace host, for the Entra identity.",
    )
    tables_endpoint: str = Field("", description="Table service URL, for the Entra identity.")
    tables_connection_string: str = Field("", description="Connection string (local only).")
    table_prefix: str = Field("failureagent", description="Start of table names.")
    history_days: int = Field(400, description="Older closed incidents are deleted.")
    azure_client_id: str = Field("", description="Client id of the user-assigned identity.")

    # What it may do
    default_mode: Mode = Field(Mode.OBSERVE, description="off, observe, retry or full; a job's tag overrides it.")
    dry_run: bool = Field(False, description="Decide and record, but change nothing and mail nobody.")
    job_ids: CommaSeparated = Field((), description="Only these jobs; empty = all that the identity may see.")
    job_tags: JsonTable = Field(default_factory=dict, description="JSON: only jobs that carry all these tags.")
    max_retry_attempts: int = Field(3, description="Retries per incident.")
    retry_with_params_attempts: int = Field(2, description="Of these, at most so many with changes.")
    max_node_memory_gb: float = Field(256, description="No retry uses machines with more memory.")
    max_workers: int = Field(32, description="No retry uses more workers.")
    max_timeout_hours: float = Field(24, description="No retry is given more time.")
    max_cost_factor: float = Field(4, description="No retry is priced higher than so many times the run.")
    max_failure_age_hours: float = Field(6, description="Older failures are mailed, never repaired.")

    # Safe when everything fails at once
    retry_budget_share: float = Field(0.1, description="Retries per runs that ended in the window.")
    retry_budget_floor: int = Field(5, description="Retries per window that are always allowed.")
    retry_budget_window_minutes: float = Field(60, description="The window of the retry budget.")
    max_concurrent_retries: int = Field(5, description="Retries under way at once, per workspace.")
    slot_wait_seconds: float = Field(60, description="Wait for a free slot before asking again.")
    retries_per_job_and_day: int = Field(10, description="Retries of one job within a day.")
    retry_hours_per_day: float = Field(100, description="Hours of retried runs, times their price factor, a day.")
    breaker_failures: int = Field(10, description="Failures of one cause that open its breaker.")
    breaker_window_minutes: float = Field(5, description="… within so many minutes.")
    breaker_failed_retries: int = Field(3, description="Failed retries of one cause that open its breaker.")
    canary_interval_minutes: float = Field(10, description="One retry of an open breaker's cause per interval.")
    canary_attempts: int = Field(3, description="So many such retries; then people decide.")
    mails_at_once_per_hour: int = Field(4, description="Mails of their own per hour; the rest goes into digests.")
    group_wait_seconds: float = Field(30, description="From the first gathered failure to its digest.")
    digest_interval_minutes: float = Field(15, description="At most one digest per interval.")
    mail_repeat_hours: float = Field(4, description="After so long a cause is mailed at once again.")

    # When
    find_failures_schedule: str = Field(schedules.FIND_FAILURES, description="NCRONTAB, UTC.")
    follow_up_schedule: str = Field(schedules.FOLLOW_UP, description="NCRONTAB, UTC.")
    audit_schedule: str = Field(schedules.AUDIT, description="NCRONTAB, UTC.")
    backoff_base_seconds: float = Field(30, description="First retry waits up to this long; it doubles.")
    backoff_cap_seconds: float = Field(900, description="Longest wait before a retry.")
    defer_base_seconds: float = Field(60, description="First wait when a service cannot answer; it doubles.")
    defer_cap_seconds: float = Field(900, description="Longest such wait.")
    defer_give_up_hours: float = Field(24, description="After so long the incident is parked and mailed.")
    invocation_seconds: float = Field(
        240, description="A function stops by itself after so long; the host ends it after 600."
    )
    claim_settle_seconds: float = Field(60, description="So long an unanswered write may still arrive.")
    pause_check_seconds: float = Field(300, description="How often held messages look whether they may go on.")
    stale_after_minutes: float = Field(30, description="An incident this late is sent again.")
    overlap_seconds: float = Field(120, description="Overlap of two detection ticks.")
    sweep_interval_minutes: float = Field(60, description="How often old incidents are looked at again.")
    sweep_days: float = Field(7, description="For how long.")
    monitor_window_minutes: float = Field(30, description="One pass without queues handles runs that ended in it.")
    monitor_lookback_hours: float = Field(24, description="Such runs may have started so long before it.")

    @field_validator("*", mode="before")
    @classmethod
    def read(cls, value: object, info: ValidationInfo) -> object:
        assert info.field_name
        return setting_values.read(environment_name(info.field_name), value)

    @property
    def overlap(self) -> timedelta:
        return timedelta(seconds=self.overlap_seconds)

    def require(self, *alternatives: tuple[str, ...]) -> None:
        """Raise one ConfigurationError that names every missing setting.

        Each argument is a group of field names of which at least one must be set.
        """
        missing = [group for group in alternatives if not any(getattr(self, name) for name in group)]
        if missing:
            names = tuple(" or ".join(environment_name(name) for name in group) for group in missing)
            raise ConfigurationError(setting_values.missing_text(names), names=names)


def environment_name(field: str) -> str:
    """The environment variable of a field."""
    alias = Settings.model_fields[field].validation_alias
    return alias if isinstance(alias, str) else field.upper()


def load_settings(env_file: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Settings from the environment (and the file, which the environment overrides); `overrides` (by field) win.

    Raises ConfigurationError naming every setting that is wrong.
    """
    try:
        return Settings(_env_file=env_file, **(overrides or {}))
    except ValidationError as error:
        problems = {problem_name(details["loc"][0]): problem_text(details) for details in error.errors()}
        raise ConfigurationError(setting_values.wrong_text(problems), names=tuple(problems)) from None


def problem_name(location: int | str) -> str:
    """The environment variable; pydantic names a field with an alias by that."""
    name = str(location)
    return environment_name(name) if name in Settings.model_fields else name


def problem_text(details: "ErrorDetails") -> str:
    """What is wrong, without the value, which our own words never show."""
    return str(details["ctx"]["error"]) if details["type"] == "value_error" else details["msg"]
