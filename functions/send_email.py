"""Queue emails: tell people."""

import azure.functions as func

from functions.queue_message import envelope_of
from shared import bootstrap

blueprint = func.Blueprint()


@blueprint.function_name("send_email")
@blueprint.service_bus_queue_trigger(arg_name="message", queue_name="emails", connection="SERVICE_BUS_CONNECTION")
def send_email(message: func.ServiceBusMessage) -> None:
    bootstrap.services().delivery.deliver(envelope_of("emails", message))
