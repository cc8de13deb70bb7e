"""What is left of logs: short, whole lines, the deciding one among them, no secret, whatever comes in."""

# ruff: noqa: E501 (a line of a log stands on one line)

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.domain import Evidence, Symptoms
from shared.triage.evidence import EXCERPT_LIMIT, TEXT_LIMIT, collect, is_own_frame, says_nothing
from tests.shared.triage.test_redaction import KINDS, leaked


def of(text: str) -> Evidence:
    return collect(Symptoms(error=text))


CHATTER = (
    "26/10/19 11:01:18 INFO BlockManagerInfo: Added broadcast_{n}_piece0 in memory on 10.2.3.4:37643 (size: {n} KiB)",
    "26/10/19 11:01:37 WARN SparkConf: The configuration key 'spark.akka.frameSize' has been deprecated as of Spark 1.6",
    "2026-09-15 12:36:11,927 INFO parser: loaded mapping {n:x}bf0a (956 rows)",
    "tables:  23%|████                | {n}/410 [00:27<09:45, 50.53it/s]",
    "     ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━ {n}/30.8 MB 27.2 MB/s eta 0:00:00",
    "  Using cached idna-6.8.{n}-cp312-cp312-manylinux_2_17_x86_64.whl (3.3 MB)",
    "\tat org.apache.spark.scheduler.Task.run(Task.scala:{n})",
    "[Stage {n}:=====================>                    (41 + 8) / 200]",
)


def chatter(count: int, seed: int = 1) -> str:
    rng = random.Random(seed)
    return "\n".join(rng.choice(CHATTER).format(n=rng.randrange(10_000)) for _ in range(count))


DECIDING = [
    "java.lang.OutOfMemoryError: Java heap space",
    "Caused by: java.io.IOException: No space left on device",
    "26/05/12 21:51:42 ERROR TaskSchedulerImpl: Lost executor 6 on worker: Command exited with code 137",
    "26/05/12 21:51:41 INFO BlockManagerMasterEndpoint: Trying to remove executor 6, lost from BlockManagerMaster.",
    "org.apache.spark.sql.AnalysisException: [TABLE_OR_VIEW_NOT_FOUND] The table `a`.`b` cannot be found. SQLSTATE: 42P01",
    "Run 320599330796076 canceled by the owner from the runs page.",
    "2026-11-22 01:02:03 INFO scheduler: run superseded by newer run 4711, nothing to do",
    "[run history] last 30 runs: 29 SUCCESS, 1 FAILED (this one)",
    "[metrics] local_disk_free 5.9 TB -> 102 GB over 27h40m",
    "[audit] jobs.cancel by user jane from the jobs page",
    "parent run 583208080472109: repair 122807376950978 RUNNING, has started a new child run",
    "Killed",
    "state rows: 1.9e9 (two weeks ago 1.1e9); workers 4 x 28 GB at 97 %",
    "DQ FAILED: 17 orders without customer_id in silver.orders (threshold 0)",
    "ModuleNotFoundError: No module named 'h3'",
    "Library installation failed: No matching distribution found for tools==9.9",
    "External connection exception occurred: not a gzip file",
]


@pytest.mark.parametrize("line", DECIDING)
@pytest.mark.parametrize(("before", "after"), [(0, 0), (4000, 0), (10, 4000), (2000, 2000)])
def test_the_deciding_line_is_kept_wherever_it_stands(line: str, before: int, after: int) -> None:
    evidence = of(f"{chatter(before)}\n{line}\n{chatter(after, seed=2)}")

    assert line in evidence.text.split("\n")
    assert line in evidence.excerpt.split("\n")
    assert len(evidence.excerpt) < 2_000


def test_noise_is_gone() -> None:
    evidence = of(f"{chatter(500)}\n\x1b[31mValueError: bad \x1b[1mrow\x1b[0m\n{chatter(500)}")

    assert evidence.excerpt == "ValueError: bad row"
    assert evidence.causes == ("ValueError: bad row",)


def test_only_noise_leaves_the_last_lines() -> None:
    evidence = of(chatter(500))

    assert 0 < len(evidence.excerpt.split("\n")) <= 20


PY4J = """Traceback (most recent call last):
  File "/Workspace/Jobs/etl/load.py", line 12, in <module>
    df.save()
  File "/databricks/spark/python/pyspark/sql/readwriter.py", line 425, in save
    return self._df(self._jreader.json(path))
py4j.protocol.Py4JJavaError: An error occurred while calling o34.load.
: org.apache.spark.SparkException: [TASK_WRITE_FAILED] Task failed while writing rows. SQLSTATE: 58030
\tat org.apache.spark.sql.errors.QueryExecutionErrors$.taskFailed(QueryExecutionErrors.scala:781)
\tat com.acme.Loader.run(Loader.scala:44)
Caused by: java.lang.RuntimeException: wrapped
\t... 21 more
Caused by: java.nio.file.AccessDeniedException: PERMISSION_DENIED: no WRITE on main.silver.orders
\t... 30 more"""

STAGE = (
    "org.apache.spark.SparkException: Job aborted due to stage failure: Task 3 in stage 5.0 failed 4 times, most recent "
    "failure: Lost task 3.3 in stage 5.0 (TID 9) (10.1.2.3 executor 0): java.io.IOException: No space left on device"
)

CHAINED = """Traceback (most recent call last):
  File "/usr/lib/python3.11/urllib/request.py", line 1348, in do_open
    h.request(req.get_method())
ConnectionRefusedError: [Errno 111] Connection refused

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "/Workspace/Jobs/etl/rates.py", line 9, in <module>
    urllib.request.urlopen("http://rates.example/v1")
urllib.error.URLError: <urlopen error [Errno 111] Connection refused>"""

UDF = """org.apache.spark.SparkException: [FAILED_EXECUTE_UDF] User defined function failed. SQLSTATE: 39000
Caused by: org.apache.spark.api.python.PythonException: Traceback (most recent call last):
  File "/Workspace/Jobs/etl/step.py", line 10, in norm
    def norm(s): return s.strip()
AttributeError: 'NoneType' object has no attribute 'strip'

\tat org.apache.spark.api.python.BasePythonRunner$ReaderIterator.handlePythonException(PythonRunner.scala:572)"""

STREAM = """org.apache.spark.sql.streaming.StreamingQueryException: [STREAM_FAILED] Query [id = 1] terminated with exception: Job aborted. SQLSTATE: XXKST
Caused by: org.apache.kafka.common.errors.TimeoutException: Timeout of 60000ms expired"""


@pytest.mark.parametrize(
    ("text", "deepest", "frame"),
    [
        (PY4J, "PERMISSION_DENIED: no WRITE on main.silver.orders", "/Workspace/Jobs/etl/load.py"),
        (STAGE, "java.io.IOException: No space left on device", None),
        (CHAINED, "ConnectionRefusedError: [Errno 111] Connection refused", "/Workspace/Jobs/etl/rates.py"),
        (UDF, "AttributeError: 'NoneType' object has no attribute 'strip'", "/Workspace/Jobs/etl/step.py"),
        (STREAM, "org.apache.kafka.common.errors.TimeoutException: Timeout of 60000ms expired", None),
        (json.dumps({"message": PY4J, "code": 1}), "no WRITE on main.silver.orders", "/Workspace/Jobs/etl/load.py"),
        ("SQL compilation error:\nObject 'FIN.GL' does not exist", "Object 'FIN.GL' does not exist", None),
        ("Encountered an error:\nnot a gzip file, failed\nError: Command 'dbt deps' returned non-zero exit status 2.", "not a gzip file, failed", None),
    ],
)  # fmt: skip
def test_nested_causes_are_followed_to_the_deepest(text: str, deepest: str, frame: str | None) -> None:
    evidence = of(text)

    assert evidence.deepest_cause.endswith(deepest)
    assert (frame in (evidence.user_frame or "")) if frame else evidence.user_frame is None


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("26/06/18 01:13:08 ERROR Driver: Command failed", True),
        ("Task failed. Attempt 3 of 4. Run id 900480190784308", True),
        ("Task main failed with message: Workload failed, see run output for details. Run ID 5, attempt 3.", True),
        ("An error occurred while calling o12.save", True),
        ("Task load_dim exceeded its timeout.", False),
        ("exit code 137", False),
        ("26/06/18 01:13:08 ERROR KeyError: 'sku'", False),
        ("", False),
        ("12345", False),
    ],
)
def test_what_says_only_that_something_failed(line: str, *, expected: bool) -> None:
    assert says_nothing(line) is expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('  File "/Workspace/Jobs/x.py", line 5, in load', True),
        ("  File <command-123>:4, in clean(df)", True),
        ("\tat com.acme.Load.run(Load.scala:12)", True),
        ('  File "/usr/lib/python3.11/json/decoder.py", line 355, in raw_decode', False),
        ("\tat org.apache.spark.scheduler.Task.run(Task.scala:1)", False),
        ("at com.acme all is well", False),
        ("KeyError: 'sku'", False),
    ],
)
def test_frames_of_the_user_are_told_from_those_of_frameworks(line: str, *, expected: bool) -> None:
    assert is_own_frame(line) is expected


def test_a_tool_s_last_error_is_the_cause_where_nothing_else_is_named() -> None:
    evidence = of(
        "Library installation failed for pypi {\n}\nERROR: Could not find x==9\nERROR: No matching distribution for x==9"
    )

    assert evidence.causes == ("ERROR: No matching distribution for x==9",)


def test_causes_run_from_the_outermost_to_the_deepest() -> None:
    evidence = of(PY4J)

    assert [cause.rpartition(" ")[2] for cause in evidence.causes] == ["58030", "wrapped", "main.silver.orders"]
    assert evidence.error_classes == ("TASK_WRITE_FAILED",)
    assert evidence.sqlstates == ("58030",)
    assert "java.nio.file.AccessDeniedException" in evidence.exception_types
    assert "com.acme.Loader.run(Loader.scala:44)" in evidence.excerpt
    assert "readwriter.py" not in evidence.excerpt


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ("[DELTA_CONCURRENT_APPEND.ROW_LEVEL_CHANGES] x", ("DELTA_CONCURRENT_APPEND.ROW_LEVEL_CHANGES",)),
        ("[RequestId=d2 ErrorClass=QUOTA_EXCEEDED.UC_RESOURCE_QUOTA_EXCEEDED] x", ("QUOTA_EXCEEDED.UC_RESOURCE_QUOTA_EXCEEDED",)),
        ('403 - {"error_code":"PERMISSION_DENIED","message":"x"}', ("PERMISSION_DENIED",)),
        ("[INFO] [ERROR] [main] nothing", ()),
    ],
)  # fmt: skip
def test_error_classes(text: str, classes: tuple[str, ...]) -> None:
    assert of(text).error_classes == classes


def test_every_field_of_the_symptoms_is_read_short_errors_first() -> None:
    evidence = collect(
        Symptoms(
            error="error one failed",
            error_trace="trace two failed",
            logs="log three failed",
            state_message="state four failed",
            cluster_reason_code="SPOT_INSTANCE_TERMINATION",
            cluster_reason_type="CLOUD_FAILURE",
            cluster_reason_parameters={"instance_id": "i-1"},
            cluster_events=("NODES_LOST: 2 nodes lost",),
        )
    )

    assert evidence.text.split("\n") == [
        "error one failed",
        "state four failed",
        "trace two failed",
        "Cluster termination reason: SPOT_INSTANCE_TERMINATION (CLOUD_FAILURE). Parameters: instance_id:i-1",
        "NODES_LOST: 2 nodes lost",
        "log three failed",
    ]


def assert_bounded(evidence: Evidence) -> None:
    assert len(evidence.text.encode("utf-8")) <= TEXT_LIMIT
    assert len(evidence.excerpt) <= EXCERPT_LIMIT
    assert len(evidence.causes) <= 50


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "\n" * 5000, "\x00\x01\x02" * 1000, "\ud800 lone surrogate", "\ufffd" * 3000,
        "".join(map(chr, range(1, 800))), bytes(range(256)).decode("latin-1") * 50, "é".encode().decode("latin-1") * 999,
        "x" * 200_000, "a.b:" * 50_000, "Caused by: " * 20_000, "(" * 50_000, "at " * 50_000, "error " * 50_000,
        "\\n" * 50_000, "://:@" * 20_000, "password=" * 10_000, "-----BEGIN PRIVATE KEY-----\n" * 3_000, "=" * 50_000,
        "-----END PRIVATE KEY-----\n" * 3_000, "A" * 300 + "\n" + "A" * 90_000, "1.2.3." * 20_000, "%25" * 30_000,
        "\x1b[" * 30_000, "[" * 50_000, "key " * 30_000, "eyJ" * 30_000, "File \"" * 20_000,
    ],
    ids=range(29),
)  # fmt: skip
def test_whatever_comes_in_an_evidence_comes_out(text: str) -> None:
    assert_bounded(of(text))


def test_ten_thousand_nested_causes() -> None:
    causes = "\n".join(f"Caused by: java.io.IOException: layer {n} of {n * 7:x}" for n in range(10_000))
    evidence = of(f"java.lang.Error: top\n{causes}\nCaused by: java.net.ConnectException: the root")

    assert_bounded(evidence)
    assert evidence.deepest_cause.endswith("the root")


def test_five_megabytes() -> None:
    log = chatter(60_000)
    evidence = collect(Symptoms(logs=f"{log[:2_500_000]}\nValueError: in the middle\n{log[2_500_000:]}"))

    assert_bounded(evidence)
    assert "ValueError: in the middle" in evidence.excerpt


def test_a_line_of_a_megabyte_is_broken_between_tokens_only() -> None:
    secret = KINDS["databricks-pat"][1](random.Random(3))
    filler = ", ".join(f"field_{n}={n * 7919}" for n in range(40_000))
    evidence = of(f"failed: token {secret} {filler} failed with java.io.IOException: disk token {secret}")

    assert_bounded(evidence)
    assert secret not in evidence.text
    assert "java.io.IOException: disk" in evidence.excerpt


@given(st.text(max_size=2_000), st.text(max_size=2_000), st.integers(0, 3))
@settings(max_examples=200, deadline=None)
def test_collect_never_raises_and_is_bounded(error: str, logs: str, copies: int) -> None:
    assert_bounded(collect(Symptoms(error=error, logs=(logs + "\n") * copies)))


@given(st.sampled_from(sorted(KINDS)), st.integers(0, 2**32), st.integers(0, 300), st.integers(0, 300))
@settings(max_examples=200, deadline=None)
def test_no_secret_survives_the_selection(kind: str, seed: int, before: int, after: int) -> None:
    text, generate = KINDS[kind]
    secret = generate(random.Random(seed))
    line = f"java.io.IOException: request failed: {text.format(secret)}"
    evidence = of("\n".join((chatter(before, seed), line, chatter(after, seed + 1), f"Error: {line}")))

    for said in (evidence.text, evidence.excerpt, *evidence.causes):
        assert not leaked(secret, said)
