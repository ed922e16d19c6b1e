"""Tests with one RabbitMQ for all."""
