"""The worker protocol's messages as plain Python objects, so that neither gRPC nor protobuf is needed.

``azure-functions-runtime`` builds and reads its messages through a namespace that the host hands in (``PROTOS``). It
asks only for attribute access and ``WhichOneof``. Names and numbers are those of FunctionRpc.proto in
azure-functions-language-worker-protobuf.
"""

from __future__ import annotations

from types import SimpleNamespace


class TypedData(SimpleNamespace):
    """One value: at most one of ``string, json, bytes, http, int, double``; none of them is an empty value."""

    def WhichOneof(self, _group: str) -> str | None:  # noqa: N802 - protobuf's own spelling
        """Name of the field that is set."""
        return next(iter(vars(self)), None)


class ParameterBinding(SimpleNamespace):
    """One named argument or output: ``name`` and ``data`` (a TypedData)."""

    def WhichOneof(self, _group: str) -> str:  # noqa: N802 - protobuf's own spelling
        """Always by value; shared memory is not offered."""
        return "data"


class RpcHttp(SimpleNamespace):
    """A request (method, url, headers, params, query, body) or response (status_code, headers, cookies, body)."""

    def __init__(self, **fields: object) -> None:
        super().__init__(**({"headers": {}, "params": {}, "query": {}, "cookies": None, "body": TypedData()} | fields))


class RpcHttpCookie(SimpleNamespace):
    """A cookie of a response; the nullable fields are None or hold a ``value``."""

    SameSite = SimpleNamespace(**{"None": 0, "Lax": 1, "Strict": 2, "ExplicitNone": 3})


class StatusResult(SimpleNamespace):
    """How a request to the worker ended, with the exception if it failed."""

    Failure = 0
    Success = 1

    def __init__(self, *, status: int, exception: SimpleNamespace | None = None) -> None:
        super().__init__(status=status, exception=exception)


PROTOS = SimpleNamespace(
    TypedData=TypedData,
    ParameterBinding=ParameterBinding,
    RpcHttp=RpcHttp,
    RpcHttpCookie=RpcHttpCookie,
    StatusResult=StatusResult,
    BindingInfo=type("BindingInfo", (SimpleNamespace,), {"out": 1, "inout": 2, "undefined": 0}),
    **dict.fromkeys(
        (
            "FunctionMetadataResponse",
            "InvocationResponse",
            "NullableBool",
            "NullableDouble",
            "NullableString",
            "NullableTimestamp",
            "RpcException",
            "RpcFunctionMetadata",
            "RpcRetryOptions",
            "Timestamp",
            "WorkerInitResponse",
            "WorkerMetadata",
        ),
        SimpleNamespace,
    ),
)
