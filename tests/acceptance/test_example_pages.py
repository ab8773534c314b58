"""The pages of the worked cases show the commands that the examples' first lines print, which their tests run."""

from __future__ import annotations

import ast

import pytest

from tests.lab import ROOT


@pytest.mark.parametrize(
    ("page", "module"),
    [
        ("import-csv", "csv_import"),
        ("email-campaign", "campaign"),
        ("media-pipeline", "media_pipeline"),
        ("erp-sync", "erp_sync"),
    ],
)
def test_a_page_shows_the_commands_that_are_tested(page: str, module: str) -> None:
    docstring = ast.get_docstring(ast.parse((ROOT / "examples" / module / "app.py").read_text()))
    assert docstring is not None
    commands = docstring.split("\n\n")[1]
    assert f"```sh\n{commands}\n```" in (ROOT / "docs" / "how-to" / f"{page}.md").read_text()
