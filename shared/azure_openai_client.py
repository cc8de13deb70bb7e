"""AzureOpenAIClient: a diagnosis from Azure OpenAI with structured output, and fine-tuning jobs.

The model may only choose: a category, a decision and changes from closed lists; what it relies on it must quote, and a
quote that is not in the evidence voids the answer. Its prompt stands in a file, with its version in the name.

The client repeats a call by itself, except where the service is rate-limited: it would sleep for up to two minutes as
the service asks, and that time belongs to the queue and not to a sleeping function.
"""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from shared import deadline, telemetry
from shared.domain import Category, Change, ChangeKind, DecisionKind, Diagnosis, Evidence, Json
from shared.errors import (
    AgentError,
    ConfigurationError,
    NotAuthorisedError,
    OutcomeUnknownError,
    PermanentError,
    ThrottledError,
    TransientError,
    retry_after_of,
)
from shared.settings import Settings

if TYPE_CHECKING:
    from azure.core.credentials import TokenCredential
    from httpx2 import Request, Response
    from openai import OpenAI

logger = telemetry.logger(__name__)

PROMPTS = Path(__file__).parent / "prompts"
PROMPT = "diagnose.v1.md"
SCOPE = "https://cognitiveservices.azure.com/.default"
MAX_ANSWER_TOKENS = 2_000
MAX_REASON = 500
MAX_FACT = 100
MIN_QUOTE = 8
CHANGE_WORDS = tuple(str(k) for k in ChangeKind if k not in (ChangeKind.SPARK_CONF, ChangeKind.PARAM))


class Answer(BaseModel):
    """The model's answer as it is checked here; bounds are not part of the schema that is sent.

    Azure's strict schemas know no minimum, maximum, length or pattern.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    category: str
    decision: str
    changes: list[str] = Field(max_length=10)
    confidence: float = Field(ge=0, le=1)
    quotes: list[str] = Field(max_length=10)
    reason: str


def answer_schema() -> Json:
    """The strict JSON schema of an answer: closed lists, every field required, nothing else allowed."""
    words = {"type": "array", "items": {"type": "string", "enum": list(CHANGE_WORDS)}}
    properties = {
        "category": {"type": "string", "enum": [str(c) for c in Category]},
        "decision": {"type": "string", "enum": [str(d) for d in DecisionKind]},
        "changes": words,
        "confidence": {"type": "number"},
        "quotes": {"type": "array", "items": {"type": "string"}},
        "reason": {"type": "string"},
    }
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


class AzureOpenAIClient:
    """Asks one deployment. Raises this app's own errors only; a void answer is None, and never an error.

    `credential` is the Entra credential where there is no key; by default the app's managed identity.
    """

    def __init__(self, settings: Settings | None = None, *, credential: "TokenCredential | None" = None) -> None:
        if settings is None:
            from shared.bootstrap import current_settings

            settings = current_settings()
        self._settings = settings
        self._credential = credential
        self._lock = threading.Lock()
        self._client_or_none: OpenAI | None = None

    def diagnose(self, evidence: Evidence, *, facts: Mapping[str, str]) -> Diagnosis | None:
        """What the model makes of the evidence; None where its answer is refused, filtered, cut off or unquoted."""
        if not self._settings.azure_openai_endpoint:
            return None
        model = self._settings.azure_openai_deployment
        with translated("diagnosis"), telemetry.asking_model(model, max_tokens=MAX_ANSWER_TOKENS) as call:
            completion = self._completion(evidence, facts)
            note_completion(call, completion)
        content = content_of(completion)
        return checked(content, evidence) if content else None

    def _completion(self, evidence: Evidence, facts: Mapping[str, str]) -> object:
        """What the service answered, whatever it is; None where it is no JSON or the filter refused the evidence."""
        settings = self._settings
        seconds = settings.azure_openai_timeout_seconds
        try:
            return self._client().chat.completions.create(
                model=settings.azure_openai_deployment,
                messages=[
                    {"role": "system", "content": prompt(PROMPT)},
                    {"role": "user", "content": question(evidence, facts)},
                ],
                response_format={
                    "type": "json_schema",
                    "json_schema": {"name": "diagnosis", "strict": True, "schema": answer_schema()},
                },
                max_completion_tokens=MAX_ANSWER_TOKENS,
                timeout=deadline.bounded(seconds, tries=1 + settings.azure_openai_max_retries),
            )
        except json.JSONDecodeError:
            return None
        except Exception as error:
            if is_filtered(error):
                logger.info("the model's filter refused the evidence")
                return None
            raise

    def check(self) -> None:
        """Raise where the deployment does not answer, refuses the identity or is not there, or settings are missing.

        It is asked without a message: that is refused (400, about `messages`) where it is there, and uses no tokens. No
        call of Azure looks up a deployment: `models` lists what the region offers, and the list of deployments went to
        the management API in 2023 (Azure OpenAI, learn.microsoft.com/answers/questions/1371786).
        """
        from openai import BadRequestError

        self._settings.require(("azure_openai_endpoint",), ("azure_openai_deployment",))
        with translated("model deployment"):
            try:
                self._client().chat.completions.create(model=self._settings.azure_openai_deployment, messages=[])
            except BadRequestError as error:
                if "messages" not in error.message:
                    raise

    # ── fine-tuning ─────────────────────────────────────────────────────────────────────────────────────────────────

    def start_fine_tuning(self, training_data: Path, *, model: str, suffix: str) -> str:
        """Upload the training file and start a job; its id. Azure wants UTF-8 with BOM and at least 10 examples."""
        examples = with_bom(training_data)
        with translated("fine-tuning"):
            client = self._client()
            uploaded = client.files.create(file=(training_data.name, examples), purpose="fine-tune")
            job = client.fine_tuning.jobs.create(model=model, training_file=uploaded.id, suffix=suffix)
        return job.id

    def fine_tuning_status(self, job_id: str) -> Json:
        """`id, status, model, fine_tuned_model, error` of a job."""
        with translated("fine-tuning"):
            job = self._client().fine_tuning.jobs.retrieve(job_id)
        return {
            "id": job.id,
            "status": job.status,
            "model": job.model,
            "fine_tuned_model": job.fine_tuned_model,
            "error": job.error.message if job.error else None,
        }

    def _client(self) -> "OpenAI":
        with self._lock:
            if self._client_or_none is None:
                self._client_or_none = self._new_client()
            return self._client_or_none

    def _new_client(self) -> "OpenAI":
        from openai import DefaultHttpxClient, OpenAI

        self._settings.require(("azure_openai_endpoint",), ("azure_openai_deployment",))
        return OpenAI(
            base_url=base_url(self._settings.azure_openai_endpoint),
            api_key=self._settings.azure_openai_key or self._identity_token(),
            timeout=self._settings.azure_openai_timeout_seconds,
            max_retries=self._settings.azure_openai_max_retries,
            http_client=DefaultHttpxClient(
                event_hooks={"request": [watch_sending], "response": [leave_waiting_to_the_queue]}
            ),
        )

    def _identity_token(self) -> Callable[[], str]:
        from azure.core.exceptions import AzureError
        from azure.identity import DefaultAzureCredential, get_bearer_token_provider

        credential = self._credential or DefaultAzureCredential(
            managed_identity_client_id=self._settings.azure_client_id or None
        )
        provide = get_bearer_token_provider(credential, SCOPE)

        def token() -> str:
            try:
                return provide()
            except AzureError as error:
                raise NotAuthorisedError("no token for Azure OpenAI: check the app's identity") from error

        return token


def base_url(endpoint: str) -> str:
    """The v1 endpoint: https and `/openai/v1/` are added where they are missing."""
    trimmed = (endpoint if "://" in endpoint else f"https://{endpoint}").rstrip("/")
    return f"{trimmed.removesuffix('/v1').removesuffix('/openai')}/openai/v1/"


def leave_waiting_to_the_queue(response: "Response") -> None:
    """Tell the client not to wait out a 429 by itself; `x-should-retry` is the header that it obeys."""
    if response.status_code == 429:
        response.headers["x-should-retry"] = "false"


def prompt(name: str) -> str:
    """A prompt by its file name."""
    return (PROMPTS / name).read_text(encoding="utf-8")


def question(evidence: Evidence, facts: Mapping[str, str]) -> str:
    """The user message: trusted facts, then the evidence between two markers that nobody can have written into it.

    The markers hold a hash of the evidence. Lone surrogates, which UTF-8 cannot carry, become question marks.
    """
    excerpt = evidence.excerpt.encode("utf-8", "replace").decode()
    mark = hashlib.sha256(excerpt.encode()).hexdigest()[:16]
    lines = [f"{name}: {' '.join(value.split())[:MAX_FACT]}" for name, value in facts.items()]
    return "\n".join(["Facts (trusted):", *lines, "", f"BEGIN EVIDENCE {mark}", excerpt, f"END EVIDENCE {mark}"])


def note_completion(call: telemetry.ModelCall, completion: object) -> None:
    """Tell the telemetry what the answer says about itself; a part that is missing or odd is left out."""
    match completion:
        case object(model=str(model), usage=object(prompt_tokens=int(read), completion_tokens=int(written))):
            call.response_model, call.input_tokens, call.output_tokens = model, read, written
        case _:
            pass
    match completion:
        case object(choices=[object(finish_reason=str(reason)), *_]):
            call.finish_reasons = (reason,)
        case _:
            pass


def content_of(completion: object) -> str | None:
    """The text of a finished answer; None where it was refused, filtered, cut off, or is no completion at all."""
    match completion:
        case object(choices=[object(finish_reason="stop", message=object(content=str(content))), *_]):
            return content
        case object(choices=[object(finish_reason=reason), *_]):
            logger.info("the model gave no usable answer", extra={"finish_reason": str(reason)})
        case _:
            logger.info("the model's answer is no completion")
    return None


def checked(content: str, evidence: Evidence) -> Diagnosis | None:
    """The answer as a diagnosis, or None where it is not exactly what was asked for."""
    try:
        answer = Answer.model_validate_json(content)
        decision = DecisionKind(answer.decision)
        category = Category(answer.category)
    except ValueError:  # pydantic's ValidationError is one
        logger.info("the model's answer does not fit the schema")
        return None
    words = tuple(dict.fromkeys(answer.changes))
    if not set(words) <= set(CHANGE_WORDS) or (decision is DecisionKind.RETRY_WITH_PARAMS) != bool(words):
        logger.info("the model's changes do not fit its decision or are not on the list")
        return None
    quotes = tuple(quote.strip() for quote in answer.quotes if quote.strip())
    if not quotes or not all(is_quoted(quote, evidence.excerpt) for quote in quotes):
        logger.info("the model quoted what is not in the evidence")
        return None
    return Diagnosis(
        category=category,
        recommended=decision,
        reason=" ".join(answer.reason.split())[:MAX_REASON],
        confidence=answer.confidence,
        rules=(f"model.{PROMPT.removesuffix('.md')}",),
        changes=tuple(Change.from_word(word) for word in words),
        source="model",
        quotes=quotes,
    )


def is_quoted(quote: str, excerpt: str) -> bool:
    """Whether the evidence holds the quote: a whole line, or a part of it that is long enough to say something."""
    return quote in excerpt if len(quote) >= MIN_QUOTE else quote in map(str.strip, excerpt.splitlines())


def with_bom(path: Path) -> bytes:
    """The file with the byte-order mark that the service wants. Raises PermanentError where it cannot be read."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise PermanentError(f"{path}: the training file cannot be read ({error.strerror})") from error
    mark = b"\xef\xbb\xbf"
    return content if content.startswith(mark) else mark + content


def training_example(evidence: str, decision: str, reason: str) -> str:
    """One line of a fine-tuning file, in the chat format of the service."""
    return json.dumps(
        {
            "messages": [
                {"role": "system", "content": prompt("training.v1.md").strip()},
                {"role": "user", "content": evidence},
                {"role": "assistant", "content": json.dumps({"decision": decision, "reason": reason})},
            ]
        }
    )


def is_filtered(error: Exception) -> bool:
    """Whether Azure's content filter refused the prompt (400 with code content_filter)."""
    from openai import BadRequestError

    return isinstance(error, BadRequestError) and error.code == "content_filter"


_was_sent: ContextVar[bool] = ContextVar("_was_sent")
"""Whether the call under way has sent anything. The client's error tells of its last try only."""


def watch_sending(request: "Request") -> None:
    """Have the transport tell when a connection stands and the request goes out on it."""
    request.extensions = {**request.extensions, "trace": note_sending}


def note_sending(step: str, _details: Mapping[str, object]) -> None:
    """A step of the transport, named by it: `connection.connect_tcp.failed`, `http11.send_request_headers.started`."""
    if step.endswith(".send_request_headers.started"):
        _was_sent.set(True)


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Vendor errors as this app's own."""
    import openai

    _was_sent.set(False)
    try:
        yield
    except openai.OpenAIError as error:
        raise from_vendor(what, error, was_sent=_was_sent.get()) from error


def from_vendor(what: str, error: Exception, *, was_sent: bool) -> AgentError:
    """This app's error for one of openai's. A call that was sent and not clearly answered may have been counted."""
    import openai

    match error:
        case openai.RateLimitError():
            return ThrottledError(
                f"{what}: the model is rate-limited", retry_after_seconds=retry_after_of(error.response)
            )
        case openai.AuthenticationError() | openai.PermissionDeniedError():
            return NotAuthorisedError(f"{what}: Azure OpenAI refused the identity")
        case openai.NotFoundError():
            return ConfigurationError(f"{what}: no such deployment or job", names=("AZURE_OPENAI_DEPLOYMENT",))
        case openai.APIConnectionError() if was_sent:
            return OutcomeUnknownError(f"{what}: no answer from Azure OpenAI")
        case openai.APIConnectionError():
            return TransientError(f"{what}: Azure OpenAI cannot be reached")
        case openai.APIStatusError() if error.status_code >= 500 or error.status_code in (408, 409):
            return OutcomeUnknownError(f"{what}: Azure OpenAI answered {error.status_code}")
        case openai.APIStatusError():
            return PermanentError(f"{what}: Azure OpenAI answered {error.status_code} ({error.code or 'no code'})")
        case _:
            return PermanentError(f"{what}: {type(error).__name__}")
