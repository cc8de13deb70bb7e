"""Timer: compare what Databricks says was retried with what the history says."""

import azure.functions as func

from shared import bootstrap

blueprint = func.Blueprint()


@blueprint.function_name("audit")
@blueprint.timer_trigger(arg_name="timer", schedule=bootstrap.audit_schedule())
def audit(timer: func.TimerRequest, context: func.Context) -> None:
    bootstrap.services().timers.audit(context.trace_context.trace_parent)
