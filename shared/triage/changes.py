"""What a retry may change, and to what: bounded, and only where the job has declared that it may be changed.

Carried out today: job parameters. Every other change is named in the mail for a person to make.
"""

from collections.abc import Mapping

from shared.domain import Change, ChangeKind, RunFacts

SMALLER = ("batch", "chunk", "parallel", "concurren", "threads", "workers", "page_size", "fetch")
LONGER = ("timeout", "wait", "deadline")
HIGHEST_TIMEOUT_SECONDS = 86_400


def settle(changes: tuple[Change, ...], facts: RunFacts) -> tuple[Change, ...] | None:
    """The changes with the values that a retry of this run would use; None where one of them cannot be carried out."""
    settled = tuple(settle_parameter(change, facts) for change in changes)
    return tuple(change for change in settled if change) if settled and all(settled) else None


def settle_parameter(change: Change, facts: RunFacts) -> Change | None:
    """A declared job parameter with its next value: sizes and parallelism halve, waits double."""
    if change.kind is not ChangeKind.PARAM or facts.job is None or change.name not in facts.job.declared_parameters:
        return None
    current = facts.run.job_parameters.get(change.name, facts.job.declared_parameters[change.name])
    value = next_value(change.name, current)
    return Change(ChangeKind.PARAM, change.name, value) if value is not None else None


def next_value(name: str, current: str) -> str | None:
    """The value to try next, or None where there is none to try (not a number, or already at the bound)."""
    try:
        number = int(current)
    except ValueError:
        return None
    lowered = name.lower()
    if any(word in lowered for word in LONGER):
        longer = min(number * 2, HIGHEST_TIMEOUT_SECONDS)
        return str(longer) if longer > number > 0 else None
    if any(word in lowered for word in SMALLER):
        return str(number // 2) if number >= 2 else None
    return None


def parameters_of(changes: tuple[Change, ...]) -> Mapping[str, str]:
    """Job parameters by name, of those changes that are job parameters."""
    return {c.name: c.value for c in changes if c.kind is ChangeKind.PARAM and c.value is not None}


def suggested(changes: tuple[Change, ...]) -> dict[str, str] | None:
    """The changes as a flat dict for people and programs: `{"worker_memory_up": "", "param:batch_size": "500"}`."""
    return {change.word: change.value or "" for change in changes} or None
