"""The app inside the official worker library: index it once, then invoke its functions."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import sys
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import azure_functions_runtime as runtime

from .configuration import HostError
from .functions import Function, read_functions
from .logs import invocation_scope
from .protocol import PROTOS, ParameterBinding, StatusResult, TypedData

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How an invocation ended: ``error`` is None on success, ``return_value`` what the function returned."""

    error: str | None
    return_value: TypedData | None

    @property
    def succeeded(self) -> bool:
        """Whether the function returned without raising."""
        return self.error is None


async def index_app(app_folder: Path) -> list[Function]:
    """Import the app and return its functions, as the worker does when the host starts it.

    Changes this process for good: working directory, ``sys.path`` (app folder last, as in Azure, where installed
    packages are searched first) and the runtime's own index. Raises HostError if the app cannot be indexed or has no
    function.
    """
    folder = app_folder.resolve()
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != folder] + [str(folder)]
    script = os.environ.get("PYTHON_SCRIPT_FILE_NAME", "function_app.py")
    _check_script(folder, script)
    os.chdir(folder)
    runtime.start_threadpool_executor()  # reads PYTHON_THREADPOOL_THREAD_COUNT now, so settings must be in place
    request = SimpleNamespace(function_app_directory=str(folder), capabilities={})
    properties = {"protos": PROTOS, "host": "127.0.0.1"}
    answer = await runtime.worker_init_request(
        SimpleNamespace(request=SimpleNamespace(worker_init_request=request), properties=properties)
    )
    if answer.result.status != StatusResult.Success:
        failure = answer.result.exception
        raise HostError(f"{script} cannot be indexed. {failure.message}\n{failure.stack_trace}")
    answer = await runtime.functions_metadata_request(None)
    return read_functions(answer.function_metadata_results)


def _check_script(folder: Path, script: str) -> None:
    # The runtime imports the script by its bare name and reports an absent one as success with no functions.
    if not (folder / script).is_file():
        raise HostError(f"No {script} in {folder}. Point --app at the folder of the function app.")
    found = importlib.util.find_spec(Path(script).stem)
    if found is None or found.origin is None or Path(found.origin).resolve() != folder / script:
        raise HostError(
            f"{script} is hidden by {found and found.origin}, which comes earlier on sys.path. Remove that."
        )


async def invoke(
    function: Function, data: TypedData, metadata: Mapping[str, TypedData], timeout: timedelta | None = None
) -> Outcome:
    """Call a function once and log how it went. Never raises: whatever the function raises becomes a failed Outcome.

    ``timeout`` is host.json's functionTimeout. The real host kills the worker process when it passes; here it is only
    logged. Cancelling this call ends it as failed; a function that runs in a thread goes on, its result is dropped.
    """
    invocation_id = str(uuid.uuid4())
    request = SimpleNamespace(
        invocation_id=invocation_id,
        function_id=function.function_id,
        input_data=[ParameterBinding(name=function.parameter, data=data)],
        trigger_metadata=metadata,
        trace_context=SimpleNamespace(trace_parent="", trace_state="", attributes={}),
        retry_context=SimpleNamespace(retry_count=0, max_retry_count=0, exception=None),
    )
    started = time.perf_counter()
    with invocation_scope(invocation_id, function.name):
        overdue = _warn_when_overdue(timeout)
        try:
            answer = await runtime.invocation_request(
                SimpleNamespace(request=SimpleNamespace(invocation_request=request), properties={})
            )
        except BaseException as escaped:  # noqa: BLE001 - SystemExit and CancelledError of one function must not end the host
            outcome, trace = Outcome(f"{type(escaped).__name__}: {escaped}", None), ""
        else:
            failure = answer.result.exception
            outcome = Outcome(failure and failure.message, getattr(answer, "return_value", None))
            trace = failure.stack_trace if failure else ""
        finally:
            if overdue:
                overdue.cancel()
        _log_outcome(function, outcome, trace, round((time.perf_counter() - started) * 1000, 1))
    return outcome


def _warn_when_overdue(timeout: timedelta | None) -> asyncio.TimerHandle | None:
    if timeout is None:
        return None
    text = "Passed functionTimeout of %s; Azure would restart the worker now and end every call in flight"
    return asyncio.get_running_loop().call_later(timeout.total_seconds(), log.warning, text, timeout)


def _log_outcome(function: Function, outcome: Outcome, trace: str, duration_ms: float) -> None:
    if outcome.succeeded:
        log.info("Executed %s", function.name, extra={"succeeded": True, "duration_ms": duration_ms})
        return
    extra = {"succeeded": False, "duration_ms": duration_ms, "error": outcome.error, "stack_trace": trace}
    log.error("Executed %s: failed", function.name, extra=extra)
