"""Queue retries: carry out a retry that was decided."""

import azure.functions as func

from functions.queue_message import envelope_of
from shared import bootstrap
from shared.queue_names import RETRIES

blueprint = func.Blueprint()


@blueprint.function_name("retry_run")
@blueprint.service_bus_queue_trigger(arg_name="message", queue_name=RETRIES, connection="SERVICE_BUS_CONNECTION")
def retry_run(message: func.ServiceBusMessage, context: func.Context) -> None:
    bootstrap.services().delivery.deliver(envelope_of(RETRIES, message, context))
