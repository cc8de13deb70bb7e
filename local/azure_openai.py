"""Stand-in for Azure OpenAI (v1 API), for the unmodified openai client.

It imitates chat completions with structured output (a strict schema is checked as the service checks it), models, files
and fine-tuning jobs, with the service's errors: 401, 429 + Retry-After, the content filter before and after the model,
cut, broken and refused answers. What it answers is written in a scenario (POST /_standin/scenario or ``--answers``):

    {"answers": [{"match": "OutOfMemory", "answer": {"decision": "RETRY"}}, {"match": "(?i)quota", "behaviour": "429"}],
     "default": {"behaviour": "obey"}}

The first rule whose ``match`` is in the text of the user messages (or, as a regular expression, is found in it)
answers. Without a rule and a default the answer fits the schema and claims nothing: first enum value, low confidence,
empty lists. The behaviour ``obey`` is the model that an injection has won: it follows every order in the user's text.
``GET /_standin/requests`` returns every completion request that came in, so that a test can look at what was sent.

Left out: intelligence, streaming, tools, deployments (every model name is served), tokens (4 characters are one),
quotas (429 comes from a rule or a fault) and parameters that single models reject. The effect log stays empty: it knows
no kind that a model call or a fine-tuning job could be.

    python -m local.azure_openai --port 18082 [--effects FILE] [--answers FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from local.http_standin import EffectLog, Faults, Handler, RefusedError, create_app, read_json_object, run_standin
from local.openai_fine_tuning import FineTuning, page
from local.schema_answers import NO_RULE_TEXT, AnswerWriter, schema_error

type Json = dict[str, Any]

Behaviour = Literal[
    "429",  # with Retry-After
    "500",
    "content_filter",  # 400: the prompt was filtered
    "finish_content_filter",  # 200, but the answer was filtered
    "bad_json",
    "other_shape",  # JSON that does not fit the schema
    "refusal",
    "length",  # cut at the token limit
    "slow",
    "obey",
]

BAD_KEY = "bad-key"
MODELS = ("gpt-5-mini", "gpt-4.1-mini")
LIMIT_REQUESTS = 1000
LIMIT_TOKENS = 100_000


class Rule(BaseModel):
    """How to answer: with ``answer``, or as ``behaviour`` says."""

    model_config = ConfigDict(extra="forbid")

    answer: Json | None = None
    behaviour: Behaviour | None = None
    seconds: float = Field(default=60.0, ge=0)
    """Delay of ``slow``."""
    retry_after: int = 1
    """Retry-After of ``429``, in seconds."""


class MatchingRule(Rule):
    """A rule for the requests whose user text contains ``match``, literally or as a regular expression."""

    match: str = Field(min_length=1)

    def matches(self, text: str) -> bool:
        """Tell whether the rule is meant for this text."""
        if self.match in text:
            return True
        try:
            return re.search(self.match, text) is not None
        except re.PatternError:
            return False


class Scenario(BaseModel):
    """What the stand-in answers to what."""

    model_config = ConfigDict(extra="forbid")

    answers: list[MatchingRule] = Field(default_factory=list)
    default: Rule = Field(default_factory=Rule)

    def rule_for(self, text: str) -> Rule:
        """Return the first rule that matches the text, or the default."""
        return next((rule for rule in self.answers if rule.matches(text)), self.default)


class Chat:
    """Answers completion requests by the scenario and keeps what was asked."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._requests: list[Json] = []

    def load_scenario(self, body: dict[str, object]) -> dict[str, object]:
        """Replace the scenario; raises ValueError if it is not understood."""
        self._scenario = parse_scenario(body)
        return {"answers": len(self._scenario.answers)}

    async def get_requests(self, _request: web.Request) -> web.Response:
        """GET /_standin/requests: every completion request, oldest first."""
        return web.json_response({"requests": self._requests})

    async def complete(self, request: web.Request) -> web.Response:
        """POST /openai/v1/chat/completions."""
        body: Json = await _json_body(request)
        self._keep(body)
        schema = _answer_schema(body)
        text = _user_text(body)
        rule = self._scenario.rule_for(text)
        _refuse(rule)
        if rule.behaviour == "slow":
            await asyncio.sleep(rule.seconds)
        return _completion(body, _choice(rule, schema, text))

    def _keep(self, body: Json) -> None:
        self._requests.append(
            {
                "seq": len(self._requests) + 1,
                "at": datetime.now(UTC).isoformat(),
                "model": body["model"],
                "messages": body["messages"],
                "parameters": {name: value for name, value in body.items() if name not in ("model", "messages")},
            }
        )


def parse_scenario(body: object) -> Scenario:
    """Return the scenario of a JSON body; raises ValueError if it is not understood."""
    try:
        return Scenario.model_validate(body)
    except ValidationError as error:
        raise ValueError(f"The scenario is not understood, nothing was changed: {error}") from error


async def _json_body(request: web.Request) -> Json:
    try:
        body = await read_json_object(request)
    except ValueError as error:
        raise RefusedError(400, "invalid_request_error", f"The body is not JSON: {error}") from error
    for name, kind in (("model", str), ("messages", list)):
        if not isinstance(body.get(name), kind) or not body[name]:
            raise RefusedError(400, "missing_required_parameter", f"Missing required parameter: '{name}'.", param=name)
    if body.get("stream"):
        raise RefusedError(400, "unsupported_parameter", "The stand-in does not stream.", param="stream")
    return body


def _answer_schema(body: Json) -> Json | None:
    """Return the schema that the answer must fit, None for free text; raises RefusedError as the service refuses it."""
    form = body.get("response_format") or {}
    if form.get("type") != "json_schema":
        return None
    name, schema = form.get("json_schema", {}).get("name"), form.get("json_schema", {}).get("schema")
    if not name or not isinstance(schema, dict):
        message = "Missing required parameter: 'response_format.json_schema' needs a name and a schema."
        raise RefusedError(400, "missing_required_parameter", message, param="response_format")
    fault = schema_error(schema) if form["json_schema"].get("strict") else None
    if fault:
        message = f"Invalid schema for response_format '{name}': {fault}."
        raise RefusedError(400, "invalid_request_error", message, param="response_format")
    return schema


def _user_text(body: Json) -> str:
    texts: list[str] = []
    for message in body["messages"]:
        content = message.get("content") if message.get("role") == "user" else None
        parts = [{"text": content}] if isinstance(content, str) else content or []
        texts.extend(str(part.get("text", "")) for part in parts)
    return "\n".join(texts)


def _refuse(rule: Rule) -> None:
    """Raise the RefusedError that the rule asks for, if it asks for one."""
    if rule.behaviour == "429":
        message = f"Requests have exceeded the token rate limit. Please retry after {rule.retry_after} seconds."
        headers = {"Retry-After": str(rule.retry_after), "retry-after-ms": str(rule.retry_after * 1000)}
        raise RefusedError(429, "RateLimitReached", message, headers=headers)
    if rule.behaviour == "500":
        raise RefusedError(500, "InternalServerError", "The server had an error while processing your request.")
    if rule.behaviour == "content_filter":
        message = "The response was filtered due to the prompt triggering Azure OpenAI's content management policy."
        inner = {
            "code": "ResponsibleAIPolicyViolation",
            "content_filter_result": {"jailbreak": {"filtered": True, "detected": True}},
        }
        raise RefusedError(400, "content_filter", message, param="prompt", innererror=inner)


def _choice(rule: Rule, schema: Json | None, text: str) -> Json:
    """Return finish reason and message of the answer."""
    finish_reason, content = "stop", _content(rule, schema, text)
    if rule.behaviour == "refusal":
        message = {"role": "assistant", "content": None, "refusal": "I'm sorry, I can't assist with that."}
        return {"index": 0, "finish_reason": finish_reason, "message": message, "logprobs": None}
    if rule.behaviour == "finish_content_filter":
        content, finish_reason = "", "content_filter"
    elif rule.behaviour == "length":
        content, finish_reason = content[: len(content) // 2], "length"
    elif rule.behaviour == "bad_json":
        content = content[:-1] + ","
    elif rule.behaviour == "other_shape":
        content = json.dumps({"answer": ["something", "else"]})
    message = {"role": "assistant", "content": content, "refusal": None}
    return {"index": 0, "finish_reason": finish_reason, "message": message, "logprobs": None}


def _content(rule: Rule, schema: Json | None, text: str) -> str:
    if rule.answer is not None:
        return json.dumps(rule.answer)
    if schema is None:
        return NO_RULE_TEXT
    return json.dumps(AnswerWriter(schema, text if rule.behaviour == "obey" else None).write())


def _completion(body: Json, choice: Json) -> web.Response:
    asked, answered = _tokens(json.dumps(body["messages"])), _tokens(choice["message"]["content"] or "")
    return web.json_response(
        {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": body["model"],
            "choices": [choice],
            "usage": {"prompt_tokens": asked, "completion_tokens": answered, "total_tokens": asked + answered},
        },
        headers={
            "x-ratelimit-limit-requests": str(LIMIT_REQUESTS),
            "x-ratelimit-remaining-requests": str(LIMIT_REQUESTS - 1),
            "x-ratelimit-limit-tokens": str(LIMIT_TOKENS),
            "x-ratelimit-remaining-tokens": str(max(0, LIMIT_TOKENS - asked - answered)),
        },
    )


def _tokens(text: str) -> int:
    return -(-len(text) // 4)


@web.middleware
async def _check_key(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse requests to the service without a key or bearer token, or with the one that is known to be wrong."""
    bearer = request.headers.get("Authorization", "").removeprefix("Bearer ")
    key = request.headers.get("api-key") or bearer
    if request.path.startswith("/openai/") and key in ("", BAD_KEY):
        message = "Access denied due to invalid subscription key or wrong API endpoint."
        raise RefusedError(401, "401", message)
    return await handler(request)


async def _list_models(_request: web.Request) -> web.Response:
    return page([{"id": name, "object": "model", "created": 0, "owned_by": "azure"} for name in MODELS])


def create_openai_app(effects: EffectLog, scenario: Scenario | None = None) -> web.Application:
    """Return the stand-in as an application that answers by the scenario until another one is posted."""
    chat, fine_tuning = Chat(scenario or Scenario()), FineTuning()
    app = create_app(effects=effects, faults=Faults(), load_scenario=chat.load_scenario)
    app.middlewares.append(_check_key)
    app.add_routes(
        [
            web.get("/_standin/requests", chat.get_requests),
            web.post("/openai/v1/chat/completions", chat.complete),
            web.get("/openai/v1/models", _list_models),
            web.post("/openai/v1/files", fine_tuning.upload),
            web.get("/openai/v1/files", fine_tuning.list_files),
            web.get("/openai/v1/files/{id}", fine_tuning.get_file),
            web.get("/openai/v1/files/{id}/content", fine_tuning.get_content),
            web.post("/openai/v1/fine_tuning/jobs", fine_tuning.create_job),
            web.get("/openai/v1/fine_tuning/jobs", fine_tuning.list_jobs),
            web.get("/openai/v1/fine_tuning/jobs/{id}", fine_tuning.get_job),
            web.get("/openai/v1/fine_tuning/jobs/{id}/events", fine_tuning.list_events),
        ]
    )
    return app


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m local.azure_openai", description="Stand-in for Azure OpenAI")
    parser.add_argument("--port", type=int, default=18082, help="0 = any free port")
    parser.add_argument("--effects", type=Path, help="file to which every effect is appended")
    parser.add_argument("--answers", type=Path, help="JSON file with the scenario")
    arguments = parser.parse_args()
    scenario = None
    if arguments.answers is not None:
        try:
            scenario = parse_scenario(json.loads(arguments.answers.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            sys.exit(f"The answers in {arguments.answers} cannot be used: {error}")
    run_standin(create_openai_app(EffectLog("openai", arguments.effects), scenario), arguments.port)


if __name__ == "__main__":
    main()
