"""Queue failed-runs: decide once about a failed run."""

import azure.functions as func

from functions.queue_message import envelope_of
from shared import bootstrap
from shared.queue_names import FAILED_RUNS

blueprint = func.Blueprint()


@blueprint.function_name("decide_action")
@blueprint.service_bus_queue_trigger(arg_name="message", queue_name=FAILED_RUNS, connection="SERVICE_BUS_CONNECTION")
def decide_action(message: func.ServiceBusMessage, context: func.Context) -> None:
    bootstrap.services().delivery.deliver(envelope_of(FAILED_RUNS, message, context))
