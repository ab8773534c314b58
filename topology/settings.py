"""Settings from the environment. The only place that reads ``os.environ``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args
from urllib.parse import urlsplit

from topology.duration import parse_duration
from topology.errors import OptionInvalid, SettingsError

Declare = Literal["auto", "never"]

DEFAULT_BROKER_URL = "amqp://guest:guest@127.0.0.1:5672/"


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that differs between two deployments of the same code.

    ``broker_urls`` are tried in turn, for ever. ``management_url`` is None where the management API is not to
    be used: topology commands then see less, and say so. ``database_url`` is empty for the embedded SQLite file
    `default_database_url`. ``webhooks`` names a file of sources, or is JSON that declares them. Durations are
    seconds, sizes are bytes.
    """

    broker_urls: tuple[str, ...] = (DEFAULT_BROKER_URL,)
    management_url: str | None = None
    database_url: str = ""
    namespace: str = "hareline"
    app: str | None = None
    declare: Declare = "auto"
    publish_timeout: float = 10.0
    max_unconfirmed: int = 2000
    max_payload: int = 1024 * 1024
    grace: float = 25.0
    consumer_timeout: float = 1800.0
    report: bool = True
    inbox_retention: float = 7 * 86400.0
    jobs_done_retention: float = 7 * 86_400.0
    jobs_failed_retention: float = 30 * 86_400.0
    dead_retention: float = 30 * 86_400.0
    webhooks: str = field(default="", repr=False)
    webhooks_host: str = "127.0.0.1"
    webhooks_port: int = 8080
    webhooks_token: str = field(default="", repr=False)
    webhooks_max_body: int = 1024 * 1024
    webhooks_max_headers: int = 16 * 1024
    webhooks_body_timeout: float = 10.0
    webhooks_concurrency: int = 500
    webhooks_retention: float = 7 * 86_400.0
    log_level: str = "INFO"
    extra: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Reads ``HARELINE_*``; raises SettingsError that names the variable and what it may hold."""
        env = os.environ if environ is None else environ
        urls = tuple(part.strip() for part in env.get("HARELINE_BROKER_URL", "").split(",") if part.strip())
        for url in urls:
            _check_broker_url(url)
        namespace = env.get("HARELINE_NAMESPACE", "hareline")
        if not namespace or len(namespace) > 40 or not namespace.replace("-", "").replace("_", "").isalnum():  # noqa: PLR2004
            raise SettingsError(
                f"HARELINE_NAMESPACE is '{namespace}': use letters, digits, - and _, 40 characters at most"
            )
        declare = env.get("HARELINE_DECLARE", "auto")
        if declare not in get_args(Declare):
            raise SettingsError(f"HARELINE_DECLARE is '{declare}': use auto or never")
        return cls(
            broker_urls=urls or (DEFAULT_BROKER_URL,),
            management_url=env.get("HARELINE_MANAGEMENT_URL") or None,
            database_url=env.get("HARELINE_DATABASE_URL") or default_database_url(env, namespace),
            namespace=namespace,
            app=env.get("HARELINE_APP") or None,
            declare="never" if declare == "never" else "auto",
            publish_timeout=_seconds(env, "HARELINE_PUBLISH_TIMEOUT", 10.0),
            max_unconfirmed=_integer(env, "HARELINE_MAX_UNCONFIRMED", 2000),
            max_payload=_integer(env, "HARELINE_MAX_PAYLOAD", 1024 * 1024),
            grace=_seconds(env, "HARELINE_GRACE", 25.0),
            consumer_timeout=_seconds(env, "HARELINE_CONSUMER_TIMEOUT", 1800.0),
            report=env.get("HARELINE_REPORT", "on").lower() not in {"off", "0", "false", "no"},
            jobs_done_retention=_seconds(env, "HARELINE_JOBS_DONE_RETENTION", 7 * 86_400.0),
            jobs_failed_retention=_seconds(env, "HARELINE_JOBS_FAILED_RETENTION", 30 * 86_400.0),
            dead_retention=_seconds(env, "HARELINE_DEAD_RETENTION", 30 * 86_400.0),
            inbox_retention=_seconds(env, "HARELINE_INBOX_RETENTION", 7 * 86400.0),
            webhooks=env.get("HARELINE_WEBHOOKS", "").strip(),
            webhooks_host=env.get("HARELINE_WEBHOOKS_HOST") or "127.0.0.1",
            webhooks_port=_integer(env, "HARELINE_WEBHOOKS_PORT", 8080),
            webhooks_token=env.get("HARELINE_WEBHOOKS_TOKEN", "").strip(),
            webhooks_max_body=_integer(env, "HARELINE_WEBHOOKS_MAX_BODY", 1024 * 1024),
            webhooks_max_headers=_integer(env, "HARELINE_WEBHOOKS_MAX_HEADERS", 16 * 1024),
            webhooks_body_timeout=_seconds(env, "HARELINE_WEBHOOKS_BODY_TIMEOUT", 10.0),
            webhooks_concurrency=_integer(env, "HARELINE_WEBHOOKS_CONCURRENCY", 500),
            webhooks_retention=_seconds(env, "HARELINE_WEBHOOKS_RETENTION", 7 * 86_400.0),
            log_level=env.get("HARELINE_LOG_LEVEL", "INFO").upper(),
            extra=dict(env),
        )


def default_database_url(environ: Mapping[str, str], namespace: str) -> str:
    """The embedded database: one SQLite file for each namespace under the user's state directory."""
    state = environ.get("XDG_STATE_HOME") or str(Path(environ.get("HOME") or "~").expanduser() / ".local" / "state")
    return f"sqlite:///{Path(state) / 'hareline' / namespace}.db"


def _check_broker_url(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in {"amqp", "amqps"} or not parts.hostname:
        # The URL may hold a password: name the scheme and the host only.
        raise SettingsError(
            f"HARELINE_BROKER_URL: '{parts.scheme}://{parts.hostname or ''}' is no broker address; "
            "write amqp://user:password@host:5672/vhost (several: comma-separated)"
        )


def _seconds(env: Mapping[str, str], name: str, default: float) -> float:
    text = env.get(name)
    if not text:
        return default
    try:
        return parse_duration(text)
    except OptionInvalid as error:
        raise SettingsError(f"{name}: {error}") from None


def _integer(env: Mapping[str, str], name: str, default: int) -> int:
    text = env.get(name)
    if not text:
        return default
    if not text.isdecimal() or int(text) < 1:
        raise SettingsError(f"{name} is '{text}': a whole number above zero is needed")
    return int(text)
