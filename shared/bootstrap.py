"""The composition root: it alone reads settings and builds clients. Light to import; the rest comes on first use."""

import logging
import os
import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from shared import schedules, setting_values

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shared.auditing import Auditing
    from shared.azure_openai_client import AzureOpenAIClient
    from shared.checking import Connection
    from shared.databricks_agent import DatabricksAgent
    from shared.databricks_connector import DatabricksConnector
    from shared.decision_history import TableDecisionHistory
    from shared.delivery import MessageDelivery
    from shared.error_decision_engine import ErrorDecisionEngine
    from shared.past_runs import PastRuns
    from shared.ports import DecisionHistory
    from shared.settings import Settings
    from shared.timers import Timers

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

WHERE_TO_SET = (
    "Set them as app settings of the function app: by the parameters of infra/ (those set in the portal last until the "
    "next azd provision), on this machine under Values in local.settings.json."
)

SET_BY_HOSTS = ("WEBSITE_SITE_NAME", "AZURE_FUNCTIONS_ENVIRONMENT")
"""One of these is set wherever a Functions host runs the app: in Azure, by Core Tools and by the local host."""


@dataclass(frozen=True, slots=True)
class Services:
    """What the functions call."""

    agent: "DatabricksAgent"
    delivery: "MessageDelivery"
    timers: "Timers"
    auditing: "Auditing"
    runs: "DatabricksConnector"
    history: "DecisionHistory"
    settings: "Settings"


def schedule(name: str, default: str) -> str:
    """A timer's NCRONTAB: the environment variable, or the default."""
    return os.environ.get(name) or default


def find_failures_schedule() -> str:
    return schedule("FIND_FAILURES_SCHEDULE", schedules.FIND_FAILURES)


def follow_up_schedule() -> str:
    return schedule("FOLLOW_UP_SCHEDULE", schedules.FOLLOW_UP)


def audit_schedule() -> str:
    return schedule("AUDIT_SCHEDULE", schedules.AUDIT)


def check_settings() -> None:
    """Raise ConfigurationError naming every setting of the environment that is missing or wrong, in one message."""
    from shared.errors import ConfigurationError

    values = setting_values.given(os.environ)
    missing = tuple(" or ".join(group) for group in REQUIRED_BY_APP if not any(name in values for name in group))
    wrong = setting_values.wrong(values)
    clashes = setting_values.clashes(values)
    problems = [setting_values.missing_text(missing)] if missing else []
    problems += [setting_values.wrong_text(wrong)] if wrong else []
    problems += [clash.text for clash in clashes]
    if problems:
        names = (*missing, *wrong, *(name for clash in clashes for name in clash.names))
        raise ConfigurationError(f"{'. '.join(problems)}. {WHERE_TO_SET}", names=names)


def report_at_start() -> None:
    """Stop the app, while a host is indexing it, with one message that names every setting that is missing or wrong.

    Raises ConfigurationError. Where no host is about to run the app (it is only being looked at), it is logged.
    """
    from shared.errors import ConfigurationError

    if unused := [name for name in NO_LONGER_USED if os.environ.get(name)]:
        logger.warning("no longer used, mail goes through ACS_ENDPOINT: %s", ", ".join(unused))
    try:
        check_settings()
    except ConfigurationError as error:
        if any(os.environ.get(name) for name in SET_BY_HOSTS):
            raise
        logger.error("%s", error)  # noqa: TRY400 - the message is all there is to say


def current_settings(env_file: Path | None = None) -> "Settings":
    """Settings as the environment has them now. Raises ConfigurationError naming every wrong one."""
    from shared.settings import load_settings

    return load_settings(env_file)


def services() -> Services:
    """The function app's parts, built once. Raises ConfigurationError that names every missing or wrong setting."""
    with _lock:
        return _services()


@cache
def _services() -> Services:
    check_settings()
    _import_what_cannot_be_imported_twice_at_once()
    return build(current_settings())


def _import_what_cannot_be_imported_twice_at_once() -> None:
    """Modules of azure-core import each other in a circle. Two threads of a cold worker that are the first to want two
    of them may each wait for the other: Python then lets one go on with half a module, and its step fails.
    """
    import azure.core.pipeline.policies
    import azure.core.pipeline.transport
    import azure.core.rest  # noqa: F401


def build(settings: "Settings") -> Services:
    """All parts for the given settings; clients connect on first use."""
    from shared.action_queues import ServiceBusActionQueues
    from shared.auditing import Auditing
    from shared.databricks_agent import DatabricksAgent, new_guid, utc_now
    from shared.databricks_connector import DatabricksConnector
    from shared.decision_history import TableDecisionHistory
    from shared.delivery import MessageDelivery
    from shared.email_notifier import EmailNotifier
    from shared.error_decision_engine import ErrorDecisionEngine
    from shared.learning import Learning
    from shared.timers import Timers

    history = TableDecisionHistory(settings)
    queues = ServiceBusActionQueues(settings)
    openai = openai_client(settings)
    learning = Learning(history, settings, utc_now, new_guid)
    runs = DatabricksConnector(settings)
    agent = DatabricksAgent(
        openai,
        runs,
        EmailNotifier(settings),
        ErrorDecisionEngine(openai, settings=settings, learning=learning),
        settings=settings,
        history=history,
        queues=queues,
    )
    delivery = MessageDelivery(agent, queues=queues, history=history, settings=settings)
    auditing = Auditing(runs, history, settings, utc_now)
    return Services(agent, delivery, Timers(agent, auditing, settings), auditing, runs, history, settings)


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


def past_runs(settings: "Settings") -> "PastRuns":
    """Runs that ended in the last weeks, read only."""
    from shared.past_runs import PastRuns

    return PastRuns(settings)


def history(settings: "Settings") -> "TableDecisionHistory":
    """The history alone."""
    from shared.decision_history import TableDecisionHistory

    return TableDecisionHistory(settings)


def workspaces(settings: "Settings") -> tuple[str, ...]:
    """The workspaces' short names, as used in the history."""
    from shared.databricks_connector import DatabricksConnector

    return DatabricksConnector(settings).workspaces


def connections(
    settings: "Settings", progress: "Callable[[str], object]", *, in_the_app: bool = False
) -> "Iterator[Connection]":
    """Every connection of the function app; `progress` is told how far an attempt of many calls is.

    `in_the_app` says that they are tried with the app's own identity, and not as whoever sits at a desk.
    """
    from contextlib import closing

    from shared import role_commands
    from shared.action_queues import ServiceBusActionQueues
    from shared.checking import Connection
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
        with closing(ServiceBusActionQueues(settings)) as opened:
            opened.check(QUEUES)
        return f"queues {', '.join(QUEUES)}"

    def tables() -> str:
        settings.require(("tables_endpoint", "tables_connection_string"))
        pause = history(settings).read_pause()
        return f"paused by {pause.by or 'somebody'}: {pause.why or 'no reason given'}" if pause.paused else "not paused"

    def email() -> str:
        settings.require(("acs_endpoint",), ("sender_email",), ("escalation_emails",))
        EmailNotifier(settings).check()
        return f"sender {settings.sender_email} (only a mail shows whether it is linked)"

    def model() -> str:
        client = openai_client(settings)
        if client is None or (settings.ai_mode == "never" and not settings.azure_openai_deployment):
            return "none configured: rules decide alone"
        client.check()
        return f"deployment {settings.azure_openai_deployment}"

    refused = role_commands.databricks_sign_in(settings)
    unreachable = role_commands.databricks_unreachable(settings)
    yield Connection("Databricks", databricks, refused, unreachable)
    for name, attempt in rights_attempts(settings, progress):
        yield Connection(name, attempt, refused, unreachable)
    for name, attempt, service in (
        ("Service Bus", queues, role_commands.SERVICE_BUS),
        ("Tables", tables, role_commands.TABLES),
        ("E-mail", email, role_commands.EMAIL),
        ("Azure OpenAI", model, role_commands.MODEL),
    ):
        assignments = role_commands.role_assignments(service, settings, in_the_app=in_the_app)
        yield Connection(name, attempt, assignments, role_commands.unreachable(service, settings))


def rights_attempts(
    settings: "Settings", progress: "Callable[[str], object]"
) -> "Iterator[tuple[str, Callable[[], str]]]":
    """For each workspace a name and what asks it for our rights; none where the settings do not let us sign in."""
    import time
    from functools import partial

    from shared.databricks_api import WorkspaceApi, check_access
    from shared.databricks_rights import check_rights
    from shared.errors import ConfigurationError

    try:
        check_access(settings)
    except ConfigurationError:
        return  # the attempt to connect to Databricks says so
    for host in settings.databricks_host:
        api = WorkspaceApi(host, settings, None, time)
        name = "Databricks rights" if len(settings.databricks_host) == 1 else f"Databricks rights in {api.name}"
        yield name, partial(check_rights, api, settings, progress)


CHECK_SECONDS = 180
"""Azure's front end ends a request without an answer after 230 seconds (Azure Functions, "timeout duration")."""


def check() -> dict[str, object]:
    """What the app reaches with its own identity: `checks`, each as `agent check` shows it.

    Without the settings that it needs, `problem`. Changes nothing and sends nothing.
    """
    from shared.checking import results_within
    from shared.errors import ConfigurationError

    try:
        settings = services().settings
    except ConfigurationError as error:
        return {"ok": False, "problem": str(error)}
    results = results_within(CHECK_SECONDS, connections(settings, lambda _: None, in_the_app=True))
    return {"checks": [result.shown() for result in results]}


HEALTH_SECONDS = 20
"""Whoever asks for the app's health does not wait longer."""


def health() -> dict[str, object]:
    """Whether the app is set up and may act. Anybody may ask, so nothing in it names a workspace or a resource.

    `audited_at` = when all workspaces had been audited last; None while one was not within two days.
    """
    from shared import deadline
    from shared.errors import AgentError, ConfigurationError

    try:
        parts = services()
        with deadline.within(HEALTH_SECONDS):
            pause = parts.history.read_pause()
            audits = [parts.auditing.latest(workspace) for workspace in parts.runs.workspaces]
    except ConfigurationError as error:
        return {"ok": False, "problem": str(error)}  # names of settings
    except AgentError as error:
        return {"ok": False, "problem": f"{type(error).__name__}: the log says more, and so does `agent check`"}
    return {
        "ok": True,
        "paused": pause.paused,
        "mode": str(parts.settings.default_mode),
        "dry_run": parts.settings.dry_run,
        "workspaces": len(audits),
        "audited_at": min(audit.at.isoformat() for audit in audits if audit) if all(audits) else None,
    }
