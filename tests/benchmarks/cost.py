"""What the agent costs in a month, worked out for 100, 1,000 and 10,000 failed runs: the table of docs/runbook.md.

    python -m tests.benchmarks.cost

Prices are US dollars as Microsoft listed them for one European region in 2025, before any discount; they change: look
them up before you rely on them. Amounts per failure and per tick are assumptions of this file, named below; one marked
*measured* was counted on the local stack.
"""

import sys
from dataclasses import dataclass

FAILURES = (100, 1_000, 10_000)

# Ticks of a month of 30 days: find_failures every 5 minutes, follow_up every minute, audit every hour.
TICKS = 30 * 24 * (12 + 60 + 1)
SECONDS_PER_TICK = 2.0
RUNS_PER_FAILURE = 5  # measured: decide, retry or mail, copies that were put off
SECONDS_PER_RUN = 3.0
GIGABYTES = 2.0  # instanceMemoryMB of infra/main.bicep

QUESTIONS_PER_FAILURE = 0.3  # share that rules are not sure about, less those asked within the hour
TOKENS_IN, TOKENS_OUT = 2_500, 800

TABLE_CALLS_PER_TICK = 10
TABLE_CALLS_PER_FAILURE = 60
LOG_KILOBYTES_PER_TICK = 3.0
LOG_KILOBYTES_PER_FAILURE = 60.0
MAILS_PER_FAILURE = 0.2  # escalations and digests; grouped, so fewer the more there are
MEGABYTES_PER_MAIL = 0.02

GIGABYTE_SECOND, FREE_GIGABYTE_SECONDS = 0.000026, 100_000
MILLION_RUNS, FREE_RUNS = 0.40, 250_000
SERVICE_BUS_STANDARD = 9.81  # 13 million operations included
TABLE_CALLS_100_000 = 0.036
LOG_GIGABYTE = 2.76
LOG_ALERT_5_MINUTES, LOG_ALERT_15_MINUTES, METRIC_ALERT = 1.50, 0.50, 0.10
MAIL, MAIL_MEGABYTE = 0.00025, 0.00012
MILLION_TOKENS_IN, MILLION_TOKENS_OUT = 0.25, 2.00  # gpt-5-mini


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the bill."""

    what: str
    dollars: float


def bill(failures: int) -> list[Line]:
    """A month's bill for so many failed runs."""
    runs = TICKS + failures * RUNS_PER_FAILURE
    seconds = TICKS * SECONDS_PER_TICK + failures * RUNS_PER_FAILURE * SECONDS_PER_RUN
    table_calls = TICKS * TABLE_CALLS_PER_TICK + failures * TABLE_CALLS_PER_FAILURE
    logs = (TICKS * LOG_KILOBYTES_PER_TICK + failures * LOG_KILOBYTES_PER_FAILURE) / 1e6
    questions = failures * QUESTIONS_PER_FAILURE
    mails = failures * MAILS_PER_FAILURE
    return [
        Line(
            "Functions (Flex Consumption, 2 GB)",
            max(0, seconds * GIGABYTES - FREE_GIGABYTE_SECONDS) * GIGABYTE_SECOND
            + max(0, runs - FREE_RUNS) / 1e6 * MILLION_RUNS,
        ),
        Line("Service Bus (Standard)", SERVICE_BUS_STANDARD),
        Line("Tables", table_calls / 1e5 * TABLE_CALLS_100_000),
        Line("Logs (Log Analytics)", logs * LOG_GIGABYTE),
        Line("Alerts", 3 * LOG_ALERT_5_MINUTES + 3 * LOG_ALERT_15_MINUTES + METRIC_ALERT),
        Line("Mail", mails * (MAIL + MEGABYTES_PER_MAIL * MAIL_MEGABYTE)),
        Line("Model (gpt-5-mini)", questions * (TOKENS_IN * MILLION_TOKENS_IN + TOKENS_OUT * MILLION_TOKENS_OUT) / 1e6),
    ]


def table() -> str:
    """The bills side by side, as Markdown."""
    bills = [bill(count) for count in FAILURES]
    rows = [[lines[0].what, *(line.dollars for line in lines)] for lines in zip(*bills, strict=True)]
    rows.append(["**Together**", *(sum(line.dollars for line in lines) for lines in bills)])
    head = "| US dollars a month | " + " | ".join(f"{count:,} failures" for count in FAILURES) + " |"
    body = ["| " + " | ".join([str(row[0]), *(f"{value:.2f}" for value in row[1:])]) + " |" for row in rows]
    return "\n".join([head, "|---|" + "---:|" * len(FAILURES), *body])


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
