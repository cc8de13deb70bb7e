"""A local Azure Functions host: runs a Python v2 function app inside the official worker library, in one process.

It imitates what the real host (azure-functions-host 4.x) does around a Python app: app settings and ``%NAME%``
references, host.json, checks of names and bindings, timers, Service Bus queue triggers (peek-lock, one message per
call), HTTP triggers, the admin endpoints that start a function by hand, and one log record per invocation.

Left out: the kill at ``functionTimeout`` (only logged), scale-out and worker restarts, batches, topics, sessions,
retry policies, bindings other than triggers and the HTTP response, schedules kept over a restart (``past_due`` tells a
late call only), SDK types, HTTP streaming, Durable Functions, Application Insights, trace context. A trigger or binding
that is left out is refused when the app is loaded, never ignored.

The worker library keeps its index in module globals, so one process runs one app.
"""
