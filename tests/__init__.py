"""Tests, with a real RabbitMQ and real processes."""
