"""`python -m trashsorting` is the `trashsorting` command, for a checkout that is not installed."""

from trashsorting.cli import main

main()
