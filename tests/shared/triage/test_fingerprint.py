"""Pairs of failures: the same cause told differently must share a fingerprint, another object or service must not."""

# ruff: noqa: E501 (a line of a log stands on one line)

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.domain import Symptoms
from shared.triage.evidence import collect
from shared.triage.fingerprint import fingerprint, normalise


def _fingerprint(text: str) -> str:
    return fingerprint(collect(Symptoms(error=text)))


@dataclass(frozen=True)
class Cause:
    """One cause: its text with `{}` for what names the object, and several such names. `¤` = a digit that varies."""

    text: str
    objects: tuple[str, ...] = ("",)
    is_exception: bool = True


CAUSES = (
    Cause("org.apache.spark.sql.AnalysisException: [TABLE_OR_VIEW_NOT_FOUND] The table or view `main`.`{}` cannot be found. Verify the spelling. SQLSTATE: 42P01; line ¤¤ pos ¤¤", ("orders", "customers", "leads_v2")),
    Cause("pyspark.errors.exceptions.captured.AnalysisException: [UNRESOLVED_COLUMN.WITH_SUGGESTION] A column, variable, or function parameter with name `{}` cannot be resolved. Did you mean one of the following? [`a`, `b`]. SQLSTATE: 42703", ("till_no", "store_id", "amount")),
    Cause("ModuleNotFoundError: No module named '{}'", ("h3", "geopandas", "acme_tools")),
    Cause("ImportError: cannot import name '{}' from 'pandas.core' (/databricks/python/lib/python3.11/site-packages/pandas/core/__init__.py)", ("isna", "concat")),
    Cause("java.lang.IllegalArgumentException: Secret does not exist with scope: {} and key: db-password", ("kv-sap-prod", "kv-crm", "kv-dwh")),
    Cause("com.databricks.common.client.DatabricksServiceHttpClientException: RESOURCE_DOES_NOT_EXIST: Scope {} does not exist!", ("run-demo", "run-prod")),
    Cause("requests.exceptions.ConnectionError: HTTPSConnectionPool(host='{}', port=443): Max retries exceeded with url: /v1/x?day=2026-11-¤¤ (Caused by NewConnectionError('<urllib3.connection.HTTPSConnection object at 0x7f¤¤¤¤¤¤¤¤ab>: Failed to establish a new connection: [Errno 111] Connection refused'))", ("api.rates.example", "crm.acme.example", "sap.acme.example")),
    Cause("java.net.UnknownHostException: {}", ("sales-prd.database.windows.net", "crm-db.internal", "lake.dfs.core.windows.net")),
    Cause("urllib.error.HTTPError: HTTP Error {}", ("404: Not Found", "503: Service Unavailable", "401: Unauthorized")),
    Cause("requests.exceptions.HTTPError: 503 Server Error: Service Unavailable for url: https://{}/v1/prices/¤¤¤¤?page=¤¤", ("api.rates.example", "tiles.geo.example")),
    Cause("com.microsoft.sqlserver.jdbc.SQLServerException: The TCP/IP connection to the host {}, port 1¤¤¤ has failed. Error: \"connect timed out. Verify the connection properties.\". ClientConnectionId:¤¤¤¤¤¤¤¤-1671-491c-b76a-4aa7b5fb6b51", ("sales.database.windows.net", "crm.database.windows.net")),
    Cause("org.postgresql.util.PSQLException: ERROR: relation \"{}\" does not exist", ("public.accounts", "public.orders")),
    Cause("org.postgresql.util.PSQLException: FATAL: password authentication failed for user \"{}\"", ("etl", "reporting")),
    Cause("java.sql.SQLException: ORA-00942: table or view \"{}\" does not exist", ("FIN.GL_LINES", "FIN.ACCOUNTS")),
    Cause("java.lang.ClassNotFoundException: {}", ("org.postgresql.Driver", "com.mysql.cj.jdbc.Driver")),
    Cause("java.io.FileNotFoundException: File not found: abfss://raw@lakeprod.dfs.core.windows.net/{}/date=2026-11-¤¤/part-¤¤¤¤¤-0a4624a5-c0b3-40e0-b40a-¤¤¤¤¤¤¤¤¤¤¤¤-c000.snappy.parquet", ("orders", "customers")),
    Cause("pyspark.errors.exceptions.captured.AnalysisException: [PATH_NOT_FOUND] Path does not exist: dbfs:/Volumes/main/etl/{}/2026/11/¤¤/*.json. SQLSTATE: 42K03", ("landing", "archive")),
    Cause("java.lang.OutOfMemoryError: {}", ("Java heap space", "GC overhead limit exceeded", "Direct buffer memory")),
    Cause("java.io.IOException: No space left on device"),
    Cause("KeyError: '{}'", ("customer_id", "order_id")),
    Cause("AttributeError: 'NoneType' object has no attribute '{}'", ("strip", "lower")),
    Cause("ValueError: could not convert string to float: '{}'", ("abc", "n/a")),
    Cause("java.lang.NumberFormatException: For input string: \"{}\"", ("three", "x")),
    Cause("io.delta.exceptions.ConcurrentAppendException: [DELTA_CONCURRENT_APPEND] Files were added to partition [day=2026-11-¤¤] in the table {} by a concurrent update. Please try the operation again.", ("main.silver.orders", "main.silver.customers")),
    Cause("com.databricks.sql.transaction.tahoe.DeltaAnalysisException: [DELTA_MERGE_UNRESOLVED_EXPRESSION] Cannot resolve {} in UPDATE clause given columns a, b. SQLSTATE: 42601", ("t.amount", "t.price")),
    Cause("org.apache.spark.SparkException: [TASK_WRITE_FAILED] Task failed while writing rows to abfss://bronze@lake.dfs.core.windows.net/net. SQLSTATE: 58030\nCaused by: org.apache.kafka.common.errors.TimeoutException: Timeout of ¤¤¤¤¤ms expired before the position for partition {}-¤¤ could be determined", ("net-metrics", "net-clicks")),
    Cause("PERMISSION_DENIED: User does not have {}", ("USE SCHEMA on Schema 'plant.telemetry'.", "SELECT on Table 'plant.telemetry.raw'.", "USE SCHEMA on Schema 'plant.quality'.")),
    Cause("mlflow.exceptions.RestException: RESOURCE_DOES_NOT_EXIST: Registered Model with name={} not found", ("churn_gbm", "fraud_gbm")),
    Cause("net.snowflake.client.jdbc.SnowflakeSQLException: SQL compilation error:\nObject '{}' does not exist or not authorized.", ("FIN.PUBLIC.GL", "FIN.PUBLIC.AP")),
    Cause("com.microsoft.aad.msal4j.MsalServiceException: AADSTS{}: failure for app '81ac716a-1111-4bd2-9999-abcdefabcdef'. Trace ID: ¤¤¤¤¤¤¤¤-2222-4bd2-9999-abcdefabcdef Timestamp: 2026-11-¤¤ 01:¤¤:¤¤Z", ("7000215", "7000222", "700016")),
    Cause("[DATATYPE_MISMATCH.BINARY_OP_DIFF_TYPES] Cannot resolve \"({} = x)\" due to data type mismatch. SQLSTATE: 42K09; line ¤ pos ¤¤", ("day", "month")),
    Cause("Cluster ¤¤¤¤-¤¤¤¤¤¤-abcd¤¤¤¤ was terminated. Reason: {}", ("SPOT_INSTANCE_TERMINATION (CLOUD_FAILURE). Parameters: instance_id: ¤¤¤¤¤¤¤¤abcdef", "DRIVER_UNREACHABLE (CLOUD_FAILURE). Parameters: instance_id: ¤¤¤¤¤¤¤¤abcdef"), is_exception=False),
    Cause("py4j.protocol.Py4JJavaError: An error occurred while calling o¤¤¤.load.\n: java.util.concurrent.TimeoutException: Futures timed out after [¤¤¤ seconds] waiting for {}", ("broadcast", "metastore")),
    Cause("Runtime Error in model {} (models/marts/x.sql)\n  [DIVIDE_BY_ZERO] Division by zero. Use `try_divide` to tolerate divisor being 0. SQLSTATE: 22012", ("fct_orders", "fct_sales"), is_exception=False),
    Cause("DQ FAILED: ¤¤ rows without {} in silver.orders (threshold ¤)", ("customer_id", "sku"), is_exception=False),
)  # fmt: skip

NOISE = (
    "26/¤¤/¤¤ ¤¤:¤¤:¤¤ INFO BlockManagerInfo: Added broadcast_¤¤_piece¤ in memory on 10.¤¤.¤¤.¤¤:¤¤¤¤¤ (size: ¤¤ KiB)",
    "26/¤¤/¤¤ ¤¤:¤¤:¤¤ WARN SparkConf: The configuration key 'spark.akka.frameSize' has been deprecated as of Spark 1.6",
    "tables: ¤¤%|███      | ¤¤/410 [00:¤¤<08:¤¤, 6.¤¤it/s]",
    "2026-¤¤-¤¤ ¤¤:¤¤:¤¤,¤¤¤ INFO sync: watermark ¤¤a¤b¤ stored",
    "26/¤¤/¤¤ ¤¤:¤¤:¤¤ INFO DAGScheduler: Submitting ¤¤¤ missing tasks from ShuffleMapStage ¤¤",
)


def _numbered(text: str, rng: random.Random) -> str:
    return re.sub("¤", lambda _: rng.choice("123456789"), text)


def _as_it_is(text: str, _: random.Random) -> str:
    return text


def _in_noise(text: str, rng: random.Random) -> str:
    before = [_numbered(rng.choice(NOISE), rng) for _ in range(rng.randrange(1, 40))]
    after = [_numbered(rng.choice(NOISE), rng) for _ in range(rng.randrange(5))]
    return "\n".join([*before, text, *after])


def _in_a_stage(text: str, rng: random.Random) -> str:
    task = rng.randrange(500)
    return (
        f"org.apache.spark.SparkException: Job aborted due to stage failure: Task {task} in stage 3.0 failed 4 times, "
        f"most recent failure: Lost task {task}.3 in stage 3.0 (TID {rng.randrange(9000)}) (10.1.2.{rng.randrange(250)} "
        f"executor {rng.randrange(9)}): {text}\n\tat org.apache.spark.scheduler.Task.run(Task.scala:{rng.randrange(300)})"
    )


def _in_py4j(text: str, rng: random.Random) -> str:
    return (
        f'Traceback (most recent call last):\n  File "/Workspace/Jobs/step.py", line {rng.randrange(99)}, in <module>\n'
        f"    df.save()\npy4j.protocol.Py4JJavaError: An error occurred while calling o{rng.randrange(999)}.save.\n: {text}\n"
        "\tat org.apache.spark.sql.DataFrameWriter.save(DataFrameWriter.scala:411)\n\t... 21 more"
    )


def _in_a_chain(text: str, rng: random.Random) -> str:
    return (
        f"org.apache.spark.SparkException: Job aborted.\n\tat org.apache.spark.Main.run(Main.scala:{rng.randrange(400)})\n"
        f"Caused by: {text}\n\t... {rng.randrange(40)} more"
    )


def _in_python_chain(text: str, rng: random.Random) -> str:
    return (
        f'Traceback (most recent call last):\n  File "/Workspace/a.py", line {rng.randrange(99)}, in load\n    go()\n{text}\n\n'
        "The above exception was the direct cause of the following exception:\n\nTraceback (most recent call last):\n"
        f'  File "/Workspace/b.py", line {rng.randrange(99)}, in <module>\n    load()\nRuntimeError: step failed'
    )


VARIATIONS: tuple[Callable[[str, random.Random], str], ...] = (_as_it_is, _in_noise, _in_a_chain, _in_a_stage, _in_py4j, _in_python_chain)  # fmt: skip


def pairs(rounds: int = 3) -> Iterator[tuple[str, str, bool]]:
    """(one text, another, whether they have the same cause)."""
    rng = random.Random(20261122)
    for cause in CAUSES:
        texts = [cause.text.replace("{}", name) for name in cause.objects]
        for _ in range(rounds):
            for text in texts:
                for variation in VARIATIONS if cause.is_exception else VARIATIONS[:2]:
                    yield _numbered(text, rng), variation(_numbered(text, rng), rng), True
            for text in texts:
                for other in texts:
                    if other is not text:
                        yield _numbered(text, rng), rng.choice(VARIATIONS[:2])(_numbered(other, rng), rng), False
    for _ in range(rounds * 100):
        one, another = (
            _numbered(rng.choice(VARIATIONS)(cause.text.replace("{}", cause.objects[0]), rng), rng)
            for cause in rng.sample(CAUSES, 2)
        )
        yield one, another, False


def precision_and_recall(rounds: int = 3) -> tuple[float, float, list[tuple[str, str, bool]]]:
    """Of the pairs called the same, the share that is; of the same pairs, the share called so; the pairs that are wrong."""
    hits = said_same = same = 0
    wrong = []
    for one, other, is_same in pairs(rounds):
        says_same = _fingerprint(one) == _fingerprint(other)
        hits += says_same and is_same
        said_same += says_same
        same += is_same
        if says_same != is_same:
            wrong.append((one, other, is_same))
    return hits / said_same, hits / same, wrong


def test_same_causes_are_recognised_and_different_ones_told_apart() -> None:
    precision, recall, wrong = precision_and_recall(rounds=1)

    assert precision >= 0.97, [pair for pair in wrong if not pair[2]][:3]
    assert recall >= 0.95, [pair for pair in wrong if pair[2]][:3]


TOLD_OTHERWISE = [
    ('java.net.SocketTimeoutException: Read timed out\n\tat x.y(Z.java:1)\n[context] GET https://api.acme.example/v1/orders/123', 'java.net.SocketTimeoutException: Read timed out\n\tat x.y(Z.java:9)\n[context] GET https://api.acme.example/v1/orders/999'),
    ('Run 123 failed: Task load_orders timed out after 3600 seconds', 'Run 999 failed: Task load_orders timed out after 7200 seconds'),
    ('[DELTA_CONCURRENT_APPEND] ConcurrentAppendException: Files were added to partition [date=2026-01-01] by a concurrent update. Conflicting commit: {"timestamp":1763702411873,"operation":"WRITE"}', '[DELTA_CONCURRENT_APPEND] ConcurrentAppendException: Files were added to partition [date=2026-02-03] by a concurrent update. Conflicting commit: {"timestamp":1763999411873,"operation":"MERGE"}'),
    ('ERROR: deadlock detected DETAIL: Process 12 waits for ShareLock on transaction 991; blocked by process 14.', 'ERROR: deadlock detected DETAIL: Process 77 waits for ShareLock on transaction 13; blocked by process 2.'),
    ('pyspark.errors.exceptions.connect.AnalysisException: [TABLE_OR_VIEW_NOT_FOUND] The table or view `a`.`b` cannot be found. SQLSTATE: 42P01', "AnalysisException: [TABLE_OR_VIEW_NOT_FOUND] The table or view `a`.`b` cannot be found. Verify the spelling and correctness of the schema and catalog.\nIf you did not qualify the name with a schema, verify. SQLSTATE: 42P01; line 3 pos 5;\n'Project [*]"),
    ("ModuleNotFoundError: No module named 'h3'", 'org.apache.spark.api.python.PythonException: \'Traceback (most recent call last):\n  File "/databricks/spark/python/pyspark/worker.py", line 12, in main\n    process()\nModuleNotFoundError: No module named \'h3\'\''),
    ('java.lang.OutOfMemoryError: Java heap space', '26/10/10 10:10:10 ERROR Executor: Exception in task 3.0 in stage 1.0 (TID 12)\njava.lang.OutOfMemoryError: Java heap space\n\tat java.util.Arrays.copyOf(Arrays.java:3332)'),
    ('Cluster 0924-079775-f131nunw could not start: Init scripts failed. instance_id: 601c4417-d952-3e30-f53d-ed6edc506435, Cluster scoped init script /ETL/setup.sh failed', 'Cluster 0125-171275-aaabbbcc could not start: Init scripts failed. instance_id: 601c4417-d952-3e30-0000-ed6edc506435, Cluster scoped init script /ETL/setup.sh failed'),
    ("urllib3.exceptions.MaxRetryError: HTTPSConnectionPool(host='api.x.example', port=443): Max retries exceeded with url: /a?page=3 (Caused by ConnectTimeoutError(<urllib3.connection.HTTPSConnection object at 0x7f1>, 'Connection to api.x.example timed out. (connect timeout=20)'))", "requests.exceptions.ConnectTimeout: HTTPSConnectionPool(host='api.x.example', port=443): Max retries exceeded with url: /a?page=7 (Caused by ConnectTimeoutError(<urllib3.connection.HTTPSConnection object at 0x9f1>, 'Connection to api.x.example timed out. (connect timeout=20)'))"),
    ("KeyError: 'customer_id'", 'Traceback (most recent call last):\n  File "/Workspace/a.py", line 3, in <module>\n    x[\'customer_id\']\nKeyError: \'customer_id\'\nWorkload failed, see run output for details'),
    ('Library installation failed for library due to user error for pypi {"package": "tools==9.9"}\n ERROR: Could not find a version that satisfies the requirement tools==9.9 (from versions: 1.0, 2.0)\nERROR: No matching distribution found for tools==9.9', 'Run 12: Library installation failed for library due to user error for pypi {"package": "tools==9.9"}\n ERROR: Could not find a version that satisfies the requirement tools==9.9 (from versions: 1.0, 2.0, 3.0)\nERROR: No matching distribution found for tools==9.9'),
    ('Job 41 cancelled because SparkContext was shut down', 'org.apache.spark.SparkException: Job 7 cancelled because SparkContext was shut down'),
    ('org.apache.spark.SparkException: Job aborted due to stage failure: Total size of serialized results of 251 tasks (1024.6 MB) is bigger than spark.driver.maxResultSize (1024.0 MB)', '26/06/19 14:49:07 ERROR TaskSetManager: Total size of serialized results of 99 tasks (4.1 GiB) is bigger than spark.driver.maxResultSize (4.0 GiB)'),
    ('{"error":{"code":"Throttled","message":"Too many requests","requestId":"abc-1"}}', '{"error":{"code":"Throttled","message":"Too many requests","requestId":"abd-2"}}'),
    ("FileNotFoundError: [Errno 2] No such file or directory: '/dbfs/mnt/raw/orders/2026-11-21/orders_20261121.csv'", "FileNotFoundError: [Errno 2] No such file or directory: '/dbfs/mnt/raw/orders/2026-11-22/orders_20261122.csv'"),
    ('PySparkException: job group 1a2b-3c user jane@x.example cancelled', 'PySparkException: job group 9a2b-3d user jane@x.example cancelled'),
    ('py4j.protocol.Py4JJavaError: An error occurred while calling o1.save.\n: com.microsoft.azure.storage.StorageException: This request is not authorized. RequestId:d5570963-e717-f6fa-9a43-e115e35595f9 Time:2026-11-22T01:02:03Z', 'py4j.protocol.Py4JJavaError: An error occurred while calling o12.parquet.\n: com.microsoft.azure.storage.StorageException: This request is not authorized. RequestId:11170963-e717-f6fa-9a43-e115e35595f9 Time:2026-12-22T01:02:03Z'),
]  # fmt: skip

ANOTHER_CAUSE = [
    ('ValueError: column amount has nulls', 'ValueError: column price has nulls'),
    ('java.sql.SQLException: Table crm.leads not found', 'java.sql.SQLException: Table crm.deals not found'),
    ('TimeoutError: timed out\n  calling https://a.example/x', 'TimeoutError: timed out\n  calling https://b.example/x'),
    ('java.net.SocketTimeoutException: Read timed out\n[context] host=a.acme.example', 'java.net.SocketTimeoutException: Read timed out\n[context] host=b.acme.example'),
    ('java.net.ConnectException: Connection refused\ncalling kafka-1.acme.example:9093', 'java.net.ConnectException: Connection refused\ncalling redis-1.acme.example:6379'),
    ('io.delta.exceptions.ConcurrentAppendException: Files were added to the root of the table by a concurrent update.\n  table main.silver.orders', 'io.delta.exceptions.ConcurrentAppendException: Files were added to the root of the table by a concurrent update.\n  table main.silver.customers'),
    ('[DELTA_CONCURRENT_APPEND] Files were added. Table: /mnt/lake/orders', '[DELTA_CONCURRENT_APPEND] Files were added. Table: /mnt/lake/customers'),
    ('HTTP Error 403: Forbidden', 'HTTP Error 429: Too Many Requests'),
    ('botocore.exceptions.ClientError: An error occurred (AccessDenied) when calling the GetObject operation: Access Denied\ns3://bucket-a/x', 'botocore.exceptions.ClientError: An error occurred (AccessDenied) when calling the GetObject operation: Access Denied\ns3://bucket-b/x'),
    ("TypeError: unsupported operand type(s) for +: 'int' and 'str'", "TypeError: unsupported operand type(s) for -: 'int' and 'str'"),
    ("AnalysisException: Column 'a1' does not exist", "AnalysisException: Column 'a2' does not exist"),
    ('exit code 137', 'exit code 1'),
    ("smtplib.SMTPAuthenticationError: (535, b'5.7.8 Error: authentication failed')\nserver smtp.a.example:587", "smtplib.SMTPAuthenticationError: (535, b'5.7.8 Error: authentication failed')\nserver smtp.b.example:587"),
    ('SparkException: [DELTA_MULTIPLE_SOURCE_ROW_MATCHING_TARGET_ROW_IN_MERGE] Cannot perform Merge\nMERGE INTO main.a.orders t USING s', 'SparkException: [DELTA_MULTIPLE_SOURCE_ROW_MATCHING_TARGET_ROW_IN_MERGE] Cannot perform Merge\nMERGE INTO main.a.items t USING s'),
    ('ORA-01017: invalid username/password; logon denied', 'ORA-12541: TNS:no listener'),
    ('Secret does not exist with scope: a and key: k1', 'Secret does not exist with scope: a and key: k2'),
    ("Error: job 'x' failed: dbt model stg_orders failed test not_null", "Error: job 'x' failed: dbt model stg_orders failed test unique"),
    ('AssertionError', 'AssertionError: rows'),
    ('RuntimeError: step load failed', 'RuntimeError: step transform failed'),
    ('com.mongodb.MongoTimeoutException: Timed out after 30000 ms while waiting for a server that matches. servers=[{address=m1.acme.example:27017}]', 'com.mongodb.MongoTimeoutException: Timed out after 30000 ms while waiting for a server that matches. servers=[{address=orders.other.example:27017}]'),
    ('java.io.IOException: No space left on device', 'java.io.IOException: Disk quota exceeded'),
    ('Failure to initialize configuration for storage account lakea.dfs.core.windows.net: Invalid configuration value detected for fs.azure.account.key', 'Failure to initialize configuration for storage account lakeb.dfs.core.windows.net: Invalid configuration value detected for fs.azure.account.key'),
    ("python: can't open file '/Workspace/a/x.py': [Errno 2] No such file", "python: can't open file '/Workspace/a/y.py': [Errno 2] No such file"),
    ('pip: No matching distribution found for foo==1.2.3', 'pip: No matching distribution found for bar==1.2.3'),
    ("Task load_a failed: KeyError: 'x'", "Task load_a failed: KeyError: 'y'"),
]  # fmt: skip


CARRIERS = [
    "Task load_9 failed with message: {}",
    "Task load_9 failed: {}",
    "Run 99182 failed with error message\n {}",
    "Run result unavailable: run failed with error message\n{}",
    "Workload failed, see run output for details\n{}",
    "com.databricks.WorkflowException: com.databricks.NotebookExecutionException: FAILED: {}",
    "{}\n[RequestId=5f3a9c1e-0000-4b52-9f5c-f2a4a4e5b8f1 ErrorClass=INVALID_PARAMETER_VALUE]",
]


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize(
    "cause",
    [
        "KeyError: 'sku'",
        "Could not reach driver of cluster 1123-221784-iu1ksxj4.",
        "PERMISSION_DENIED: User does not have USE SCHEMA on Schema 'main.hr'.",
        "[TABLE_OR_VIEW_NOT_FOUND] The table or view `a`.`b` cannot be found. SQLSTATE: 42P01",
        "exit code 137",
    ],
)
def test_what_a_run_puts_around_an_error_is_not_its_cause(cause: str, carrier: str) -> None:
    assert _fingerprint(carrier.format(cause)) == _fingerprint(cause)


def test_columns_of_a_schema_dump_and_a_package_after_advice_tell_causes_apart() -> None:
    schema = (
        "AnalysisException: A schema mismatch detected when writing to the Delta table.\nTable schema:\nroot\n"
        "-- id: long (nullable = true)\n\nData schema:\nroot\n-- id: long (nullable = true)\n-- {}: string (nullable = true)"
    )
    package = (
        "Library installation failed. Please refer to the following error message to fix the library. Error code: "
        "DRIVER_LIBRARY_INSTALLATION_FAILURE. Error message: pip install '{}==1.2' exited with code 1"
    )
    for text in (schema, package):
        assert _fingerprint(text.format("acme_core")) != _fingerprint(text.format("acme_metrics"))
        assert _fingerprint(text.format("acme_core")) == _fingerprint(text.format("acme_core"))


ANNOUNCEMENTS = [
    "26/05/01 10:11:13 ERROR Driver: Command failed",
    "2026-05-01 10:11:12,123 ERROR root: Job failed",
    "26/05/01 10:11:13 ERROR ScalaDriverLocal: User code error",
    "Task failed. Attempt 1 of 3. Run id 889900",
    "Notebook execution failed",
    "An error occurred while running the job.",
    "Run 417900027342409 finished at 2026-06-09T20:58:37.526Z",
]


@pytest.mark.parametrize("announcement", ANNOUNCEMENTS)
@pytest.mark.parametrize(
    "cause", ["Quota exceeded for vault kv-a", "Could not reach driver of cluster 1123-221784-iu1ksxj4."]
)
def test_a_line_that_only_says_that_something_failed_is_not_the_cause(cause: str, announcement: str) -> None:
    assert _fingerprint(f"{announcement}\n{cause}") == _fingerprint(cause)


def test_where_nothing_but_failures_of_tasks_is_told_the_innermost_task_is_the_cause() -> None:
    told = "Task {} failed with message: Workload failed, see run output for details. Run ID 5669, job 18, attempt 3."
    alone, inside = told.format("load_finance"), f"Task main_15 failed with message: {told.format('load_finance')}"

    assert _fingerprint(alone) == _fingerprint(inside)
    assert _fingerprint(alone) != _fingerprint(told.format("load_crm"))


ENVELOPES = [
    '{{"run_id":195762,"state":{{"result_state":"FAILED","state_message":"{}"}},"execution_duration":657000}}',
    '{{"timestamp":"2026-01-01T00:00:00Z","level":"ERROR","logger":"x.y","msg":"{}"}}',
    'Unable to start: {{"error":{{"code":400,"message":"{}"}}}}',
    '{{"id":"1","message":"Update 5 is FAILED.","error":{{"exceptions":[{{"message":"{}"}}],"fatal":true}}}}',
    "Library resolution failed. Cause: java.lang.RuntimeException: {}",
    "[STREAM_FAILED] Query [id = 1a-2b, runId = 3c] terminated with exception: {}",
    "Fatal error: {} Cluster 0811-178836-pcnz45uh, run 296385738850161.",
    "{} (retry 3)",
    "{} [TraceId: bb91f667-dc68-84af-dcb1-b9d543fba24d]",
    "{} Request id 5b1e9c7a-2f4d-4c88-9a31-7d0f6e2b4c15, at 2026-01-02T03:04:05.678Z",
    "{} (com.microsoft.sqlserver.jdbc.SQLServerException)",
]


@pytest.mark.parametrize("envelope", ENVELOPES)
@pytest.mark.parametrize(
    "cause",
    [
        "[UNRESOLVED_COLUMN.WITHOUT_SUGGESTION] A column with name `vat` cannot be resolved.",
        "[UC_VOLUME_NOT_FOUND] Volume `m`.`r`.`a` does not exist.",
    ],
)
def test_the_innermost_message_of_a_line_is_the_cause(cause: str, envelope: str) -> None:
    assert _fingerprint(envelope.format(cause)) == _fingerprint(cause)
    assert _fingerprint(envelope.format(cause.replace("`vat`", "`tax`").replace("`a`", "`b`"))) != _fingerprint(cause)


@pytest.mark.parametrize(
    ("provider", "code", "message", "other"),
    [
        ("azure", "AllocationFailed", "The size 'Standard_E16ds_v5' is not available in 'westeurope'.", "The size 'Standard_D16ds_v5' is not available in 'westeurope'."),
        ("aws", "InsufficientInstanceCapacity", "We do not have sufficient m5.2xlarge capacity.", "We do not have sufficient m5.4xlarge capacity."),
        ("gcp", "QUOTA_EXCEEDED", "Quota 'SSD_TOTAL_GB' exceeded.", "Quota 'N2_CPUS' exceeded."),
    ],
)  # fmt: skip
def test_what_a_cloud_says_is_the_cause_however_it_is_told(provider: str, code: str, message: str, other: str) -> None:
    terminated = (
        "Cluster 0101-111111-aaaabbb1 was terminated. Reason: CLOUD_PROVIDER_LAUNCH_FAILURE (CLOUD_FAILURE). Parameters: "
        f"{provider}_error_code:{code}, {provider}_error_message:{{}} Please try another. instance_id:1a2b"
    )
    waiting = (
        "Unexpected failure while waiting for the cluster 0202-222222-bbbbccc2 to be ready: Cluster 0202-222222-bbbbccc2 is in "
        f"unexpected state Terminated: CLOUD_PROVIDER_LAUNCH_FAILURE(CLOUD_FAILURE): {provider}_error_message:{{}},{provider}_error_code:{code}"
    )
    assert _fingerprint(terminated.format(message)) == _fingerprint(waiting.format(message))
    assert _fingerprint(terminated.format(message)) != _fingerprint(terminated.format(other))


def _in_function(name: str, error: str) -> str:
    return f'Traceback (most recent call last):\n  File "/Workspace/Jobs/x.py", line 5, in {name}\n    go()\n{error}'


@pytest.mark.parametrize(
    "error",
    [
        "ZeroDivisionError: division by zero",
        "AssertionError",
        "TypeError: 'NoneType' object is not iterable",
        "UnicodeDecodeError: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte",
        "json.decoder.JSONDecodeError: Extra data: line 3 column 1 (char 77)",
    ],
)
def test_an_error_of_code_that_names_nothing_is_told_apart_by_its_function(error: str) -> None:
    assert _fingerprint(_in_function("load", error)) != _fingerprint(_in_function("save", error))
    assert _fingerprint(_in_function("load", error)) == _fingerprint(
        _in_function("load", error).replace("line 5", "line 77")
    )


def test_an_error_of_java_code_is_told_apart_by_the_frame_below_it() -> None:
    text = "java.lang.NullPointerException\n\tat java.util.Objects.requireNonNull(Objects.java:1)\n\tat com.acme.{}(Job.scala:12)"

    assert _fingerprint(text.format("Load.run")) != _fingerprint(text.format("Save.run"))
    assert _fingerprint(text.format("Load.run")) == _fingerprint(text.format("Load.run").replace(":12", ":99"))


@pytest.mark.parametrize(
    ("text", "one", "other"),
    [
        ("FAILED: assertion failed: no rows\nNotebook path: /Workspace/Prod/{}", "orders", "items"),
        ("Flow '{}' has FAILED fatally.\nSparkException: checkpoint is incompatible with the plan", "orders", "items"),
        ("io.delta.exceptions.ConcurrentAppendException: Files were changed.\nMERGE INTO a.b.c t USING s ON {}", "t.x = s.x", "t.x = s.x AND t.y = s.y"),
        ("[DIVIDE_BY_ZERO] Division by zero. Use `try_divide` to tolerate it. SQLSTATE: 22012\n== SQL (line 1, position 8) ==\nSELECT {}", "a / b", "c / d"),
        ("Failed to read dbfs:/a/{}: java.io.IOException: stream closed", "orders", "items"),
        ("Error while processing '{}': java.lang.IllegalStateException: closed", "orders", "items"),
        ("AnalysisException: A schema mismatch detected.\nData schema adds:\nroot\n-- {}: double (nullable = true)", "rebate", "discount"),
        ("javax.net.ssl.SSLHandshakeException: PKIX path building failed\n  connecting to https://{}/api", "erp.acme.example", "crm.acme.example"),
        ("Connection to {} refused.\nCaused by: java.net.ConnectException: Connection refused (attempt 2)", "pg-a.acme.example:5432", "pg-b.acme.example:5432"),
        ("SIGSEGV (0xb) at pc=0x00007f8a1c2b3d4e\n# Problematic frame: C  [{}+0x1]", "libnetcdf.so", "libgdal.so"),
        ("The TCP/IP connection to the host {}, port 1433 has failed.", "sql-erp-01.acme.example", "sql-erp-02.acme.example"),
        ("PERMISSION_DENIED: Principal {} does not have USE CATALOG on Catalog 'main'.", "5b1e9c7a-2f4d-4c88-9a31-7d0f6e2b4c15", "6b1e9c7a-2f4d-4c88-9a31-7d0f6e2b4c15"),
        ("ERROR: No matching distribution found for acme=={}", "2.3.1", "2.4.0"),
        ("java.lang.RuntimeException: com.acme:lib_2.12:{} download failed.", "1.2.3", "1.2.4"),
        ("FileNotFoundException: /Volumes/main/libs/acme-{}-py3-none-any.whl", "1.2.3", "1.2.4"),
        ("Failed to pull docker image acme.azurecr.io/etl:{}: unauthorized", "3.1", "3.2"),
        ("DB2 SQL Error: SQLCODE={}, SQLERRMC=FIN.ORDERS", "-204", "-551"),
    ],
)  # fmt: skip
def test_what_stands_near_or_in_the_message_tells_causes_apart(text: str, one: str, other: str) -> None:
    assert _fingerprint(text.format(one)) != _fingerprint(text.format(other))
    assert _fingerprint(text.format(one)) == _fingerprint(
        f"26/01/02 03:04:05 ERROR Driver: Command failed\n{text.format(one)}"
    )


@pytest.mark.parametrize(("one", "other"), TOLD_OTHERWISE)
def test_one_cause_told_otherwise_is_the_same(one: str, other: str) -> None:
    assert _fingerprint(one) == _fingerprint(other)


@pytest.mark.parametrize(("one", "other"), ANOTHER_CAUSE)
def test_another_object_service_or_code_is_another_cause(one: str, other: str) -> None:
    assert _fingerprint(one) != _fingerprint(other)


@pytest.mark.parametrize(
    ("line", "normal"),
    [
        ("26/10/19 11:04:36 ERROR Foo: Timeout of 60000 ms on executor 12", "timeout of # on executor #"),
        ("Caused by: java.io.IOException: No space left on device", "ioexception: no space left on device"),
        ("java.net.ConnectException: Connection refused: /[redacted:ip]:37211", "connectexception: connection refused: /#"),
        ("HTTP Error 404: Not Found", "http error 404: not found"),
        ("ModuleNotFoundError: No module named 'h3'", "modulenotfounderror: no module named 'h3'"),
        ("path abfss://raw@lake.dfs.core.windows.net/orders/date=2026-11-22/x", "path abfss://raw@lake.dfs.core.windows.net/orders/date=#/x"),
        ("host https://adb-30117754409.7.azuredatabricks.net/sql?o=1", "host https://adb-#.azuredatabricks.net/sql"),
        ("id 81ac716a-b5d8-534d-2151-4ff69e5f0a05 at 0x7f2513c46003", "id # at #"),
        ("f-48c90cffddb9.json of pod etl-worker-7f9c4d8b-x2k4q", "f-#.json of pod etl-worker-#"),
        ("s3://b/x/2026/01/02/02554-5685d624-8dd6-756b-70c1-04a1b401ba85.avro", "s3://b/x/#.avro"),
        ("Extended Request ID: 7lHIxgzv+qYtB/x=, on Fri Jan 03 10:11:12 2026", "extended #, on #"),
        ("kafka-1.acme.example or sql-erp-02.acme.example", "#.acme.example or sql-erp-02.acme.example"),
        ("ORA-01555: snapshot of Standard_E16ds_v5", "ora-01555: snapshot of standard_e16ds_v5"),
        ("", ""),
    ],
)  # fmt: skip
def test_normalise(line: str, normal: str) -> None:
    assert normalise(line) == normal


def test_category_counts_only_where_no_cause_is_named() -> None:
    named, silent = collect(Symptoms(error="KeyError: 'sku'")), collect(Symptoms())

    assert fingerprint(named, category="code") == fingerprint(named, category="data")
    assert fingerprint(silent, category="code") != fingerprint(silent, category="data")


@given(st.text(max_size=300))
@settings(max_examples=200, deadline=None)
def test_every_text_has_a_fingerprint_of_sixteen_digits(text: str) -> None:
    assert re.fullmatch("[0-9a-f]{16}", _fingerprint(text))


@given(st.text(max_size=300))
@settings(max_examples=200, deadline=None)
def test_normalise_never_raises_and_is_stable(line: str) -> None:
    assert normalise(line) == normalise(line)
    assert "\n" not in normalise(line)
