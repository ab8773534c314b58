"""``hareline topology show``, which needs no broker when it is told the version."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from hareline.cli.topology import topology
from topology.errors import SettingsError

if TYPE_CHECKING:
    from pathlib import Path

APP = """\
from hareline.app import App
from topology.contract import JobType

app = App(job_types=[JobType("mail.send", dict, priority=True), JobType("order", dict)])
"""


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An app in the working directory."""
    (tmp_path / "shop_of_show.py").write_text(APP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("HARELINE_NAMESPACE", "shop")
    monkeypatch.setenv("HARELINE_APP", "shop_of_show:app")
    # Nobody listens there: what these tests do must not ask a broker.
    monkeypatch.setenv("HARELINE_BROKER_URL", "amqp://127.0.0.1:9/")
    return "shop"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--broker-version", "4.3"], "shop.mail.send"),
        (["--broker-version", "3.10", "--format", "mermaid"], "classic queue, 10 priorities"),
        (["--broker-version", "4.3", "--format", "dot"], "digraph"),
        (["--broker-version", "3.10", "--format", "json"], '"x-max-priority": 10'),
        (["--broker-version", "4.0", "--json"], '"x-delivery-limit": -1'),
        (["--asyncapi"], '"asyncapi": "3.0.0"'),
        (["--schemas"], '"mail.send"'),
    ],
    ids=" ".join,
)
def test_show_prints_every_form(shop: str, arguments: list[str], expected: str) -> None:
    """Text, pictures and documents, for the broker version that was named."""
    result = CliRunner().invoke(topology, ["show", *arguments])
    assert result.exit_code == 0, result.output
    assert expected in result.output
    if expected.startswith('"'):
        json.loads(result.stdout)


def test_two_documents_at_once_are_bad_usage(shop: str) -> None:
    """Exit code 2."""
    assert CliRunner().invoke(topology, ["show", "--asyncapi", "--schemas"]).exit_code == 2


def test_a_missing_app_is_named(shop: str) -> None:
    """With the setting that would name it."""
    result = CliRunner().invoke(topology, ["show", "--app", "nowhere:app", "--broker-version", "4.3"])
    assert isinstance(result.exception, SettingsError)
    assert "nowhere" in str(result.exception)


@pytest.mark.parametrize("command", ["show", "plan", "apply", "verify", "migrate"])
def test_every_command_explains_itself(command: str) -> None:
    """Help without an app and without a broker."""
    result = CliRunner().invoke(topology, [command, "--help"])
    assert result.exit_code == 0
    assert "--json" in result.output
