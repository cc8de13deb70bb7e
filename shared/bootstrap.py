"""The composition root: it alone reads settings and builds clients. Light to import; the rest comes on first use."""

import os
import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from shared import schedules

if TYPE_CHECKING:
    from shared.azure_openai_client import AzureOpenAIClient
    from shared.databricks_agent import DatabricksAgent
    from shared.delivery import MessageDelivery
    from shared.ports import DecisionHistory
    from shared.settings import Settings

_lock = threading.Lock()

REQUIRED_BY_APP: tuple[tuple[str, ...], ...] = (
    ("databricks_host",),
    ("service_bus_connection", "service_bus_namespace"),
    ("tables_endpoint", "tables_connection_string"),
    ("acs_endpoint",),
    ("sender_email",),
    ("escalation_emails",),
)
"""Groups of settings without which the function app cannot do its work; one of each group must be set."""


@dataclass(frozen=True, slots=True)
class Services:
    """What the functions call."""

    agent: "DatabricksAgent"
    delivery: "MessageDelivery"
    history: "DecisionHistory"
    settings: "Settings"


def schedule(name: str, default: str) -> str:
    """A timer's NCRONTAB: the environment variable, or the default."""
    return os.environ.get(name) or default


def find_failures_schedule() -> str:
    return schedule("FIND_FAILURES_SCHEDULE", schedules.FIND_FAILURES)


def follow_up_schedule() -> str:
    return schedule("FOLLOW_UP_SCHEDULE", schedules.FOLLOW_UP)


def current_settings(env_file: Path | None = None) -> "Settings":
    """Settings as the environment has them now. Raises ConfigurationError naming every wrong one."""
    from shared.settings import load_settings

    return load_settings(env_file)


def services() -> Services:
    """The function app's parts, built once. Raises ConfigurationError that names every missing setting."""
    with _lock:
        return _services()


@cache
def _services() -> Services:
    settings = current_settings()
    settings.require(*REQUIRED_BY_APP)
    return build(settings)


def build(settings: "Settings") -> Services:
    """All parts for the given settings; clients connect on first use."""
    from shared.action_queues import ServiceBusActionQueues
    from shared.databricks_agent import DatabricksAgent
    from shared.databricks_connector import DatabricksConnector
    from shared.decision_history import TableDecisionHistory
    from shared.delivery import MessageDelivery
    from shared.email_notifier import EmailNotifier
    from shared.error_decision_engine import ErrorDecisionEngine

    history = TableDecisionHistory(settings)
    queues = ServiceBusActionQueues(settings)
    openai = openai_client(settings)
    agent = DatabricksAgent(
        openai,
        DatabricksConnector(settings),
        EmailNotifier(settings),
        ErrorDecisionEngine(openai, settings=settings),
        settings=settings,
        history=history,
        queues=queues,
    )
    delivery = MessageDelivery(agent, queues=queues, history=history, settings=settings)
    return Services(agent, delivery, history, settings)


def openai_client(settings: "Settings") -> "AzureOpenAIClient | None":
    """The model's client, or None where none is configured: rules then decide alone."""
    from shared.azure_openai_client import AzureOpenAIClient

    return AzureOpenAIClient(settings) if settings.azure_openai_endpoint else None


def monitor(settings: "Settings") -> "DatabricksAgent":
    """An agent for one process without queues or tables: `DatabricksAgent.monitor_jobs`."""
    from shared.databricks_agent import DatabricksAgent
    from shared.databricks_connector import DatabricksConnector
    from shared.email_notifier import EmailNotifier
    from shared.error_decision_engine import ErrorDecisionEngine

    openai = openai_client(settings)
    return DatabricksAgent(
        openai,
        DatabricksConnector(settings),
        EmailNotifier(settings),
        ErrorDecisionEngine(openai, settings=settings),
        settings=settings,
    )


def health() -> dict[str, object]:
    """Whether the app is set up and may act; what is wrong is named, values never are."""
    from shared.errors import AgentError

    try:
        parts = services()
        pause = parts.history.read_pause()
    except AgentError as error:
        return {"ok": False, "problem": str(error)}
    return {
        "ok": True,
        "paused": pause.paused,
        "mode": str(parts.settings.default_mode),
        "dry_run": parts.settings.dry_run,
        "workspaces": len(parts.settings.databricks_host),
    }
