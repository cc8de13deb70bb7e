"""Queue retries: carry out a retry that was decided."""

import azure.functions as func

from functions.queue_message import envelope_of
from shared import bootstrap

blueprint = func.Blueprint()


@blueprint.function_name("retry_run")
@blueprint.service_bus_queue_trigger(arg_name="message", queue_name="retries", connection="SERVICE_BUS_CONNECTION")
def retry_run(message: func.ServiceBusMessage) -> None:
    bootstrap.services().delivery.deliver(envelope_of("retries", message))
