"""The commands of `python -m agent`."""

from typing import Annotated

import typer

from agent.backtest import backtest
from agent.check import check
from agent.demo import demo
from agent.diagnose import diagnose
from agent.evaluate import evaluate
from agent.monitor import monitor
from agent.output import quiet_logs
from agent.pause import pause, resume
from agent.start import start
from agent.storm import storm

app = typer.Typer(
    help="Looks after Databricks jobs: finds failed runs, works out why, repairs or e-mails, and proves what it did.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    epilog="Exit codes: 0 as expected · 1 an expectation failed · 2 usage or settings · 3 a service is unreachable",
)


@app.callback()
def options(
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the logs, from INFO on, on stderr.")] = False,
) -> None:
    """Looks after Databricks jobs: finds failed runs, works out why, repairs or e-mails, and proves what it did."""
    quiet_logs(verbose=verbose)


for command in (demo, start, storm, monitor, check, diagnose, evaluate, backtest, pause, resume):
    app.command()(command)
