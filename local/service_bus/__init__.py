"""A stand-in for Azure Service Bus: queues with peek-lock over AMQP 1.0, for the official clients."""

from local.service_bus.broker import QueueConfig
from local.service_bus.server import running_broker

__all__ = ["QueueConfig", "running_broker"]
