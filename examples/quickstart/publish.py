"""Publishes two greetings: one for now, one for in three seconds."""

import asyncio

from jobs import Greeting, greet

from hareline import Producer


async def main() -> None:
    async with Producer() as producer:
        print(await producer.enqueue(greet, Greeting(name="Ada")))
        print(await producer.enqueue(greet, Greeting(name="Grace"), delay=3.0))


asyncio.run(main())
