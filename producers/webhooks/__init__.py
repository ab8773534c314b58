"""Webhooks in: who signed a delivery, whether it came before, and the outbox row that it becomes."""
