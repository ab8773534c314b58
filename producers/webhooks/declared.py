"""Sources of webhooks that the settings declare: a TOML or JSON file, or JSON in the variable itself.

    [github]
    scheme = "github"
    events = { push = "github.push" }

Secrets are never in it: they come from the environment, or from the file that ``secrets_file`` names.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Collection, Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from producers.webhooks.catchall import webhook_received
from producers.webhooks.rate import Rate
from producers.webhooks.schemes import SCHEMES, SchemeName
from producers.webhooks.source import Startable, WebhookSource
from topology.duration import parse_duration
from topology.errors import ContractError, DeclarationInvalid, OptionInvalid
from topology.settings import Settings

VARIABLE: Final = "HARELINE_WEBHOOKS"

T = TypeVar("T")


class _Declared(BaseModel):
    """One source as it is written. What does not fit here is shown in no error: a secret may have strayed into it."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    scheme: SchemeName = "generic"
    events: dict[str, str] = {}
    default: str | None = None
    window: float | str = 300.0
    event_at: str | None = None
    delivery_id_at: str | None = None
    secrets_file: str | None = None
    rate: float | None = None
    burst: int | None = None


_KEYS: Final[Mapping[str, str]] = {
    "scheme": f"one of {', '.join(SCHEMES)}",
    "events": 'a table of event names and job types or sagas, as { "order.created" = "shop.order" }',
    "default": "the name of a job type or saga",
    "window": "seconds above zero, or a duration as 5m",
    "event_at": "header:NAME or body:a.b",
    "delivery_id_at": "header:NAME or body:a.b",
    "secrets_file": "the path of a file with a secret a line",
    "rate": "deliveries a second, above zero",
    "burst": "how many may come at once, a whole number above zero; it goes with rate",
}
_SECRETS: Final = frozenset({"secret", "secrets", "key", "token", "password"})


def declared_webhooks(
    settings: Settings, startables: Iterable[Startable], taken: Collection[str] = ()
) -> tuple[WebhookSource, ...]:
    """The sources of ``HARELINE_WEBHOOKS``; their events start those of ``startables`` that they name.

    ``taken`` are names of sources that the code declares. Raises DeclarationInvalid.
    """
    text = settings.webhooks
    if not text:
        return ()
    inline = text.startswith("{")
    where = VARIABLE if inline else f"{VARIABLE} {text}"
    base = Path() if inline else Path(text).parent
    document = _json(text, where) if inline else _file(Path(text), where)
    return sources_of(document, startables, taken, where, base)


def sources_of(
    document: Mapping[str, Any], startables: Iterable[Startable], taken: Collection[str], where: str, base: Path
) -> tuple[WebhookSource, ...]:
    """What a document declares. ``where`` is what errors call it; ``base`` is where its relative paths begin. Pure."""
    known: dict[str, Startable] = {one.name: one for one in startables} | {webhook_received.name: webhook_received}
    if not document:
        raise DeclarationInvalid(
            f'{where}: it declares no source: write a table for each, as [github] scheme = "github"'
        )
    for name in document:
        if name in taken:
            raise DeclarationInvalid(f"{where}: {name}: the code declares a source of this name too: keep one of them")
    return tuple(_source(name, value, known, where, base) for name, value in document.items())


def _source(name: str, value: object, known: Mapping[str, Startable], where: str, base: Path) -> WebhookSource:
    at = f"{where}: {name}"
    if not isinstance(value, dict):
        raise DeclarationInvalid(f"{at}: a table is needed, one for each source: [{name}] scheme = ...")
    try:
        said = _Declared.model_validate(value)
    except ValidationError as error:
        raise DeclarationInvalid(_told(at, error)) from None
    if said.burst is not None and said.rate is None:
        raise DeclarationInvalid(f"{at}.burst: it goes with rate: add rate, deliveries a second")
    rate = None if said.rate is None else _made(f"{at}.rate", lambda: Rate(said.rate or 0, _burst(at, said.burst)))
    job_type = {f"events.{event}": started for event, started in said.events.items()}
    if said.default is not None:
        job_type["default"] = said.default
    starts = {key: _job_type(f"{at}.{key}", started, known) for key, started in job_type.items()}
    return _made(
        at,
        lambda: WebhookSource(
            name,
            scheme=said.scheme,
            events={event: starts[f"events.{event}"] for event in said.events},
            default=starts.get("default"),
            window=_seconds(f"{at}.window", said.window),
            event_at=said.event_at,
            delivery_id_at=said.delivery_id_at,
            secrets_file=None if said.secrets_file is None else base / said.secrets_file,
            rate=rate,
        ),
    )


def _made(at: str, make: Callable[[], T]) -> T:
    try:
        return make()
    except ContractError as error:
        raise DeclarationInvalid(f"{at}: {error}") from None


def _burst(at: str, burst: int | None) -> int:
    if burst is not None and burst < 1:
        raise DeclarationInvalid(f"{at}.burst: {burst} lets nothing through: {_KEYS['burst']}")
    return burst or 0


def _job_type(at: str, name: str, known: Mapping[str, Startable]) -> Startable:
    found = known.get(name)
    if found is None:
        raise DeclarationInvalid(
            f"{at}: the app has no job type or saga '{name}'{_meant(name, known)}; it has: {', '.join(sorted(known))}"
        )
    return found


def _seconds(at: str, value: float | str) -> float:
    try:
        seconds = parse_duration(value) if isinstance(value, str) else value
    except OptionInvalid as error:
        raise DeclarationInvalid(f"{at}: {error}") from None
    if not seconds > 0:
        raise DeclarationInvalid(f"{at}: {seconds:g} would refuse every delivery: {_KEYS['window']}")
    return seconds


def _told(at: str, error: ValidationError) -> str:
    """The first thing that is wrong, without its value."""
    first = error.errors(include_input=False, include_url=False)[0]
    path = [str(part) for part in first["loc"]]
    key = path[0]
    if key in _KEYS:
        # A union adds its members to the path, which say nothing to those who write the file.
        shown = ".".join(path) if key == "events" else key
        return f"{at}.{shown}: this cannot be: it must be {_KEYS[key]}"
    if key in _SECRETS:
        return (
            f"{at}.{key}: no secret belongs into this file: set HARELINE_WEBHOOKS_SECRETS_<NAME>, "
            "or name a file of its own with secrets_file"
        )
    return f"{at}.{key}: there is no such key{_meant(key, _KEYS)}; there are: {', '.join(_KEYS)}"


def _meant(name: str, known: Iterable[str]) -> str:
    close = get_close_matches(name, list(known), 1)
    return f", is '{close[0]}' meant?" if close else ""


def _file(file: Path, where: str) -> Mapping[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        cause = (error.strerror if isinstance(error, OSError) else None) or "it is no text in UTF-8"
        raise DeclarationInvalid(
            f"{where}: the file cannot be read: {cause}; name a .toml or .json file, or write JSON that begins with {{"
        ) from None
    if file.suffix == ".json":
        return _json(text, where)
    if file.suffix != ".toml":
        raise DeclarationInvalid(f"{where}: is it TOML or JSON? Give its name the ending .toml or .json")
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise DeclarationInvalid(f"{where}: this is not TOML: {error}") from None


def _json(text: str, where: str) -> Mapping[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        for name in names:
            if names.count(name) > 1:
                raise DeclarationInvalid(f"{where}: '{name}' is there twice: keep one")
        return dict(pairs)

    try:
        document = json.loads(text, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        raise DeclarationInvalid(
            f"{where}: this is not JSON: {error.msg} (line {error.lineno}, column {error.colno})"
        ) from None
    except RecursionError:
        raise DeclarationInvalid(f"{where}: it is nested too deeply") from None
    if not isinstance(document, dict):
        raise DeclarationInvalid(f"{where}: an object is needed, with a member for each source")
    return document
