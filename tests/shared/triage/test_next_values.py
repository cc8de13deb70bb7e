"""The values to try next, and how far they go."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.triage.next_values import (
    FIXED,
    FURTHEST,
    HIGHEST_TIMEOUT_SECONDS,
    STEPPED,
    next_parameter,
    next_spark_value,
    quantity,
)


@pytest.mark.parametrize(
    ("name", "current", "want"),
    [
        ("batch_size", "1000", "500"),
        ("batch_size", "3", "1"),
        ("batch_size", "1", None),
        ("BATCH_SIZE", "10", "5"),
        ("chunk_rows", "8", "4"),
        ("max_parallel", "16", "8"),
        ("concurrency", "4", "2"),
        ("num_threads", "2", "1"),
        ("workers", "0", None),
        ("fetch_rows", "-4", None),
        ("timeout_seconds", "600", "1200"),
        ("max_wait", "1", "2"),
        ("fetch_timeout", "30", "60"),
        ("timeout", "50000", str(HIGHEST_TIMEOUT_SECONDS)),
        ("timeout", str(HIGHEST_TIMEOUT_SECONDS), None),
        ("timeout", "0", None),
        ("timeout", "-1", None),
        ("batch_size", "all", None),
        ("batch_size", "", None),
        ("batch_size", "1.5", None),
        ("batch_size", "9" * 5000, None),
        ("day", "20", None),
    ],
)
def test_the_next_value_of_a_job_parameter(name: str, current: str, want: str | None) -> None:
    assert next_parameter(name, current) == want


@given(name=st.sampled_from(["batch_size", "threads", "timeout", "wait", "day"]), number=st.integers())
def test_sizes_only_shrink_and_waits_only_grow_to_the_bound(name: str, number: int) -> None:
    value = next_parameter(name, str(number))

    if value is not None and name in ("timeout", "wait"):
        assert number < int(value) <= min(2 * number, HIGHEST_TIMEOUT_SECONDS)
    elif value is not None:
        assert 1 <= int(value) < number


@pytest.mark.parametrize(
    ("name", "current", "want"),
    [
        ("spark.driver.maxResultSize", None, "8g"),
        ("spark.driver.maxResultSize", "4g", "8g"),
        ("spark.driver.maxResultSize", "4096m", "8192m"),
        ("spark.driver.maxResultSize", " 4 GB ", "8gb"),
        ("spark.driver.maxResultSize", "1073741824", "2147483648"),
        ("spark.driver.maxResultSize", "12g", "16g"),
        ("spark.driver.maxResultSize", "16g", None),
        ("spark.driver.maxResultSize", "64g", None),
        ("spark.driver.maxResultSize", "0", None),
        ("spark.driver.maxResultSize", "-1", None),
        ("spark.driver.maxResultSize", "1.5g", None),
        ("spark.driver.maxResultSize", "much", None),
        ("spark.driver.maxResultSize", "4 parsecs", None),
        ("spark.sql.shuffle.partitions", None, "400"),
        ("spark.sql.shuffle.partitions", "2000", "4000"),
        ("spark.sql.shuffle.partitions", "5000", "8000"),
        ("spark.sql.shuffle.partitions", "auto", None),
        ("spark.sql.broadcastTimeout", None, "600"),
        ("spark.sql.broadcastTimeout", "2400", "3600"),
        ("spark.sql.broadcastTimeout", "10min", "20min"),
        ("spark.sql.broadcastTimeout", "-1", None),
        ("spark.sql.autoBroadcastJoinThreshold", None, "-1"),
        ("spark.sql.autoBroadcastJoinThreshold", "100m", "-1"),
        ("spark.sql.autoBroadcastJoinThreshold", "-1", None),
        ("spark.sql.codegen.wholeStage", None, "false"),
        ("spark.sql.codegen.wholeStage", "False", None),
        ("spark.executor.memoryOverhead", None, "1536m"),
        ("spark.executor.memoryOverhead", "512", "768"),
        ("spark.executor.memoryOverhead", "3g", "4608m"),
        ("spark.executor.memoryOverhead", "6g", "8g"),
        ("spark.kryoserializer.buffer.max", None, "128m"),
        ("spark.kryoserializer.buffer.max", "1g", "2047m"),
        ("spark.kryoserializer.buffer.max", "2047m", None),
        ("spark.connect.grpc.maxInboundMessageSize", None, "256m"),
        ("spark.rpc.message.maxSize", None, "256"),
        ("spark.rpc.message.maxSize", "1500", "2047"),
        ("spark.sql.files.maxPartitionBytes", None, "64m"),
        ("spark.sql.files.maxPartitionBytes", "134217728b", "67108864b"),
        ("spark.sql.files.maxPartitionBytes", "134217728", "67108864"),
        ("spark.sql.files.maxPartitionBytes", "1g", "512m"),
        ("spark.sql.files.maxPartitionBytes", "16m", None),
        ("spark.network.timeout", None, "240s"),
        ("spark.network.timeout", "15m", "20m"),
        ("spark.network.timeout", "800s", "1200s"),
        ("spark.databricks.hive.metastore.client.pool.size", None, "10"),
        ("spark.databricks.hive.metastore.client.pool.size", "1", None),
        ("spark.executor.memory", "8g", None),
        ("spark.jars", None, None),
    ],
)
def test_the_next_value_of_a_spark_setting(name: str, current: str | None, want: str | None) -> None:
    assert next_spark_value(name, current, FURTHEST.get(name, "")) == want


def test_the_operators_bound_is_kept() -> None:
    assert next_spark_value("spark.driver.maxResultSize", "4g", "6g") == "6g"
    assert next_spark_value("spark.driver.maxResultSize", "4g", "2g") is None
    assert next_spark_value("spark.driver.maxResultSize", "4g", "nonsense") is None


def test_every_setting_has_a_bound_and_a_kind() -> None:
    assert set(FURTHEST) == set(STEPPED) | set(FIXED)
    for name, setting in STEPPED.items():
        assert quantity(setting.default, setting), name
        assert next_spark_value(name, None, FURTHEST[name]), name


@given(
    name=st.sampled_from(sorted(STEPPED)),
    number=st.integers(-10, 10**12),
    unit=st.sampled_from(["", "b", "k", "kb", "m", "mb", "g", "ms", "s", "min", "h", "x"]),
)
def test_a_step_goes_its_way_and_never_past_the_bound(name: str, number: int, unit: str) -> None:
    setting = STEPPED[name]
    before, bound = quantity(f"{number}{unit}", setting), quantity(FURTHEST[name], setting)

    text = next_spark_value(name, f"{number}{unit}", FURTHEST[name])

    if text is not None:
        after = quantity(text, setting)
        assert before
        assert after
        assert bound
        if setting.factor > 1:
            assert before < after <= min(bound, before * setting.factor)
        else:
            assert max(bound, before * setting.factor) - setting.units.get(unit, 1) < after < before
