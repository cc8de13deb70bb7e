"""Logging of the host process: one handler on the root logger, one JSON object per line on standard error.

Every record made during an invocation carries the invocation's id and the function's name, whether it comes from a
coroutine (a context variable) or from the worker library's thread pool (the library's own variable, set only there).
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime

_current_invocation: ContextVar[str | None] = ContextVar("current_invocation", default=None)
_running: dict[
    str, str
] = {}  # function name by invocation id; both are needed on threads, which have no context of ours
_STANDARD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


@contextmanager
def invocation_scope(invocation_id: str, function_name: str) -> Iterator[None]:
    """Mark everything logged inside as belonging to this invocation."""
    token = _current_invocation.set(invocation_id)
    _running[invocation_id] = function_name
    try:
        yield
    finally:
        del _running[invocation_id]
        _current_invocation.reset(token)


class JsonLines(logging.Formatter):
    """Formats a record as one JSON object: time, level, logger, message, invocation, then its extra fields."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line; a value that JSON does not know is written as text."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        invocation_id = _current_invocation.get() or _worker_thread_invocation()
        if invocation_id:
            line |= {"invocation_id": invocation_id, "function": _running.get(invocation_id)}
        line |= {name: value for name, value in vars(record).items() if name not in _STANDARD_FIELDS}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


def _worker_thread_invocation() -> str | None:
    # Not imported: this module is loaded before the time that importing the worker library takes is measured.
    executor = sys.modules.get("azure_functions_runtime.utils.executor")
    return executor.invocation_id_cv.get() if executor else None


def configure_logging(level: str) -> None:
    """Install the handler. The libraries' own chatter is shown from WARNING on, the Service Bus client's from ERROR on.

    The client logs every reconnect several times; the host says once that a queue was lost and once that it is back.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name, least in {
        "azure": logging.WARNING,
        "azure.servicebus": logging.ERROR,
        "aiohttp.access": logging.WARNING,
    }.items():
        logging.getLogger(name).setLevel(max(least, logging.getLogger().level))
