"""`agent pause` and `agent resume`: stop all actions at once, and let them go on."""

import getpass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from agent.output import messages, print_json, reported_errors
from shared import bootstrap
from shared.domain import Pause


def pause(
    why: Annotated[str, typer.Option(help="Shown to whoever asks why nothing happens.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Stop all repairs and mails at once. Failures are still found and decided; their actions wait."""
    save(Pause(True, getpass.getuser(), why, datetime.now(UTC)), as_json=as_json)


def resume(as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False) -> None:
    """Let what was held by `pause` go on."""
    save(Pause(False, getpass.getuser(), "", datetime.now(UTC)), as_json=as_json)


def save(wanted: Pause, *, as_json: bool) -> None:
    with reported_errors(as_json=as_json):
        settings = bootstrap.current_settings(Path(".env"))
        settings.require(("tables_endpoint", "tables_connection_string"))
        bootstrap.history(settings).save_pause(wanted)
    if as_json:
        print_json({"paused": wanted.paused, "by": wanted.by, "why": wanted.why})
    else:
        messages.print("All actions are paused." if wanted.paused else "Actions go on.")
