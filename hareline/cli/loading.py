"""Finds the user's App by its ``module:attribute``."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

from hareline.app import App
from topology.errors import SettingsError


def load_app(reference: str | None) -> App:
    """The App that ``reference`` (usually HARELINE_APP) names. The working directory is importable.

    Raises SettingsError that names what is missing; an error inside the user's module is shown as it is.
    """
    if not reference:
        raise SettingsError("no app: set HARELINE_APP to module:attribute, for example shop.jobs:app")
    module_name, _, attribute = reference.partition(":")
    if not module_name or not attribute:
        raise SettingsError(f"HARELINE_APP is '{reference}': write module:attribute, for example shop.jobs:app")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise SettingsError(
            f"HARELINE_APP is '{reference}': no module '{error.name}' in {here} or on the path"
        ) from None
    app = getattr(module, attribute, None)
    if not isinstance(app, App):
        found = "nothing" if app is None else f"a {type(app).__name__}"
        raise SettingsError(f"HARELINE_APP is '{reference}': '{attribute}' is {found}, not a hareline.App")
    return app
