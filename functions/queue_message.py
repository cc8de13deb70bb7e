"""A Service Bus trigger's message as the agent's envelope."""

from typing import TYPE_CHECKING

import azure.functions as func

if TYPE_CHECKING:
    from shared.delivery import Envelope


def envelope_of(queue: str, message: func.ServiceBusMessage, context: func.Context) -> "Envelope":
    from shared.delivery import Envelope

    return Envelope(
        queue=queue,
        body=message.get_body(),
        message_id=message.message_id or "",
        delivery_count=message.delivery_count or 0,
        properties=dict(message.application_properties or {}),
        host_traceparent=context.trace_context.trace_parent or "",
    )
