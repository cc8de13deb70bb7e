"""Queue emails: tell people."""

import azure.functions as func

from functions.queue_message import envelope_of
from shared import bootstrap
from shared.queue_names import EMAILS

blueprint = func.Blueprint()


@blueprint.function_name("send_email")
@blueprint.service_bus_queue_trigger(arg_name="message", queue_name=EMAILS, connection="SERVICE_BUS_CONNECTION")
def send_email(message: func.ServiceBusMessage, context: func.Context) -> None:
    bootstrap.services().delivery.deliver(envelope_of(EMAILS, message, context))
