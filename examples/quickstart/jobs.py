"""The README's example: one job type and its handler."""

from pydantic import BaseModel

from hareline import App, Job, JobType, Retry, Transient


class Greeting(BaseModel):
    name: str


greet = JobType("greeting.send", Greeting, retry=Retry(attempts=5, base=1.0), timeout=30.0)
app = App(job_types=[greet])


@app.handler(greet)
async def handle(greeting: Greeting, job: Job) -> None:
    if job.attempt == 1:
        raise Transient("the post office is still closed")
    print(f"Hello, {greeting.name}! (attempt {job.attempt})")
