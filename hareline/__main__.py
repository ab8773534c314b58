"""``python -m hareline`` is the ``hareline`` command."""

from hareline.cli import main

main()
