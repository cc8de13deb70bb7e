"""Timer: close retries with their outcome, and send again what is overdue."""

import azure.functions as func

from shared import bootstrap

blueprint = func.Blueprint()


@blueprint.function_name("follow_up")
@blueprint.timer_trigger(arg_name="timer", schedule=bootstrap.follow_up_schedule())
def follow_up(timer: func.TimerRequest, context: func.Context) -> None:
    bootstrap.services().timers.follow_up(context.trace_context.trace_parent)
