"""Sources that the settings declare: what the file may say, and what it is told when it is wrong."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from hareline import App, Delivery, JobType, Settings, WebhookSource, webhook_received
from producers.webhooks.declared import declared_webhooks, sources_of
from producers.webhooks.rate import Rate
from topology.errors import ContractError, DeclarationInvalid, SettingsError

pytestmark = pytest.mark.machine


class Order(BaseModel):
    id: int


created = JobType("shop.order", Order)
push = JobType("git.push", Order)
TYPES = [created, push]

TOML = """
[shop]
scheme = "woocommerce"
events = { "order.created" = "shop.order", "order.deleted" = "webhook.received" }
default = "git.push"

[git]
scheme = "github"
window = "5m"
rate = 20
burst = 100
secrets_file = "secrets/git"

[partner]
event_at = "header:X-Kind"
delivery_id_at = "body:meta.id"
"""


def settings(webhooks: object) -> Settings:
    return Settings(webhooks=str(webhooks))


def refused(text: str, *job_types: JobType[Any]) -> str:
    with pytest.raises(DeclarationInvalid) as caught:
        declared_webhooks(settings(text), job_types or TYPES)
    return str(caught.value)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "webhooks.toml"
    file.write_text(TOML, encoding="utf-8")
    return file


def test_a_file_declares_sources(file: Path) -> None:
    shop, git, partner = declared_webhooks(settings(file), TYPES)
    assert (shop.name, shop.scheme, shop.default) == ("shop", "woocommerce", push)
    assert [shop.starts(event) for event in ("order.created", "order.deleted", "other", None)] == [
        created,
        None,
        push,
        push,
    ]
    assert (git.window, git.rate, git.starts("push")) == (300.0, Rate(20, 100), None)
    assert (partner.scheme, partner.window, partner.rate, partner.secrets) == ("generic", 300.0, None, None)
    delivery = Delivery.of([("X-Kind", "paid")], b"")
    identity = partner.identify(delivery, {"event": "not this", "meta": {"id": 7}})
    assert (identity.event, identity.delivery_id) == ("paid", "7")


def test_json_says_the_same_in_a_file_and_in_the_variable(file: Path) -> None:
    document = {"git": {"scheme": "github", "events": {"push": "git.push"}}}
    (file.parent / "hooks.json").write_text(json.dumps(document), encoding="utf-8")
    inline = declared_webhooks(settings(json.dumps(document)), TYPES)
    assert inline == declared_webhooks(settings(file.parent / "hooks.json"), TYPES)
    assert inline == (WebhookSource("git", scheme="github", events={"push": push}),)
    assert declared_webhooks(settings(""), TYPES) == ()


def test_secrets_come_from_the_environment_or_a_file_of_their_own(file: Path) -> None:
    shop, git, _ = declared_webhooks(settings(file), TYPES)
    assert shop.armed({"HARELINE_WEBHOOKS_SECRETS_SHOP": "hush"}).secrets == ("hush",)
    with pytest.raises(SettingsError, match=r"secrets/git cannot be read: No such file"):
        git.armed({"HARELINE_WEBHOOKS_SECRETS_GIT": "hush"})
    secrets = file.parent / "secrets" / "git"
    secrets.parent.mkdir()
    for text, says in (("\n \n", "is empty"), ("hush-é", "ASCII"), (b"hush-\xff", "UTF-8")):
        secrets.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(SettingsError, match=says) as caught:
            git.armed({})
        assert "hush" not in str(caught.value)
    secrets.write_text("old-secret\nnew-secret\n", encoding="utf-8")
    armed = git.armed({})
    assert armed.secrets == ("old-secret", "new-secret")
    assert "secret\n" not in repr(armed)
    assert "old-secret" not in repr(armed)


def test_an_app_has_them_beside_its_own(file: Path) -> None:
    app = App(job_types=TYPES, webhooks=[WebhookSource("code", events={"push": push}, default=created)])
    assert [source.name for source in app.webhooks_with(settings(file))] == ["code", "shop", "git", "partner"]
    assert webhook_received not in app.job_types
    assert app.job_types_with(settings(file)) == (*TYPES, webhook_received), "or it would have no queue"
    full = '{"git": {"default": "git.push"}}'
    assert app.job_types_with(settings(full)) == app.job_types_with(Settings()) == (*TYPES,)
    file.write_text('[code]\nscheme = "github"\n', encoding="utf-8")
    with pytest.raises(DeclarationInvalid, match=r"webhooks.toml: code: the code declares a source of this name too"):
        app.webhooks_with(settings(file))


def test_a_source_in_code_may_name_the_catch_all() -> None:
    source = WebhookSource("git", events={"push": push, "ping": webhook_received}, default=push)
    assert [source.starts(event) for event in ("push", "ping", "x")] == [push, None, push]
    assert webhook_received in App(job_types=[push], webhooks=[source]).job_types


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ({"schema": "github"}, "git.schema: there is no such key, is 'scheme' meant?; there are: scheme, events,"),
        ({"scheme": "gitlab"}, "git.scheme: this cannot be: it must be one of generic, standard, github"),
        (
            {"events": {"push": "git.pusch"}},
            "git.events.push: the app has no job type or saga 'git.pusch', is 'git.push'",
        ),
        ({"events": {"push": 1}}, "git.events.push: this cannot be: it must be a table of event names"),
        ({"events": {"push": {"saga": "x"}}}, "git.events.push: this cannot be"),
        ({"events": ["push"]}, "git.events: this cannot be"),
        (
            {"default": "nothing"},
            "git.default: the app has no job type or saga 'nothing'; it has: git.push, shop.order",
        ),
        ({"window": 0}, "git.window: 0 would refuse every delivery"),
        ({"window": "soon"}, "git.window: 'soon' is not a duration"),
        ({"window": True}, "git.window: this cannot be: it must be seconds above zero, or a duration as 5m"),
        ({"event_at": "X-Event"}, "event_at: 'X-Event' is no place in a delivery: write header:X-Event, or body:"),
        ({"delivery_id_at": "header:a b"}, "delivery_id_at: 'header:a b' is no place"),
        ({"delivery_id_at": "body:a..b"}, "delivery_id_at: 'body:a..b' is no place"),
        ({"rate": 0}, "git.rate: rate is 0: deliveries a second, above zero"),
        ({"rate": "5/s"}, "git.rate: this cannot be: it must be deliveries a second"),
        ({"burst": 5}, "git.burst: it goes with rate"),
        ({"rate": 1, "burst": 0}, "git.burst: 0 lets nothing through"),
        ({"secrets": ["hush"]}, "git.secrets: no secret belongs into this file: set HARELINE_WEBHOOKS_SECRETS_<NAME>"),
        ({"secret": "hush"}, "git.secret: no secret belongs into this file"),
        ({"secrets_file": ["hush"]}, "git.secrets_file: this cannot be: it must be the path of a file"),
        ("hush", "git: a table is needed"),
    ],
)
def test_what_is_wrong_is_named_with_its_key_and_its_cure(written: Any, says: str) -> None:
    told = refused(json.dumps({"git": written}))
    assert told.startswith("HARELINE_WEBHOOKS: git")
    assert says in told
    assert "hush" not in told


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("no.toml", None, "cannot be read: No such file"),
        ("x.toml", b"[git\n", "this is not TOML: "),
        ("x.toml", b"[git]\n[git]\n", "this is not TOML: "),
        ("x.toml", b"\xff", "cannot be read: it is no text in UTF-8"),
        ("x.toml", b"", "declares no source"),
        ("x.toml", b'scheme = "github"', "scheme: a table is needed, one for each source"),
        ("x.toml", b"[git]\nwindow = inf\n", "git.window: this cannot be"),
        ("x.toml", b'["a/b"]\n', "letters, digits"),
        ("x.json", b'{"git": {}, }', "this is not JSON: "),
        ("x.json", b'{"git": {}, "git": {}}', "'git' is there twice"),
        ("x.json", b"[]", "an object is needed"),
        ("x.json", b"[" * 100_000, "nested too deeply"),
        ("x.yaml", b"git:\n", "is it TOML or JSON?"),
        (".", None, "cannot be read"),
    ],
)
def test_a_file_that_is_none_is_named(tmp_path: Path, name: str, content: bytes | None, says: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    told = refused(str(tmp_path / name))
    assert told.startswith(f"HARELINE_WEBHOOKS {tmp_path / name}: ")
    assert says in told


def test_code_may_name_the_file_of_the_secrets_instead_of_them(tmp_path: Path) -> None:
    (tmp_path / "git").write_text("hush-hush\n", encoding="utf-8")
    armed = WebhookSource("git", scheme="github", secrets_file=str(tmp_path / "git")).armed({})
    assert armed.secrets == ("hush-hush",)
    with pytest.raises(ContractError, match="give one of them"):
        WebhookSource("git", secrets=["hush-hush"], secrets_file="git")


def test_the_variable_is_read_from_the_environment() -> None:
    found = Settings.from_env({"HARELINE_WEBHOOKS": ' {"git": {}} '})
    assert [source.name for source in declared_webhooks(found, TYPES)] == ["git"]


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)
keys = st.sampled_from([
    "scheme", "events", "default", "window", "event_at", "delivery_id_at", "secrets_file", "rate", "burst", "x",
])  # fmt: skip


@given(st.dictionaries(st.text(max_size=5), values | st.dictionaries(keys, values, max_size=4), max_size=2))
def test_no_document_is_an_error_of_ours(document: dict[str, Any]) -> None:
    """It declares sources or is refused; any other exception fails here."""
    with suppress(DeclarationInvalid):
        assert sources_of(document, TYPES, (), "here", Path())


# -- where event and id are ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["generic", "github", "stripe"])
def test_a_test_delivery_has_event_and_id_where_the_source_looks(scheme: Any) -> None:
    source = WebhookSource(
        "x", scheme=scheme, secrets=["hush-hush"], event_at="body:meta.kind", delivery_id_at="header:X-Id"
    )
    headers, body = source.sign(b'{"n": 1}', event="paid", delivery_id="d-1", now=1000.0)
    delivery = Delivery.of(headers.items(), body)
    assert source.verify(delivery, 1000.0)
    identity = source.identify(delivery, json.loads(body))
    assert (identity.event, identity.delivery_id) == ("paid", "d-1")
    assert json.loads(body)["n"] == 1


def test_what_is_missing_there_is_none() -> None:
    source = WebhookSource("x", event_at="body:a.b", delivery_id_at="header:X-Id")
    twice = Delivery.of([("x-id", "1"), ("X-ID", "2"), ("X-Idempotency-Key", "k")], b"")
    identity = source.identify(twice, {"a": {"b": ["no text"]}})
    assert (identity.event, identity.delivery_id) == (None, None)


def test_a_header_that_the_scheme_has_too_is_sent_once() -> None:
    source = WebhookSource("x", secrets=["hush-hush"], event_at="header:x-idempotency-key")
    headers, body = source.sign(b"{}", event="paid", delivery_id="d-1", now=0.0)
    delivery = Delivery.of(headers.items(), body)
    assert source.verify(delivery, 0.0)
    assert source.identify(delivery, {}).event == "paid"
