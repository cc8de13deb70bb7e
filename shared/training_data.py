"""Training files for fine-tuning, from decisions that proved right. Pure but for reading and writing the two files."""

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from shared.azure_openai_client import training_example
from shared.domain import DecisionKind
from shared.errors import PermanentError
from shared.triage.redaction import redact


class PastDecision(BaseModel):
    """One entry of a run history file; further fields are ignored."""

    model_config = ConfigDict(extra="ignore")

    error_message: str
    decision: DecisionKind
    reason: str


def write_training_data(run_history_file: Path, output_file: Path) -> int:
    """Turn a JSON array of past decisions into chat-format JSONL; how many lines. Secrets are removed from the texts.

    Raises PermanentError naming the entries that are wrong.
    """
    try:
        entries = json.loads(run_history_file.read_text(encoding="utf-8"))
        past = TypeAdapter(list[PastDecision]).validate_python(entries)
    except FileNotFoundError:
        raise PermanentError(f"{run_history_file}: no such file") from None
    except json.JSONDecodeError as error:
        raise PermanentError(f"{run_history_file}: not JSON ({error})") from None
    except ValidationError as error:
        where = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:10])
        raise PermanentError(f"{run_history_file}: {where}") from None
    output_file.parent.mkdir(parents=True, exist_ok=True)
    lines = [training_example(redact(item.error_message), str(item.decision), redact(item.reason)) for item in past]
    output_file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8-sig")
    return len(lines)
