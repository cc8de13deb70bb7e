"""Run the stand-in: ``python -m local.databricks --port 18081 [--effects FILE] [--scenario FILE]``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from local.databricks.server import create_databricks_app
from local.http_standin import run_standin


def main() -> None:
    """Read the arguments and serve until a signal; prints ``READY <port>`` once connections are accepted."""
    parser = argparse.ArgumentParser(prog="python -m local.databricks", description="A stand-in Databricks workspace.")
    parser.add_argument("--port", type=int, default=18081, help="port on 127.0.0.1, 0 = any free one")
    parser.add_argument("--effects", type=Path, help="file to which each write is appended, one JSON line each")
    parser.add_argument("--scenario", type=Path, help="scenario to load at the start, see local/databricks/scenario.py")
    arguments = parser.parse_args()
    try:
        scenario = json.loads(arguments.scenario.read_text(encoding="utf-8")) if arguments.scenario else None
        app = create_databricks_app(effects_path=arguments.effects, scenario=scenario)
    except (OSError, ValueError) as error:
        sys.exit(f"The scenario {arguments.scenario} cannot be loaded: {error}")
    run_standin(app, arguments.port)


if __name__ == "__main__":
    main()
