"""What the worker reports about an app, checked as the real host checks it and turned into typed functions.

The rules on names are those of azure-functions-host (Utility.cs, WorkerFunctionMetadataProvider.cs); what this host
cannot run is refused here with the reason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace

from .configuration import HostError, is_disabled

_FUNCTION_NAME = re.compile(r"[a-z][a-z0-9_\-]{0,127}", re.IGNORECASE)
_BINDING_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9]{0,127}|\$return")


@dataclass(frozen=True)
class TimerTrigger:
    """``schedule`` as written in the app, references unresolved."""

    schedule: str
    run_on_startup: bool


@dataclass(frozen=True)
class QueueTrigger:
    """``queue`` as written; ``connection`` names a setting; ``auto_complete`` None leaves it to host.json."""

    queue: str
    connection: str
    auto_complete: bool | None


@dataclass(frozen=True)
class HttpTrigger:
    """``methods`` upper case, empty means any; ``auth_level`` is ANONYMOUS, FUNCTION or ADMIN."""

    route: str
    methods: frozenset[str]
    auth_level: str


Trigger = TimerTrigger | QueueTrigger | HttpTrigger


@dataclass(frozen=True, eq=False)
class Function:
    """One function of the app, equal to itself only. ``parameter`` is the argument that gets the trigger's value."""

    name: str
    function_id: str
    parameter: str
    trigger: Trigger
    bindings: tuple[Mapping[str, object], ...]
    disabled: bool


def read_functions(metadata: Iterable[SimpleNamespace] | None) -> list[Function]:
    """Turn the worker's metadata into functions. Raises HostError for none at all, a bad name or a binding left out."""
    functions = [_read_function(entry) for entry in metadata or ()]
    if not functions:
        raise HostError("No functions found: the app registers none. Check the FunctionApp in function_app.py.")
    names = [function.name.lower() for function in functions]
    for function in functions:
        if names.count(function.name.lower()) > 1:
            raise HostError(f"Two functions are named {function.name} (case does not count). Rename one.")
    return functions


def _read_function(entry: SimpleNamespace) -> Function:
    name: str = entry.name
    if not _FUNCTION_NAME.fullmatch(name) or name.lower() == "host":
        raise HostError(
            f"{name!r} is no valid function name: a letter, then at most 127 letters, digits, _ or -; not 'host'."
        )
    bindings = tuple(json.loads(text) for text in entry.raw_bindings)
    names = [str(binding["name"]) for binding in bindings]
    for binding_name in names:
        if not _BINDING_NAME.fullmatch(binding_name):
            raise HostError(f"{name}: {binding_name!r} is no valid arg_name: letters and digits only, no underscore.")
        if names.count(binding_name) > 1:
            raise HostError(f"{name}: two bindings are named {binding_name!r}.")
    if entry.retry_options is not None:
        raise HostError(f"{name}: retry policies are not supported by the local host. Remove the decorator.")
    triggers = [binding for binding in bindings if str(binding["type"]).lower().endswith("trigger")]
    if len(triggers) != 1:
        raise HostError(f"{name}: a function has exactly one trigger, this one has {len(triggers)}.")
    for binding in bindings:
        if binding is not triggers[0] and (binding["type"], binding["direction"]) != ("http", "OUT"):
            raise HostError(
                f"{name}: the local host does not support the {binding['type']} binding {binding['name']!r}."
            )
    return Function(
        name=name,
        function_id=entry.function_id,
        parameter=triggers[0]["name"],
        trigger=_read_trigger(name, triggers[0]),
        bindings=bindings,
        disabled=is_disabled(name),
    )


def _read_trigger(name: str, binding: Mapping[str, object]) -> Trigger:
    match binding["type"]:
        case "timerTrigger":
            return TimerTrigger(str(binding["schedule"]), bool(binding.get("runOnStartup")))
        case "httpTrigger":
            methods = binding.get("methods") or ()
            assert isinstance(methods, list | tuple)
            return HttpTrigger(
                route=str(binding.get("route", name)).strip("/"),
                methods=frozenset(str(method).upper() for method in methods),
                auth_level=str(binding.get("authLevel") or "FUNCTION").upper(),
            )
        case "serviceBusTrigger" if "queueName" in binding:
            if str(binding.get("cardinality", "ONE")).upper() != "ONE" or binding.get("isSessionsEnabled"):
                raise HostError(f"{name}: the local host supports neither batches nor sessions. Use cardinality ONE.")
            auto_complete = binding.get("autoCompleteMessages")
            return QueueTrigger(
                queue=str(binding["queueName"]),
                connection=str(binding["connection"]),
                auto_complete=None if auto_complete is None else bool(auto_complete),
            )
        case unsupported:
            raise HostError(
                f"{name}: the local host does not support {unsupported}; timer, Service Bus queue and HTTP are."
            )
