"""Files and fine-tuning jobs of the Azure OpenAI stand-in.

A job is created as ``validating_files`` and moves on by one status each time it is retrieved: ``running``, then
``succeeded``; or ``failed`` if the service would not train on its files. Left out: training, cancelling, paging,
checkpoints, files for other purposes. Uploads end at 16 MB (the service: 512 MB).
"""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

from aiohttp import web
from aiohttp.web_request import FileField

from local.http_standin import RefusedError, read_json_object

type Json = dict[str, Any]

MIN_TRAINING_EXAMPLES = 10  # Azure OpenAI fine-tuning how-to: at least ten examples


def page(data: list[Json]) -> web.Response:
    """Answer with a list as the API gives it, all of it in one page."""
    return web.json_response({"object": "list", "data": data, "has_more": False})


class FineTuning:
    """Uploaded files and the jobs that learn from them."""

    def __init__(self) -> None:
        self._files: dict[str, Json] = {}
        self._contents: dict[str, bytes] = {}
        self._jobs: dict[str, Json] = {}
        self._events: dict[str, list[Json]] = {}

    async def upload(self, request: web.Request) -> web.Response:
        """POST /openai/v1/files."""
        form = await request.post()
        file = form.get("file")
        if form.get("purpose") != "fine-tune" or not isinstance(file, FileField):
            raise RefusedError(400, "invalidPayload", "An upload needs a file and the purpose 'fine-tune'.")
        content = file.file.read()
        file_id = f"file-{uuid.uuid4().hex}"
        self._contents[file_id] = content
        self._files[file_id] = {
            "id": file_id,
            "object": "file",
            "bytes": len(content),
            "created_at": int(time.time()),
            "filename": file.filename,
            "purpose": "fine-tune",
            "status": "processed",
        }
        return web.json_response(self._files[file_id], status=201)

    async def list_files(self, _request: web.Request) -> web.Response:
        """GET /openai/v1/files."""
        return page(list(self._files.values()))

    async def get_file(self, request: web.Request) -> web.Response:
        """GET /openai/v1/files/{id}."""
        return web.json_response(_found(self._files, request))

    async def get_content(self, request: web.Request) -> web.Response:
        """GET /openai/v1/files/{id}/content: the bytes as they were sent."""
        return web.Response(body=_found(self._contents, request))

    async def create_job(self, request: web.Request) -> web.Response:
        """POST /openai/v1/fine_tuning/jobs."""
        try:
            body: Json = await read_json_object(request)
        except ValueError as error:
            raise RefusedError(400, "invalidPayload", str(error)) from error
        training, validation = body.get("training_file"), body.get("validation_file")
        if not body.get("model") or training not in self._files or (validation and validation not in self._files):
            raise RefusedError(400, "invalidPayload", "A job needs a model and files that were uploaded.")
        job_id = f"ftjob-{uuid.uuid4().hex}"
        self._jobs[job_id] = {
            "id": job_id,
            "object": "fine_tuning.job",
            "created_at": int(time.time()),
            "model": body["model"],
            "training_file": training,
            "validation_file": validation,
            "seed": body.get("seed", 0),
            "suffix": body.get("suffix"),
            "method": body.get("method"),
            "hyperparameters": body.get("hyperparameters") or {"n_epochs": "auto"},
            "status": "validating_files",
            "fine_tuned_model": None,
            "finished_at": None,
            "trained_tokens": None,
            "result_files": [],
            "organization_id": "",
            "error": None,
        }
        self._events[job_id] = []
        self._note(job_id, f"Created fine-tuning job: {job_id}")
        return web.json_response(self._jobs[job_id], status=201)

    async def list_jobs(self, _request: web.Request) -> web.Response:
        """GET /openai/v1/fine_tuning/jobs; does not move a job on."""
        return page(list(reversed(self._jobs.values())))

    async def get_job(self, request: web.Request) -> web.Response:
        """GET /openai/v1/fine_tuning/jobs/{id}; each call moves the job on by one status."""
        job = _found(self._jobs, request)
        if job["status"] == "validating_files":
            self._start(job)
        elif job["status"] == "running":
            self._finish(job)
        return web.json_response(job)

    async def list_events(self, request: web.Request) -> web.Response:
        """GET /openai/v1/fine_tuning/jobs/{id}/events: newest first."""
        events = _found(self._events, request)
        return page(list(reversed(events)))

    def _start(self, job: Json) -> None:
        for name in ("training_file", "validation_file"):
            fault = job[name] and training_data_error(self._contents[job[name]])
            if fault:
                error = {"code": f"invalid_{name}", "message": fault, "param": name}
                job.update(status="failed", finished_at=int(time.time()), error=error)
                self._note(job["id"], fault, level="error")
                return
        job["status"] = "running"
        self._note(job["id"], "Training started.")

    def _finish(self, job: Json) -> None:
        suffix = f"-{job['suffix']}" if job["suffix"] else ""
        job.update(
            status="succeeded",
            finished_at=int(time.time()),
            fine_tuned_model=f"{job['model']}.ft-{job['id'].removeprefix('ftjob-')}{suffix}",
            trained_tokens=len(self._contents[job["training_file"]]) // 4,
        )
        self._note(job["id"], "The job has successfully completed.")

    def _note(self, job_id: str, message: str, level: str = "info") -> None:
        self._events[job_id].append(
            {
                "id": f"ftevent-{uuid.uuid4().hex}",
                "object": "fine_tuning.job.event",
                "created_at": int(time.time()),
                "level": level,
                "message": message,
                "type": "message",
            }
        )


def training_data_error(content: bytes) -> str | None:
    """Say why Azure OpenAI would not train on a file, None if it would.

    Source: fine-tuning how-to, "JSONL, encoded in UTF-8 with a byte-order mark", chat format, at least ten examples.
    """
    if not content.startswith(b"\xef\xbb\xbf"):
        return "The file is not encoded in UTF-8 with a byte-order mark (BOM)."
    lines = [line for line in content.decode("utf-8-sig", errors="replace").splitlines() if line.strip()]
    for number, line in enumerate(lines, start=1):
        try:
            roles = [message["role"] for message in json.loads(line)["messages"]]
        except (ValueError, TypeError, KeyError):
            return f"Line {number} is not an example in chat format."
        if "assistant" not in roles:
            return f"Line {number} has no message of the assistant to learn from."
    if len(lines) < MIN_TRAINING_EXAMPLES:
        return f"The file has {len(lines)} examples, at least {MIN_TRAINING_EXAMPLES} are needed."
    return None


def _found[T](things: dict[str, T], request: web.Request) -> T:
    """Return what has the id in the path; raises RefusedError (404) if nothing has."""
    thing_id = request.match_info["id"]
    if thing_id not in things:
        raise RefusedError(404, "resourceNotFound", f"Nothing has the id {thing_id}.")
    return things[thing_id]
