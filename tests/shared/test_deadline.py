"""One deadline per invocation: what is left of it, who inherits it, and that every adapter keeps to it."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from shared import deadline
from shared.action_queues import ServiceBusActionQueues
from shared.azure_openai_client import AzureOpenAIClient
from shared.databricks_connector import DatabricksConnector
from shared.deadline import InheritingThreadPool, bound_azure_requests, bounded, within
from shared.decision_history import TableDecisionHistory
from shared.email_notifier import EmailNotifier
from shared.errors import TransientError
from shared.ports import OutgoingMessage
from shared.settings import Settings
from tests.builders import build_escalation_mail, build_evidence

SILENT_SECONDS = 4.0
"""An adapter whose timeouts are not shortened waits for at least so long."""


def test_without_a_deadline_a_call_gets_what_it_asks_for() -> None:
    assert bounded(30) == 30


def test_a_call_gets_what_is_left_shared_by_its_tries() -> None:
    with within(10):
        assert bounded(3) == 3
        assert 9 < bounded(30) <= 10
        assert 4.5 < bounded(30, tries=2) <= 5


@pytest.mark.parametrize("seconds", [-5, 0, 0.5])
def test_a_call_is_not_started_when_nothing_is_left(seconds: float) -> None:
    with within(seconds), pytest.raises(TransientError, match="not started"):
        bounded(30)
    assert bounded(30) == 30, "the next invocation has its own time"


def test_the_nearer_deadline_holds() -> None:
    with within(10):
        with within(100):
            assert bounded(30) <= 10
        with within(5):
            assert bounded(30) <= 5
        assert 9 < bounded(30) <= 10


def test_work_given_to_threads_is_under_the_deadline_of_the_giver() -> None:
    both_run = threading.Barrier(2, timeout=5)

    def left() -> float:
        both_run.wait()
        return bounded(30)

    with InheritingThreadPool(2) as pool:
        with within(10):
            short = [pool.submit(left), pool.submit(left)]
            assert all(9 < future.result() <= 10 for future in short)
        assert pool.submit(bounded, 30).result() == 30, "not under the one of an earlier giver"


def test_each_try_of_an_azure_client_gets_what_is_left() -> None:
    request = SimpleNamespace(context=SimpleNamespace(options={}))
    bound_azure_requests(10)(request)
    assert request.context.options == {"connection_timeout": 10, "read_timeout": 10}
    with within(5):
        bound_azure_requests(10)(request)
    assert max(request.context.options.values()) <= 5


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A service that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


# ── the adapters ────────────────────────────────────────────────────────────────────────────────────────────────────


def settings_at(port: int) -> Settings:
    """Every service at one port of this machine."""
    url = f"http://127.0.0.1:{port}"
    key = "c2VjcmV0"
    return Settings(
        databricks_host=(url,),
        databricks_token="token",
        databricks_timeout_seconds=60,
        azure_openai_endpoint=url,
        azure_openai_deployment="model",
        azure_openai_key="key",
        azure_openai_max_retries=0,
        acs_endpoint=url,
        acs_access_key=key,
        sender_email="agent@example.com",
        tables_connection_string=f"AccountName=a;AccountKey={key};TableEndpoint={url}/a;DefaultEndpointsProtocol=http",
        service_bus_connection=f"Endpoint=sb://127.0.0.1;SharedAccessKeyName=n;SharedAccessKey={key};"
        "UseDevelopmentEmulator=true",
    )


def read_databricks(settings: Settings) -> object:
    runs = DatabricksConnector(settings)
    return runs.read_state(runs.workspaces[0], 1)


def write_databricks(settings: Settings) -> object:
    runs = DatabricksConnector(settings)
    return runs.run_now(runs.workspaces[0], 1, token="token", job_parameters={})


def ask_model(settings: Settings) -> object:
    return AzureOpenAIClient(settings).diagnose(build_evidence(), facts={})


CALLS: dict[str, Callable[[Settings], object]] = {
    "Databricks, a read": read_databricks,
    "Databricks, a write": write_databricks,
    "Azure OpenAI": ask_model,
    "e-mail": lambda settings: EmailNotifier(settings).send(build_escalation_mail()),
    "tables": lambda settings: TableDecisionHistory(settings).read_pause(),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_an_adapter_waits_no_longer_than_the_deadline(call: Callable[[Settings], Any], silent_port: int) -> None:
    began = time.monotonic()
    with within(1.3), pytest.raises(TransientError):
        call(settings_at(silent_port))
    assert time.monotonic() - began < SILENT_SECONDS


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_an_adapter_starts_no_call_after_the_deadline(call: Callable[[Settings], Any], silent_port: int) -> None:
    with within(0), pytest.raises(TransientError, match="not started"):
        call(settings_at(silent_port))


def test_the_queues_start_no_send_after_the_deadline(silent_port: int) -> None:
    queues = ServiceBusActionQueues(settings_at(silent_port))
    with within(0), pytest.raises(TransientError, match="not started"):
        queues.send("retries", [OutgoingMessage("{}", "id")])
    assert deadline.bounded(1) == 1
