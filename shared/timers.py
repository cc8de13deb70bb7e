"""The ticks of the timer functions: each with a deadline, a span, and a heartbeat once it has come to its end."""

from collections.abc import Callable

from shared import deadline, telemetry
from shared.auditing import Auditing
from shared.databricks_agent import DatabricksAgent
from shared.settings import Settings


class Timers:
    """Takes ticks to their steps. Every method raises what its step raises: the host logs it, the next tick comes.

    `host_traceparent` is the host's span of the invocation, if it has one.
    """

    def __init__(self, agent: DatabricksAgent, auditing: Auditing, settings: Settings) -> None:
        self._agent = agent
        self._auditing = auditing
        self._seconds = settings.invocation_seconds

    def find_failures(self, host_traceparent: str = "") -> None:
        self._tick("find_failures", self._agent.find_failures, host_traceparent)

    def follow_up(self, host_traceparent: str = "") -> None:
        self._tick("follow_up", self._agent.follow_up, host_traceparent)

    def audit(self, host_traceparent: str = "") -> None:
        self._tick("audit", self._auditing.audit, host_traceparent)

    def _tick(self, name: str, step: Callable[[], object], host_traceparent: str) -> None:
        with telemetry.step_of_timer(name, host_traceparent=host_traceparent), deadline.within(self._seconds):
            step()
        telemetry.beat(name)
