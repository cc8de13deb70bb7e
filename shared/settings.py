"""Every setting of the app, with its default, unit (in the name) and meaning. Read by `bootstrap` only."""

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict, SettingsError

from shared import schedules
from shared.domain import Mode
from shared.errors import ConfigurationError

CommaSeparated = Annotated[tuple[str, ...], NoDecode]


class Settings(BaseSettings):
    """Environment variables have the fields' names in upper case. Empty means not set."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True, hide_input_in_errors=True)

    # Databricks
    databricks_host: CommaSeparated = Field((), description="Workspace URL; several: comma-separated, then no token.")
    databricks_token: str = Field("", description="Personal access token; absent = service principal or identity.")
    databricks_client_id: str = Field("", description="Service principal for OAuth.")
    databricks_client_secret: str = Field("", description="Its secret.")
    databricks_timeout_seconds: int = Field(30, ge=1, description="Longest wait for one answer of Databricks.")
    databricks_retry_seconds: int = Field(60, ge=1, description="Longest time the SDK repeats a call by itself.")

    # Azure OpenAI
    azure_openai_endpoint: str = Field("", description="No endpoint = decisions by rules alone.")
    azure_openai_deployment: str = Field("", description="Name of the model deployment.")
    azure_openai_key: str = Field("", description="Absent = Entra identity.")
    azure_openai_timeout_seconds: int = Field(30, ge=1, description="Longest wait for one answer of the model.")
    azure_openai_max_retries: int = Field(1, ge=0, le=5, description="How often the SDK repeats a call by itself.")
    ai_tokens_per_day: int = Field(1_000_000, ge=0, description="Then rules decide alone until midnight UTC.")
    ai_window_minutes: float = Field(60, gt=0, description="The model is asked once per cause and window.")
    ai_mode: Literal["always", "unsure", "never"] = Field(
        "unsure", description="When the model is asked: always, unsure (the rules are not sure) or never."
    )

    # E-mail
    acs_endpoint: str = Field("", description="Azure Communication Services endpoint.")
    acs_access_key: str = Field("", description="Absent = Entra identity.")
    acs_timeout_seconds: int = Field(30, ge=1, description="Longest wait for one answer of the e-mail service.")
    sender_email: str = Field("", description="Sender address; must belong to the e-mail service's domain.")
    escalation_emails: CommaSeparated = Field((), description="Who is told when no owner is known.")
    owners: dict[str, str] = Field(
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
    table_prefix: str = Field("failureagent", pattern=r"^[a-z][a-z0-9]{0,40}$", description="Start of table names.")
    history_days: int = Field(400, ge=60, description="Older closed incidents are deleted.")
    azure_client_id: str = Field("", description="Client id of the user-assigned identity.")

    # What it may do
    default_mode: Mode = Field(Mode.OBSERVE, description="off, observe, retry or full; a job's tag overrides it.")
    dry_run: bool = Field(False, description="Decide and record, but change nothing and mail nobody.")
    job_ids: CommaSeparated = Field((), description="Only these jobs; empty = all that the identity may see.")
    job_tags: dict[str, str] = Field(default_factory=dict, description="JSON: only jobs that carry all these tags.")
    max_retry_attempts: int = Field(3, ge=0, le=10, description="Retries per incident.")
    retry_with_params_attempts: int = Field(2, ge=0, le=10, description="Of these, at most so many with changes.")
    max_node_memory_gb: float = Field(256, gt=0, description="No retry uses machines with more memory.")
    max_workers: int = Field(32, ge=1, description="No retry uses more workers.")
    max_timeout_hours: float = Field(24, gt=0, description="No retry is given more time.")
    max_cost_factor: float = Field(4, ge=1, description="No retry is priced higher than so many times the run.")
    max_failure_age_hours: float = Field(6, gt=0, description="Older failures are mailed, never repaired.")

    # Safe when everything fails at once
    retry_budget_share: float = Field(0.1, ge=0, le=1, description="Retries per runs that ended in the window.")
    retry_budget_floor: int = Field(5, ge=0, description="Retries per window that are always allowed.")
    retry_budget_window_minutes: float = Field(60, gt=0, description="The window of the retry budget.")
    max_concurrent_retries: int = Field(5, ge=1, description="Retries under way at once, per workspace.")
    slot_wait_seconds: float = Field(60, gt=0, description="Wait for a free slot before asking again.")
    retries_per_job_and_day: int = Field(10, ge=0, description="Retries of one job within a day.")
    retry_hours_per_day: float = Field(100, ge=0, description="Hours of retried runs, times their price factor, a day.")
    breaker_failures: int = Field(10, ge=2, description="Failures of one cause that open its breaker.")
    breaker_window_minutes: float = Field(5, gt=0, description="… within so many minutes.")
    breaker_failed_retries: int = Field(3, ge=1, description="Failed retries of one cause that open its breaker.")
    canary_interval_minutes: float = Field(10, gt=0, description="One retry of an open breaker's cause per interval.")
    canary_attempts: int = Field(3, ge=1, description="So many such retries; then people decide.")
    mails_at_once_per_hour: int = Field(4, ge=0, description="Mails of their own per hour; the rest goes into digests.")
    group_wait_seconds: float = Field(30, ge=0, description="From the first gathered failure to its digest.")
    digest_interval_minutes: float = Field(15, gt=0, description="At most one digest per interval.")
    mail_repeat_hours: float = Field(4, gt=0, description="After so long a cause is mailed at once again.")

    # When
    find_failures_schedule: str = Field(schedules.FIND_FAILURES, description="NCRONTAB, UTC.")
    follow_up_schedule: str = Field(schedules.FOLLOW_UP, description="NCRONTAB, UTC.")
    audit_schedule: str = Field(schedules.AUDIT, description="NCRONTAB, UTC.")
    backoff_base_seconds: float = Field(30, gt=0, description="First retry waits up to this long; it doubles.")
    backoff_cap_seconds: float = Field(900, gt=0, description="Longest wait before a retry.")
    defer_base_seconds: float = Field(60, gt=0, description="First wait when a service cannot answer; it doubles.")
    defer_cap_seconds: float = Field(900, gt=0, description="Longest such wait.")
    defer_give_up_hours: float = Field(24, gt=0, description="After so long the incident is parked and mailed.")
    invocation_seconds: float = Field(
        240, ge=10, le=540, description="A function stops by itself after so long; the host ends it after 600."
    )
    claim_settle_seconds: float = Field(60, gt=0, description="So long an unanswered write may still arrive.")
    pause_check_seconds: float = Field(300, gt=0, description="How often held messages look whether they may go on.")
    stale_after_minutes: float = Field(30, gt=0, description="An incident this late is sent again.")
    overlap_seconds: float = Field(120, ge=0, description="Overlap of two detection ticks.")
    sweep_interval_minutes: float = Field(60, gt=0, description="How often old incidents are looked at again.")
    sweep_days: float = Field(7, gt=0, description="For how long.")
    monitor_window_minutes: float = Field(
        30, gt=0, description="One pass without queues handles runs that ended in it."
    )
    monitor_lookback_hours: float = Field(24, gt=0, description="Such runs may have started so long before it.")

    @field_validator("databricks_host", "escalation_emails", "allowed_recipient_domains", "job_ids", mode="before")
    @classmethod
    def split_at_commas(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("databricks_host", mode="after")
    @classmethod
    def complete_hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple((host if "://" in host else f"https://{host}").rstrip("/") for host in hosts)

    @field_validator("job_ids", mode="after")
    @classmethod
    def check_job_ids(cls, ids: tuple[str, ...]) -> tuple[str, ...]:
        if not all(part.isdigit() for part in ids):
            raise ValueError("job ids are numbers, comma-separated")
        return ids

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
            raise ConfigurationError(f"missing settings: {'; '.join(names)}", names=names)


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
    except SettingsError as error:  # a value that should be JSON and is not
        name = next((f for f in Settings.model_fields if f'"{f}"' in str(error)), "settings")
        raise ConfigurationError(f"wrong settings: {name.upper()}: not JSON", names=(name.upper(),)) from None
    except ValidationError as error:
        problems = {str(e["loc"][0]): e["msg"] for e in error.errors()}
        names = tuple(environment_name(name) if name in Settings.model_fields else name for name in problems)
        text = "; ".join(f"{n}: {message}" for n, message in zip(names, problems.values(), strict=True))
        raise ConfigurationError(f"wrong settings: {text}", names=names) from None
