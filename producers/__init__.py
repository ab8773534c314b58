"""Puts messages in: the asyncio and the blocking producer."""
