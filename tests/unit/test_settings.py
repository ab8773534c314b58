"""Settings from the environment: defaults, and errors that name the variable and never show a password."""

from __future__ import annotations

import pytest

from topology.errors import SettingsError
from topology.link import Link, shown
from topology.settings import DEFAULT_BROKER_URL, Settings


def test_an_empty_environment_is_a_broker_on_this_machine() -> None:
    """Nothing needs to be set on a developer's machine."""
    settings = Settings.from_env({})
    assert settings.broker_urls == (DEFAULT_BROKER_URL,)
    assert (settings.management_url, settings.namespace, settings.app) == (None, "hareline", None)
    assert (settings.publish_timeout, settings.max_payload, settings.declare) == (10.0, 1024 * 1024, "auto")


def test_everything_that_is_set_is_taken() -> None:
    """Durations in any form, several brokers, and empty means unset."""
    settings = Settings.from_env(
        {
            "HARELINE_BROKER_URL": "amqp://a/ , amqps://b:5671/vhost,",
            "HARELINE_NAMESPACE": "shop-1_x",
            "HARELINE_PUBLISH_TIMEOUT": "250ms",
            "HARELINE_MAX_UNCONFIRMED": "10",
            "HARELINE_MAX_PAYLOAD": "1000",
            "HARELINE_DECLARE": "never",
            "HARELINE_REPORT": "OFF",
            "HARELINE_GRACE": "",
            "HARELINE_MANAGEMENT_URL": "",
        }
    )
    assert settings.broker_urls == ("amqp://a/", "amqps://b:5671/vhost")
    assert (settings.namespace, settings.publish_timeout, settings.max_unconfirmed) == ("shop-1_x", 0.25, 10)
    assert (settings.max_payload, settings.declare, settings.report) == (1000, "never", False)
    assert (settings.grace, settings.management_url) == (25.0, None)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HARELINE_BROKER_URL", "localhost:5672"),
        ("HARELINE_BROKER_URL", "http://guest:secret@host/"),
        ("HARELINE_BROKER_URL", "amqp://user:secret@/"),
        ("HARELINE_NAMESPACE", ""),
        ("HARELINE_NAMESPACE", "a.b"),
        ("HARELINE_NAMESPACE", "a b"),
        ("HARELINE_NAMESPACE", "x" * 41),
        ("HARELINE_DECLARE", "sometimes"),
        ("HARELINE_PUBLISH_TIMEOUT", "soon"),
        ("HARELINE_PUBLISH_TIMEOUT", "-1"),
        ("HARELINE_MAX_UNCONFIRMED", "0"),
        ("HARELINE_MAX_PAYLOAD", "1MB"),
    ],
)
def test_a_value_that_makes_no_sense_is_named(name: str, value: str) -> None:
    """The variable's name is in the error, a password is not."""
    with pytest.raises(SettingsError, match=name) as caught:
        Settings.from_env({name: value})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["amqp://u:secret@host:99999/", "amqp://u:secret@host:port/", "amqp://u:secret@host/?heartbeat=often",
     "amqp://u:secret@host/?ssl_options=5"],
)  # fmt: skip
def test_a_broker_address_with_a_part_that_means_nothing_is_refused_at_once(url: str) -> None:
    """Not when it is tried, in the background, where nobody sees it."""

    async def nothing(_: object) -> None: ...

    with pytest.raises(SettingsError, match="HARELINE_BROKER_URL") as caught:
        Link([url], "test", on_up=nothing, on_down=lambda _: None)
    assert "secret" not in str(caught.value)


def test_a_url_is_shown_without_its_password() -> None:
    """Host, port and vhost are what one looks for in a log."""
    assert shown("amqp://user:secret@host/shop") == "amqp://host:5672/shop"
    assert shown("amqps://user:secret@host/shop") == "amqps://host:5671/shop"
