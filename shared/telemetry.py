"""Traces, metrics and log fields, by OpenTelemetry's API alone: without a provider all of it does nothing.

In Azure the worker sets the provider up by itself (`PYTHON_APPLICATIONINSIGHTS_ENABLE_TELEMETRY`; host.json:
`telemetryMode`). Names follow the OpenTelemetry semantic conventions 1.44.0 for messaging, and those for generative AI
as that version last had them, before they moved to a repository of their own; both have the status Development. The
agent's own metrics begin with `remediation.`. Nothing here may hold a message's body, an error text or a prompt: spans
carry the names of exceptions, never their texts.
"""

import logging
import time
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any

from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.metrics import Counter, Histogram
from opentelemetry.metrics import _Gauge as Gauge
from opentelemetry.trace import Link, Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

SCOPE = "failure-agent"
SCHEMA = "https://opentelemetry.io/schemas/1.44.0"

TRACEPARENT = "traceparent"
DIAGNOSTIC_ID = "Diagnostic-Id"
"""Application properties that carry the trace context: the W3C's name, and the older one of Azure's clients."""

SERVICE_BUS = "servicebus"
AZURE_OPENAI = "azure.ai.openai"

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 30, 60, 120, 240)
MODEL_SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
MODEL_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864)
"""Bounds of histogram buckets: the conventions' own, and longer times for a message, which may take four minutes."""

_propagator = TraceContextTextMapPropagator()


# ── log fields ──────────────────────────────────────────────────────────────────────────────────────────────────────

_fields: ContextVar[Mapping[str, object]] = ContextVar("log_fields", default={})  # noqa: B039 - never changed in place


class StepLogger(logging.LoggerAdapter[logging.Logger]):
    """Adds to each record, as `extra`, the fields of the step that is being carried out; a record's own fields win."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:  # noqa: ANN401
        return msg, {**kwargs, "extra": {**_fields.get(), **(kwargs.get("extra") or {})}}


def logger(name: str) -> StepLogger:
    """The logger of a module whose records tell which message, run and incident they are about."""
    return StepLogger(logging.getLogger(name))


@contextmanager
def log_fields(**fields: object) -> Iterator[None]:
    """Fields of all records that are logged inside, in threads with an inherited context too."""
    token = _fields.set({**_fields.get(), **fields})
    try:
        yield
    finally:
        _fields.reset(token)


# ── traces ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def tracer() -> trace.Tracer:
    return trace.get_tracer(SCOPE, schema_url=SCHEMA)


@contextmanager
def step_of_timer(name: str, *, host_traceparent: str = "") -> Iterator[None]:
    """One tick of a timer function, under the host's own span of the invocation where it gave one."""
    parent = context_of({TRACEPARENT: host_traceparent})
    with _span(name, kind=SpanKind.INTERNAL, context=parent, attributes={"remediation.step": name}):
        yield


@contextmanager
def sending(queue: str, message_ids: Sequence[str]) -> Iterator[None]:
    """The sending of messages to a queue; `trace_properties` inside are what the messages are to carry."""
    attributes: dict[str, str | int] = _messaging(queue, "send")
    if len(message_ids) == 1:
        attributes["messaging.message.id"] = message_ids[0]
    else:
        attributes["messaging.batch.message_count"] = len(message_ids)
    with _span(f"send {queue}", kind=SpanKind.PRODUCER, attributes=attributes):
        yield


def trace_properties() -> dict[str, str]:
    """Application properties that make the present span the parent of what the receiver does; none outside a trace."""
    carrier: dict[str, str] = {}
    _propagator.inject(carrier)
    if traceparent := carrier.get(TRACEPARENT):
        carrier[DIAGNOSTIC_ID] = traceparent
    return carrier


def kept_trace_properties(properties: Mapping[str, object]) -> dict[str, str]:
    """What a copy of the message takes over, so that it stays in the trace that the message came with."""
    names = (TRACEPARENT, "tracestate", DIAGNOSTIC_ID)
    return {name: value for name in names if isinstance(value := properties.get(name), str)}


@contextmanager
def processing(
    queue: str,
    *,
    message_id: str,
    delivery_count: int,
    properties: Mapping[str, object],
    host_traceparent: str = "",
) -> Iterator[None]:
    """A message's step: it continues the trace of the sender, and is linked to the host's span of the invocation."""
    attributes = _messaging(queue, "process")
    began = time.monotonic()
    error_type = ""
    try:
        with _span(
            f"process {queue}",
            kind=SpanKind.CONSUMER,
            context=context_of(properties),
            links=links_to(host_traceparent),
            attributes={
                **attributes,
                "messaging.message.id": message_id,
                "messaging.servicebus.message.delivery_count": delivery_count,
            },
        ):
            yield
    except BaseException as error:
        error_type = type(error).__name__
        raise
    finally:
        labels = {**attributes, "error.type": error_type} if error_type else attributes
        _instruments().process_duration.record(time.monotonic() - began, labels)


def context_of(properties: Mapping[str, object]) -> Context | None:
    """The trace context that a message brought along; None, which is the present one, where it has none to be read."""
    traceparent = properties.get(TRACEPARENT) or properties.get(DIAGNOSTIC_ID)
    carrier = {TRACEPARENT: str(traceparent or ""), "tracestate": str(properties.get("tracestate") or "")}
    found = _propagator.extract(carrier, Context())
    return found if trace.get_current_span(found).get_span_context().is_valid else None


def links_to(traceparent: str) -> list[Link]:
    context = context_of({TRACEPARENT: traceparent})
    return [Link(trace.get_current_span(context).get_span_context())] if context is not None else []


def name_in_span(**ids: object) -> None:
    """Say in the present span what it is about: ids, never texts."""
    span = trace.get_current_span()
    for name, value in ids.items():
        if value is not None:
            span.set_attribute(f"remediation.{name}", str(value))


def _messaging(queue: str, operation: str) -> dict[str, str | int]:
    return {
        "messaging.system": SERVICE_BUS,
        "messaging.destination.name": queue,
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
    }


@contextmanager
def _span(
    name: str,
    *,
    kind: SpanKind,
    attributes: Mapping[str, str | int],
    context: Context | None = None,
    links: Sequence[Link] = (),
) -> Iterator[Span]:
    """A span that on failure carries the exception's name; its text, which could quote anything, stays out."""
    with tracer().start_as_current_span(
        name,
        context=context,
        kind=kind,
        attributes=dict(attributes),
        links=links,
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        try:
            yield span
        except BaseException as error:
            span.set_status(StatusCode.ERROR, type(error).__name__)
            span.set_attribute("error.type", type(error).__name__)
            raise


# ── the model ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class ModelCall:
    """What became of a question to the model, filled in by the one who asks. Counts of tokens None = not told."""

    response_model: str = ""
    finish_reasons: tuple[str, ...] = ()
    input_tokens: int | None = None
    output_tokens: int | None = None


@contextmanager
def asking_model(model: str, *, max_tokens: int) -> Iterator[ModelCall]:
    """One question to a chat model: a span and the two metrics of the conventions. Neither prompt nor answer."""
    labels: dict[str, str | int] = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": AZURE_OPENAI,
        "gen_ai.request.model": model,
    }
    asked = {**labels, "gen_ai.output.type": "json", "gen_ai.request.max_tokens": max_tokens}
    call = ModelCall()
    began = time.monotonic()
    error_type = ""
    try:
        with _span(f"chat {model}", kind=SpanKind.CLIENT, attributes=asked) as span:
            try:
                yield call
            finally:
                for name, value in _told(call).items():
                    span.set_attribute(name, value)
    except BaseException as error:
        error_type = type(error).__name__
        raise
    finally:
        if call.response_model:
            labels["gen_ai.response.model"] = call.response_model
        instruments = _instruments()
        for kind, tokens in (("input", call.input_tokens), ("output", call.output_tokens)):
            if tokens is not None:
                instruments.token_usage.record(tokens, {**labels, "gen_ai.token.type": kind})
        if error_type:
            labels["error.type"] = error_type
        instruments.operation_duration.record(time.monotonic() - began, labels)


def _told(call: ModelCall) -> dict[str, str | int | tuple[str, ...]]:
    told: dict[str, str | int | tuple[str, ...] | None] = {
        "gen_ai.response.model": call.response_model or None,
        "gen_ai.response.finish_reasons": call.finish_reasons or None,
        "gen_ai.usage.input_tokens": call.input_tokens,
        "gen_ai.usage.output_tokens": call.output_tokens,
    }
    return {name: value for name, value in told.items() if value is not None}


# ── metrics ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Instruments:
    """All metrics, with unit and meaning."""

    def __init__(self, meter: metrics.Meter) -> None:
        def counter(name: str, unit: str, description: str) -> Counter:
            return meter.create_counter(f"remediation.{name}", unit, description)

        def gauge(name: str, unit: str, description: str) -> Gauge:
            return meter.create_gauge(f"remediation.{name}", unit, description)

        def histogram(name: str, unit: str, description: str, bounds: Sequence[float]) -> Histogram:
            return meter.create_histogram(name, unit, description, explicit_bucket_boundaries_advisory=bounds)

        self.duplicate_actions = gauge("duplicate_actions", "{action}", "Retries found twice by the last audit.")
        self.orphan_actions = gauge("orphan_actions", "{action}", "Claims without their retry, by the last audit.")
        self.unledgered_actions = gauge(
            "unledgered_actions",
            "{action}",
            "Retries beside a claim that the history does not know, by the last audit.",
        )
        self.incident_age = gauge("incident.age", "s", "Time since the oldest open incident was detected.")
        self.breaker_state = gauge("breaker.state", "{breaker}", "Causes whose circuit breaker is open.")
        self.fallback_ratio = meter.create_histogram(
            "remediation.llm.fallback_ratio",
            "1",
            "0 where the model decided, 1 where rules had to in its place: the mean is the ratio.",
            explicit_bucket_boundaries_advisory=(0, 1),
        )
        self.redaction_hits = counter("redaction.hits", "{secret}", "Secrets and personal data replaced in evidence.")
        self.mail_sent = counter("mail.sent", "{mail}", "Mails handed over to the e-mail service.")
        self.spend_reserved = counter("spend.reserved", "h", "Hours of retried runs, times their price factor.")
        self.parked = counter("parked", "{incident}", "Incidents that ended without anybody having been told.")
        self.decisions = counter("decisions", "{decision}", "Decisions made, by what they rest on.")
        self.heartbeat = counter("heartbeat", "{tick}", "Ticks of the timers that came to their end.")
        self.process_duration = histogram(
            "messaging.process.duration", "s", "Duration of processing operation.", SECONDS
        )
        self.token_usage = histogram(
            "gen_ai.client.token.usage", "{token}", "Number of input and output tokens used.", MODEL_TOKENS
        )
        self.operation_duration = histogram(
            "gen_ai.client.operation.duration", "s", "GenAI operation duration.", MODEL_SECONDS
        )


@cache
def _instruments() -> Instruments:
    """Made once; they start to count as soon as there is a provider."""
    return Instruments(metrics.get_meter(SCOPE, schema_url=SCHEMA))


def decided(source: str) -> None:
    """A decision that rests on `rules`, `history`, `model` or, where the model had been wanted, `rules_fallback`."""
    _instruments().decisions.add(1, {"source": source})


def model_wanted(*, fell_back: bool) -> None:
    """The model was wanted for a decision, and gave an answer that counts or did not."""
    _instruments().fallback_ratio.record(int(fell_back))


def redacted(count: int) -> None:
    if count:
        _instruments().redaction_hits.add(count)


def mail_sent(kind: str) -> None:
    """A mail of kind `escalation`, `suggestion` or `digest` was handed over."""
    _instruments().mail_sent.add(1, {"kind": kind})


def parked(reason: str) -> None:
    """People could not be told, about an incident or a job left changed; `reason` is a fixed word, never a text."""
    _instruments().parked.add(1, {"reason": reason})


def spend_reserved(workspace: str, hours: float) -> None:
    """A retry was let through that will probably take so many hours, times its price factor."""
    _instruments().spend_reserved.add(hours, {"workspace": workspace})


def breakers_open(workspace: str, count: int) -> None:
    _instruments().breaker_state.set(count, {"workspace": workspace})


def oldest_incident(workspace: str, seconds: float) -> None:
    """The age of the workspace's oldest open incident; 0 where none is open."""
    _instruments().incident_age.set(seconds, {"workspace": workspace})


def audited(workspace: str, *, duplicates: int, orphans: int, unledgered: int) -> None:
    """What the audit of a workspace counted in the hours that it looks back on."""
    labels = {"workspace": workspace}
    _instruments().duplicate_actions.set(duplicates, labels)
    _instruments().orphan_actions.set(orphans, labels)
    _instruments().unledgered_actions.set(unledgered, labels)


def beat(step: str) -> None:
    """The timer function of that name came to its end."""
    _instruments().heartbeat.add(1, {"step": step})
