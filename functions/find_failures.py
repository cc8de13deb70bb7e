"""Timer: look for runs that failed since the last tick."""

import azure.functions as func

from shared import bootstrap

blueprint = func.Blueprint()


@blueprint.function_name("find_failures")
@blueprint.timer_trigger(arg_name="timer", schedule=bootstrap.find_failures_schedule())
def find_failures(timer: func.TimerRequest, context: func.Context) -> None:
    bootstrap.services().timers.find_failures(context.trace_context.trace_parent)
