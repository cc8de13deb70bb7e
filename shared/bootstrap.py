"""The composition root: it alone reads settings and builds clients. Light to import; the rest comes on first use."""

import logging
import os
import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from shared import schedules

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shared.azure_openai_client import AzureOpenAIClient
    from shared.databricks_agent import DatabricksAgent
    from shared.databricks_connector import DatabricksConnector
    from shared.decision_history import TableDecisionHistory
    from shared.delivery import MessageDelivery
    from shared.error_decision_engine import ErrorDecisionEngine
    from shared.ports import DecisionHistory
    from shared.settings import Settings

logger = logging.getLogger(__name__)

_lock = threading.Lock()

REQUIRED_BY_APP: tuple[tuple[str, ...], ...] = (
    ("DATABRICKS_HOST",),
    ("SERVICE_BUS_CONNECTION", "SERVICE_BUS_CONNECTION__fullyQualifiedNamespace"),
    ("TABLES_ENDPOINT", "TABLES_CONNECTION_STRING"),
    ("ACS_ENDPOINT",),
    ("SENDER_EMAIL",),
    ("ESCALATION_EMAILS",),
)
"""Groups of settings without which the function app cannot do its work; one of each group must be set."""

NO_LONGER_USED = ("SMTP_SERVER", "SENDER_PASSWORD")


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


def missing_settings() -> tuple[str, ...]:
    """The settings that the function app lacks, alternatives joined by `or`. Reads the environment alone."""
    return tuple(" or ".join(group) for group in REQUIRED_BY_APP if not any(os.environ.get(name) for name in group))


def report_at_start() -> None:
    """Say in the log, while the app is indexed, what will not work, so that nobody has to wait for a failure."""
    if missing := missing_settings():
        logger.error("missing settings: %s", "; ".join(missing))
    if unused := [name for name in NO_LONGER_USED if os.environ.get(name)]:
        logger.warning("no longer used, mail goes through ACS_ENDPOINT: %s", ", ".join(unused))


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
    from shared.errors import ConfigurationError

    if missing := missing_settings():
        raise ConfigurationError(f"missing settings: {'; '.join(missing)}", names=missing)
    return build(current_settings())


def build(settings: "Settings") -> Services:
    """All parts for the given settings; clients connect on first use."""
    from shared.action_queues import ServiceBusActionQueues
    from shared.databricks_agent import DatabricksAgent, new_guid, utc_now
    from shared.databricks_connector import DatabricksConnector
    from shared.decision_history import TableDecisionHistory
    from shared.delivery import MessageDelivery
    from shared.email_notifier import EmailNotifier
    from shared.error_decision_engine import ErrorDecisionEngine
    from shared.learning import Learning

    history = TableDecisionHistory(settings)
    queues = ServiceBusActionQueues(settings)
    openai = openai_client(settings)
    learning = Learning(history, settings, utc_now, new_guid)
    agent = DatabricksAgent(
        openai,
        DatabricksConnector(settings),
        EmailNotifier(settings),
        ErrorDecisionEngine(openai, settings=settings, learning=learning),
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


@dataclass(frozen=True, slots=True)
class Monitor:
    """An agent for one process without queues or tables, and the connector whose calls it makes."""

    agent: "DatabricksAgent"
    runs: "DatabricksConnector"


def monitor(settings: "Settings") -> Monitor:
    """The parts for `DatabricksAgent.monitor_jobs`."""
    from shared.databricks_agent import DatabricksAgent
    from shared.databricks_connector import DatabricksConnector
    from shared.email_notifier import EmailNotifier

    runs = DatabricksConnector(settings)
    agent = DatabricksAgent(openai_client(settings), runs, EmailNotifier(settings), engine(settings), settings=settings)
    return Monitor(agent, runs)


def engine(settings: "Settings") -> "ErrorDecisionEngine":
    """The engine alone, with the model where one is configured."""
    from shared.error_decision_engine import ErrorDecisionEngine

    return ErrorDecisionEngine(openai_client(settings), settings=settings)


def history(settings: "Settings") -> "TableDecisionHistory":
    """The history alone."""
    from shared.decision_history import TableDecisionHistory

    return TableDecisionHistory(settings)


def workspaces(settings: "Settings") -> tuple[str, ...]:
    """The workspaces' short names, as used in the history."""
    from shared.databricks_connector import DatabricksConnector

    return DatabricksConnector(settings).workspaces


def connections(settings: "Settings") -> "Iterator[tuple[str, Callable[[], str], str]]":
    """Name, attempt and advice for every connection of the function app. An attempt says what it found, or raises."""
    from shared.action_queues import ServiceBusActionQueues
    from shared.databricks_connector import DatabricksConnector
    from shared.email_notifier import EmailNotifier
    from shared.messages import QUEUES

    def databricks() -> str:
        settings.require(("databricks_host",))
        runs = DatabricksConnector(settings)
        counts = [f"{workspace}: {len(runs.active_runs(workspace))} active runs" for workspace in runs.workspaces]
        return "; ".join(counts)

    def queues() -> str:
        settings.require(("service_bus_connection", "service_bus_namespace"))
        ServiceBusActionQueues(settings).check(QUEUES)
        return f"queues {', '.join(QUEUES)}"

    def tables() -> str:
        settings.require(("tables_endpoint", "tables_connection_string"))
        return "paused" if history(settings).read_pause().paused else "not paused"

    def email() -> str:
        settings.require(("acs_endpoint",), ("sender_email",), ("escalation_emails",))
        EmailNotifier(settings).check()
        return f"sender {settings.sender_email}"

    def model() -> str:
        client = openai_client(settings)
        if client is None:
            return "none configured: rules decide alone"
        client.check()
        return f"deployment {settings.azure_openai_deployment}"

    yield "Databricks", databricks, "check DATABRICKS_HOST, and that the identity may view the jobs"
    yield "Service Bus", queues, "check the namespace, and that the identity is Data Sender and Data Receiver"
    yield "Tables", tables, "check the account, and that the identity is Storage Table Data Contributor"
    yield "E-mail", email, "check ACS_ENDPOINT and the sender's domain, and the identity's role"
    yield "Azure OpenAI", model, "check the endpoint and the deployment, and that the identity is OpenAI User"


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
