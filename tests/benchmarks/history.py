"""What listing the open incidents costs once thousands are closed: `python -m tests.benchmarks.history`.

Against Azurite. "By scan" is one query for `is_open`, as a history without an index must ask; "by index" is what the
history does. Azurite filters every row of a table whatever it is asked, so its times flatter the scan and tell little
of Azure Tables, which reads the rows in the range of keys that a query names; these are counted.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from azure.data.tables import TableClient, TableServiceClient

from local.azurite import running_azurite
from shared.decision_history import TableDecisionHistory, incident_from, row_of_incident
from shared.domain import Incident, IncidentState
from shared.settings import Settings
from tests.builders import WORKSPACE, build_decision, build_incident

OPEN = 10
CLOSED = 5_000
ROUNDS = 15
BATCH = 100  # the most that a transaction takes
ALL_KEYS = f"PartitionKey eq '{WORKSPACE}'"
KEYS_OF_THE_INDEX = f"{ALL_KEYS} and RowKey ge 'open-' and RowKey lt 'open.'"


def close_incidents(table: TableClient) -> None:
    """Store closed incidents as they are long after: a row each and nothing in the index."""
    for first in range(OPEN, OPEN + CLOSED, BATCH):
        closed = (
            build_incident(run_id=run_id, state=IncidentState.RECOVERED, decision=build_decision())
            for run_id in range(first, first + BATCH)
        )
        table.submit_transaction([("create", row_of_incident(incident)) for incident in closed])


def milliseconds(listing: Callable[[], list[Incident]]) -> float:
    """The median of some rounds; each must find what is open."""
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        found = len(listing())
        times.append((time.perf_counter() - started) * 1000)
        assert found == OPEN
    return statistics.median(times)


def report(history: TableDecisionHistory, table: TableClient, closed: int) -> None:
    def by_scan() -> list[Incident]:
        found = table.query_entities(f"{ALL_KEYS} and is_open eq true")
        return [incident_from(dict(entity) | {"etag": entity.metadata["etag"]}) for entity in found]

    def by_index() -> list[Incident]:
        return history.open_incidents(WORKSPACE)

    scan, index = milliseconds(by_scan), milliseconds(by_index)
    scanned = len(list(table.query_entities(ALL_KEYS, select=["RowKey"])))
    read = len(list(table.query_entities(KEYS_OF_THE_INDEX, select=["RowKey"]))) + OPEN
    sys.stdout.write(
        f"{OPEN} open, {closed:,} closed: by scan {scan:.0f} ms, {scanned:,} rows in range; "
        f"by index {index:.0f} ms, {read:,} rows; ratio of times {scan / index:.2f}, of rows {scanned / read:.1f}\n"
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, running_azurite(Path(folder)) as connection:
        settings = Settings(tables_connection_string=connection)
        history = TableDecisionHistory(settings)
        for run_id in range(OPEN):
            history.save_incident(build_incident(run_id=run_id, decision=build_decision()))
        with TableServiceClient.from_connection_string(connection) as service:
            table = service.get_table_client(f"{settings.table_prefix}incidents")
            report(history, table, 0)
            close_incidents(table)
            report(history, table, CLOSED)


if __name__ == "__main__":
    main()
