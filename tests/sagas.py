"""A saga whose handlers write down what they do, and fail as they are told."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import BaseModel

from hareline import App, Job, JobType, Parallel, Retry, Saga, Step
from tests.lab import Lab, Number, until

AT_ONCE = Retry(attempts=2, base=0.0, jitter=0.0)


class Kept(BaseModel):
    """What a step returns."""

    what: str
    n: int


@dataclass
class Story:
    """``told`` are the handlers that ran and what they saw: earlier results, or the result to undo."""

    lab: Lab
    saga: Saga[Any]
    app: App
    url: str
    told: list[tuple[str, Any]] = field(default_factory=list)
    failing: dict[str, Exception] = field(default_factory=dict)

    @property
    def ran(self) -> list[str]:
        """Whose handlers ran, in order."""
        return [what for what, _ in self.told]

    def saw(self, name: str) -> Any:
        """What the last run of a handler saw."""
        return next(saw for what, saw in reversed(self.told) if what == name)

    @property
    def steps(self) -> dict[str, Step]:
        """By their short names."""
        return {step.job_type.name.rsplit(".", 1)[-1]: step for step in self.saga.steps}

    def working(self, *patterns: str, **options: Any) -> Any:
        """A worker of all its steps and undos, or those that ``patterns`` name, with the story's database."""
        return self.lab.working(
            self.app, *patterns, settings=replace(self.lab.settings, database_url=self.url), **options
        )

    async def run(self, handlers: int) -> None:
        """Starts one, and works until so many handlers ran."""
        producer = await self.lab.producer()
        async with self.working():
            await producer.start(self.saga, Number(n=7))
            await until(lambda: len(self.told) >= handlers, f"{handlers} handlers ran, only {self.ran}")
            # Whatever wrongly follows would be on its way by now.
            await until(self._settled, "every message is settled")

    async def _settled(self) -> bool:
        counts = [await self.lab.control.counts(self.lab.names.queue(t.name)) for t in self.saga.job_types]
        return all(count is not None and not count.ready for count in counts)


async def story(
    lab: Lab,
    url: str,
    *names: str,
    parallel: bool = False,
    retry: Retry = AT_ONCE,
    timeout: float = 60.0,  # noqa: ASYNC109 - of the handlers
    **more: Any,
) -> Story:
    """A saga with a step and an undo for each name; with ``parallel`` all but the first and the last run at once."""

    def job_type(name: str) -> JobType[Any]:
        return lab.job_type(name, retry=retry, timeout=timeout)

    steps = [Step(job_type(name), undo=job_type(f"un-{name}")) for name in names]
    stages: list[Any] = [steps[0], Parallel(*steps[1:-1]), steps[-1]] if parallel else steps
    saga = Saga(f"{steps[0].job_type.name}.saga", *stages, payload=Number, **more)
    made = Story(lab, saga, await lab.saga_app(saga), url)
    for name, step in zip(names, steps, strict=True):
        assert step.undo is not None
        made.app.handler(step.job_type)(_doing(made, name))
        made.app.handler(step.undo)(_undoing(made, f"un-{name}"))
    return made


def _doing(made: Story, name: str) -> Any:
    async def do(number: Number, job: Job) -> Kept:
        assert job.saga is not None
        made.told.append((name, dict(job.saga.results)))
        if name in made.failing:
            raise made.failing[name]
        return Kept(what=name, n=number.n)

    return do


def _undoing(made: Story, name: str) -> Any:
    async def undo(_: Number, job: Job) -> None:
        assert job.saga is not None
        made.told.append((name, job.saga.result))
        if name in made.failing:
            raise made.failing[name]

    return undo
