"""What configures the host: app settings (environment and local.settings.json) and host.json."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

_REFERENCE = re.compile(r"%([^%]+)%")
_TIME_SPAN = re.compile(r"(?:(\d+)\.)?(\d{1,2}):(\d{2}):(\d{2})")


class HostError(Exception):
    """The app or its configuration cannot be run; the message says what to change."""


@dataclass(frozen=True, kw_only=True)
class HostConfiguration:
    """The part of host.json that this host follows. ``function_timeout`` None means unbounded."""

    route_prefix: str = "api"
    max_concurrent_calls: int = 16  # per function, and in Azure per core
    prefetch_count: int = 0
    lock_renewal: timedelta = timedelta(minutes=5)
    auto_complete: bool = True
    function_timeout: timedelta | None = None


def apply_local_settings(app_folder: Path) -> None:
    """Add the Values of local.settings.json, if there is one, to the environment; what is set there already wins.

    Raises HostError if the file is encrypted, is not JSON or has a value that is not a string.
    """
    path = app_folder / "local.settings.json"
    if not path.exists():
        return
    document = _read_json_object(path)
    if document.get("IsEncrypted"):
        raise HostError(f"{path.name} is encrypted. Run `func settings decrypt` and start again.")
    values = document.get("Values", {})
    if not isinstance(values, dict):
        raise HostError(f'{path.name}: "Values" must be an object of strings.')
    for name, value in values.items():
        if not isinstance(value, str):
            raise HostError(f"{path.name}: the value of {name} must be a string. Put it in quotes.")
        os.environ.setdefault(name, value)


def read_host_json(app_folder: Path) -> HostConfiguration:
    """Read ``host.json``; what it does not name keeps the real host's default.

    Raises HostError if the file is missing, is not JSON, has not version 2.0 or holds a value of the wrong kind.
    """
    path = app_folder / "host.json"
    if not path.exists():
        raise HostError(f'No host.json in {app_folder}. Create one with {{"version": "2.0"}}.')
    document = _read_json_object(path)
    if document.get("version") != "2.0":
        raise HostError('host.json: "version" must be "2.0".')
    cores = os.cpu_count() or 1
    try:
        extensions = document.get("extensions", {})
        service_bus = extensions.get("serviceBus", {})
        return HostConfiguration(
            route_prefix=str(extensions.get("http", {}).get("routePrefix", "api")).strip("/"),
            max_concurrent_calls=int(service_bus.get("maxConcurrentCalls", 16 * cores)),
            prefetch_count=int(service_bus.get("prefetchCount", 0)),
            lock_renewal=parse_time_span(service_bus.get("maxAutoLockRenewalDuration", "00:05:00")),
            auto_complete=bool(service_bus.get("autoCompleteMessages", True)),
            function_timeout=_function_timeout(document.get("functionTimeout", "-1")),
        )
    except (AttributeError, TypeError, ValueError) as error:
        raise HostError(f"host.json has a value of the wrong kind: {error}") from error


def parse_time_span(text: str) -> timedelta:
    """Read a .NET TimeSpan, ``[d.]hh:mm:ss``. Raises ValueError for anything else."""
    match = _TIME_SPAN.fullmatch(text)
    if not match:
        raise ValueError(f"{text!r} is not a time span such as 00:05:00")
    days, hours, minutes, seconds = (int(group or 0) for group in match.groups())
    return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)


def _function_timeout(text: str) -> timedelta | None:
    return None if text == "-1" else parse_time_span(text)


def resolve_references(text: str, used_by: str) -> str:
    """Replace every ``%NAME%`` by the app setting of that name. Raises HostError naming a setting that is not there."""

    def value_of(match: re.Match[str]) -> str:
        return setting(match.group(1), used_by)

    return _REFERENCE.sub(value_of, text)


def setting(name: str, used_by: str) -> str:
    """Value of an app setting. Raises HostError if it is missing or empty."""
    value = os.environ.get(name)
    if not value:
        raise HostError(f"{used_by} needs the app setting {name}, which is not set. Add it to the environment.")
    return value


def is_disabled(function_name: str) -> bool:
    """Whether the setting ``AzureWebJobs.<function>.Disabled`` switches the function's trigger off."""
    return os.environ.get(f"AzureWebJobs.{function_name}.Disabled", "").lower() in {"1", "true"}


def _read_json_object(path: Path) -> Mapping[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise HostError(f"{path.name} is not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise HostError(f"{path.name} must hold a JSON object.")
    return document
