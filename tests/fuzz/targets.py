"""What is fuzzed: functions that read what others wrote. Each must return what it promises, whatever it gets."""

import string
from collections.abc import Callable, Mapping

from shared.azure_openai_client import CHANGE_WORDS, checked
from shared.domain import Category, DecisionKind, Symptoms
from shared.errors import InvalidMessageError
from shared.messages import EmailMessage, FailedRunMessage, RetryMessage
from shared.triage import rules
from shared.triage.evidence import EXCERPT_LIMIT, TEXT_LIMIT, collect
from shared.triage.fingerprint import fingerprint
from shared.triage.redaction import redact
from tests.builders import build_evidence

SEPARATOR = "\x1f"
"""Parts the texts of one failure."""


def fuzz_collect(data: bytes) -> None:
    evidence = collect(symptoms_in(data))
    assert size_of(evidence.text) <= TEXT_LIMIT
    assert size_of(evidence.excerpt) <= EXCERPT_LIMIT
    assert all("\n" not in cause for cause in evidence.causes)


def fuzz_redact(data: bytes) -> None:
    text = text_in(data)
    assert redact(text).count("\n") <= text.count("\n")


def fuzz_fingerprint(data: bytes) -> None:
    evidence = collect(symptoms_in(data))
    mark = fingerprint(evidence)
    assert len(mark) == 16
    assert set(mark) <= set(string.hexdigits)
    assert mark == fingerprint(evidence)


def fuzz_rules(data: bytes) -> None:
    symptoms = symptoms_in(data)
    diagnosis = rules.diagnose(symptoms, collect(symptoms))
    assert diagnosis.recommended in DecisionKind
    assert 0 <= diagnosis.confidence <= 1
    assert diagnosis.rules
    assert bool(diagnosis.changes) <= (diagnosis.recommended is DecisionKind.RETRY_WITH_PARAMS)


def fuzz_answer(data: bytes) -> None:
    evidence = build_evidence()
    answer = checked(text_in(data), evidence)
    if answer is not None:
        assert answer.category in Category
        assert 0 <= answer.confidence <= 1
        assert {change.word for change in answer.changes} <= set(CHANGE_WORDS)
        assert (answer.recommended is DecisionKind.RETRY_WITH_PARAMS) is bool(answer.changes)
        assert answer.quotes
        assert all(quote in evidence.excerpt for quote in answer.quotes)


def fuzz_messages(data: bytes) -> None:
    for kind in (FailedRunMessage, RetryMessage, EmailMessage):
        try:
            message = kind.parse(data)
        except InvalidMessageError:
            continue
        assert kind.parse(message.to_json().encode()) == message
        assert len(message.message_id) <= 128


TARGETS: Mapping[str, Callable[[bytes], None]] = {
    "evidence": fuzz_collect,
    "redaction": fuzz_redact,
    "fingerprint": fuzz_fingerprint,
    "rules": fuzz_rules,
    "answer": fuzz_answer,
    "messages": fuzz_messages,
}


def text_in(data: bytes) -> str:
    """The bytes as a text. What is not UTF-8 becomes lone surrogates, which Python texts may hold and UTF-8 may not."""
    return data.decode("utf-8", "surrogateescape")


def size_of(text: str) -> int:
    return len(text.encode("utf-8", "replace"))


def symptoms_in(data: bytes) -> Symptoms:
    error, trace, logs, *rest = (*text_in(data).split(SEPARATOR), "", "", "")
    return Symptoms(error=error, error_trace=trace, logs=logs, state_message="".join(rest))


SEEDS: Mapping[str, tuple[bytes, ...]] = {
    "evidence": (
        b"java.lang.RuntimeException: outer\n\tat a.B.c(B.scala:1)\nCaused by: java.io.IOException: in\n\t... 3 more",
        b"KeyError: 'x'\x1fTraceback (most recent call last):\n  File \"/a/b.py\", line 3\n    g()\x1f12:00:01 INFO x",
        b'{"error": "a\\n\\tat b\\n\\tat c"}\x1b[31m ERROR [DELTA_CONCURRENT_APPEND] SQLSTATE: 2D521',
    ),
    "redaction": (
        b"token=dapi0123456789abcdef0123456789abcdef AccountKey=aaaa== sig=%2Babc%3D Bearer eyJhbGciOi.eyJzdWIi.c2ln",
        b"jdbc:postgresql://h:5432/d?user=u&password=p https://u:p@h/x someone@example.com 10.1.2.3",
        b"-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----",
    ),
    "answer": (
        b'{"category":"network","decision":"RETRY","changes":[],"confidence":0.9,'
        b'"quotes":["java.lang.OutOfMemoryError: Java heap space"],"reason":"r"}',
        b'{"category":"disk","decision":"RETRY_WITH_PARAMS","changes":["more_disk"],"confidence":1e999,"quotes":[],"reason":""}',
        b"[" * 500,
    ),
    "messages": (
        b'{"schema_version":1,"workspace":"w","run_id":1,"failure_id":"w:1:original","source":"timer"}',
        b'{"schema_version":1,"workspace":"w","run_id":1,"failure_id":"w:1:original","attempt":1}',
        b'{"schema_version":1,"workspace":"w","run_id":1,"failure_id":"w:1:original","kind":"escalation"}',
    ),
}
"""What the fuzzer starts from; `rules` and `fingerprint` read the same kind of text as `evidence`."""


def seeds_of(name: str) -> tuple[bytes, ...]:
    return SEEDS.get(name, SEEDS["evidence"])
