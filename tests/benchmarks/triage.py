"""Ratios and times of the triage's reading of texts: `python -m tests.benchmarks.triage`.

Times depend on the machine, so they are printed and not tested.
"""

import random
import sys
import time
from collections.abc import Callable, Iterator

from shared.domain import Symptoms
from shared.triage.evidence import TEXT_LIMIT, collect
from shared.triage.redaction import redact
from tests.shared.triage.test_evidence import CHATTER, chatter
from tests.shared.triage.test_fingerprint import precision_and_recall
from tests.shared.triage.test_redaction import CARRIERS, READABLE, cases, leaked

MEGABYTE = 1_000_000


def main() -> None:
    """Print one figure per line."""
    sys.stdout.writelines(f"{name:<58}{value:>12}\n" for name, value in figures())


def figures() -> Iterator[tuple[str, str]]:
    """(what is measured, its value with the unit)."""
    yield from _redaction_figures()
    precision, recall, _ = precision_and_recall()
    yield "fingerprint pairs: precision", f"{precision:.3f}"
    yield "fingerprint pairs: recall", f"{recall:.3f}"
    for name, log in logs().items():
        evidence = collect(Symptoms(logs=log))
        text = log[:TEXT_LIMIT] if name == "chatter" else evidence.text
        yield f"collect, 1 MB of {name}", milliseconds(lambda log=log: collect(Symptoms(logs=log)))  # type: ignore[misc]
        yield f"redact, {len(text) // 1024} KB of it", milliseconds(lambda text=text: redact(text))  # type: ignore[misc]
    five = logs()["chatter"] * 5
    yield "collect, 5 MB of chatter", milliseconds(lambda: collect(Symptoms(logs=five)), repeats=2)


def _redaction_figures() -> Iterator[tuple[str, str]]:
    total = missed = 0
    for carrier in CARRIERS:
        every = cases(carrier)
        leaks = sum(leaked(secret, redact(text)) for _, secret, text in every)
        total, missed = total + len(every), missed + leaks
        yield f"redaction recall, {carrier.strip('_').replace('_', ' ')}", f"{1 - leaks / len(every):.3f}"
    yield f"redaction recall, all {total} texts", f"{1 - missed / total:.3f}"
    changed = sum(redact(line) != line for line in (*READABLE, *clean_lines()))
    yield "redaction: clean lines changed", f"{changed} of {len(READABLE) + 2_000}"


def clean_lines() -> list[str]:
    """2,000 log lines without secrets or addresses."""
    return [line for line in chatter(4_000).split("\n") if "10.2.3.4" not in line][:2_000]


def logs() -> dict[str, str]:
    """Logs of one megabyte: all chatter; half errors; errors of which no two are alike."""
    rng = random.Random(5)
    words = ["".join(rng.choices("abcdefghij", k=6)) for _ in range(2_000)]
    errors = [
        f"26/10/19 11:01:18 ERROR {rng.choice(words)}: request to 10.1.2.{n % 250} failed with "
        + " ".join(rng.choices(words, k=8))
        for n in range(9_000)
    ]
    mixed = [rng.choice(CHATTER).format(n=n) if n % 2 else errors[n] for n in range(9_000)]
    return {
        name: _megabyte(lines)
        for name, lines in (("chatter", [chatter(9_000)]), ("half errors", mixed), ("unlike errors", errors))
    }


def _megabyte(lines: list[str]) -> str:
    text = "\n".join(lines)
    return (text * (MEGABYTE // len(text) + 1))[:MEGABYTE]


def milliseconds(call: Callable[[], object], repeats: int = 5) -> str:
    """The best of some runs."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return f"{best * 1000:.1f} ms"


if __name__ == "__main__":
    main()
