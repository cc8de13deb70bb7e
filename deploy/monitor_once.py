"""One pass of the agent without the function app: as a task of a Databricks job, in a container, or from cron.

    python deploy/monitor_once.py --window-minutes 30 --setting DATABRICKS_HOST=https://… --secret-scope failure-agent

Settings are environment variables, as everywhere. `--setting NAME=VALUE` adds one; `--secret-scope` adds every key of a
Databricks secret scope whose name is a setting (only inside Databricks). The summary goes to standard output as JSON.
Exit codes: 0 done, 1 some runs could not be dealt with now, 2 settings or rights, 3 a service is unreachable.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

DONE, LEFT_OPEN, SETTINGS, UNREACHABLE = 0, 1, 2, 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one pass; the exit code."""
    asked = parse(arguments)
    make_importable()
    try:
        from shared import bootstrap
        from shared.errors import AgentError, ConfigurationError, NotAuthorisedError, TransientError
        from shared.settings import load_settings  # noqa: F401 - the first that needs an installed package
    except ModuleNotFoundError as error:
        sys.stderr.write(f"{error}. Install the packages first: pip install -r requirements.txt\n")
        return SETTINGS

    os.environ.update(asked.setting)
    if asked.secret_scope:
        os.environ.update(secrets_of(asked.secret_scope))
    try:
        settings = bootstrap.current_settings()
        settings.require(("databricks_host",))
        summary = bootstrap.monitor(settings).agent.monitor_jobs(
            job_ids=asked.job_id, window=timedelta(minutes=asked.window_minutes)
        )
    except AgentError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        if isinstance(error, ConfigurationError | NotAuthorisedError):
            return SETTINGS
        return UNREACHABLE if isinstance(error, TransientError) else LEFT_OPEN
    sys.stdout.write(json.dumps(summary, default=str) + "\n")
    return LEFT_OPEN if any("policy.unread" in run["rules"] for run in summary["runs"]) else DONE


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--window-minutes", type=float, default=30, help="look at runs that failed within so long")
    parser.add_argument("--job-id", type=int, action="append", help="only this job; may be given several times")
    parser.add_argument("--secret-scope", default="", help="a Databricks secret scope whose keys are settings")
    parser.add_argument("--setting", type=name_and_value, action="append", default=[], metavar="NAME=VALUE")
    return parser.parse_args(arguments)


def name_and_value(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def make_importable() -> None:
    """Let `shared` be found: a Databricks task starts anywhere, and may leave `__file__` unset."""
    here = Path(str(globals().get("__file__") or sys.argv[0])).resolve()
    root = next((folder for folder in here.parents if (folder / "shared" / "domain.py").exists()), None)
    if root is not None and str(root) not in sys.path:
        sys.path.append(str(root))


def secrets_of(scope: str) -> dict[str, str]:
    """The scope's secrets whose keys are names of settings."""
    from databricks.sdk.runtime import dbutils

    from shared.settings import Settings, environment_name

    wanted = {environment_name(field) for field in Settings.model_fields}
    return {
        found.key: dbutils.secrets.get(scope, found.key) for found in dbutils.secrets.list(scope) if found.key in wanted
    }


if __name__ == "__main__":
    code = main()
    if code:  # a Databricks task takes any SystemExit for a failure, that of success too
        sys.exit(code)
