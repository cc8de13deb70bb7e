"""A small function app for the tests of the local Functions host; what its functions see is written to the log."""

import asyncio
import logging
import os
import sys
import time

import azure.functions as func

app = func.FunctionApp(http_auth_level=func.AuthLevel.FUNCTION)
log = logging.getLogger("sample")


@app.timer_trigger(arg_name="timer", schedule="%TICK_SCHEDULE%")
def tick(timer: func.TimerRequest) -> None:
    """Says that it ran."""
    log.info("tick", extra={"past_due": timer.past_due, "next": timer.schedule_status["Next"]})  # type: ignore[attr-defined]


@app.timer_trigger(arg_name="timer", schedule="0 0 0 1 1 *", run_on_startup=True)
async def at_start(timer: func.TimerRequest) -> None:
    """Says that it ran, from a coroutine."""
    log.info("at start", extra={"past_due": timer.past_due})


@app.service_bus_queue_trigger(arg_name="message", queue_name="%WORK_QUEUE%", connection="SERVICE_BUS")
def work(message: func.ServiceBusMessage) -> None:
    """Logs the message; its body says how to behave."""
    body = message.get_body().decode()
    enqueued = message.enqueued_time_utc
    log.info(
        "message",
        extra={
            "body": body,
            "message_id": message.message_id,
            "delivery_count": message.delivery_count,
            "properties": message.application_properties,
            "subject": message.subject,
            "correlation_id": message.correlation_id,
            "enqueued": enqueued.isoformat() if enqueued else None,
        },
    )
    match body.split():
        case ["fail"]:
            raise ValueError("asked to fail")
        case ["exit"]:
            sys.exit(3)
        case ["sleep", seconds]:
            time.sleep(float(seconds))
        case _:
            pass


@app.route(route="items/{id:int}/{part?}", methods=["GET", "POST"], auth_level=func.AuthLevel.ANONYMOUS)
def item(req: func.HttpRequest) -> func.HttpResponse:
    """Answers with what it was sent."""
    log.info("item")
    body = req.get_body().decode()
    text = f"{req.method} {req.route_params.get('id')} {req.route_params.get('part')} {req.params.get('q')} {body}"
    headers = {"x-echo": req.headers.get("x-sent", "none"), "Set-Cookie": "seen=yes; Path=/api; HttpOnly; SameSite=Lax"}
    return func.HttpResponse(text, status_code=201, headers=headers)


@app.route(route="items/all", methods=["GET"])
async def all_items(req: func.HttpRequest) -> str:
    """A literal route next to a parameter, in need of a key."""
    await asyncio.sleep(0)
    return "all"


@app.route(route="broken/{how}", auth_level=func.AuthLevel.ANONYMOUS)
async def broken(req: func.HttpRequest) -> str:
    """Fails in the way the path names."""
    match req.route_params["how"]:
        case "raise":
            raise ValueError("broken")
        case "cancel":
            raise asyncio.CancelledError
        case "exit":
            sys.exit(1)
        case "threads":
            return os.environ["PYTHON_THREADPOOL_THREAD_COUNT"]
        case _:
            return "fine"
