"""Runs an example's commands as its first docstring prints them."""

from __future__ import annotations

import ast
import asyncio
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from tests.lab import ROOT, Lab, clear_namespace
from topology.settings import Settings


async def run_example(lab: Lab, module: str, changes: Mapping[str, str], **more: str) -> str:
    """What the commands print. ``changes`` puts places and sizes of the test's own into them."""
    docstring = ast.get_docstring(ast.parse((ROOT / "examples" / module).read_text()))
    assert docstring is not None
    script = docstring.split("\n\n", 1)[1].split("\n\n")[0]
    for old, new in changes.items():
        assert old in script, old
        script = script.replace(old, new)
    environment = lab.environment("", **more)
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    # What runs in the background ends with the script.
    script = f"set -e\ntrap 'kill $(jobs -p); wait' EXIT\n{script}\n"
    done = await asyncio.to_thread(
        subprocess.run, ["bash", "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=170,
        check=False,
    )  # fmt: skip
    assert done.returncode in {0, -15, 143}, done.stdout + done.stderr
    return str(done.stdout)


@asynccontextmanager
async def own_namespace(settings: Settings, name: str) -> AsyncIterator[Lab]:
    """For an example, whose job types have names of their own that another test may use as well."""
    settings = replace(settings, namespace=f"x-{secrets.token_hex(3)}")
    try:
        async with Lab(settings, name) as lab:
            yield lab
    finally:
        await clear_namespace(settings)
