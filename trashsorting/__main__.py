"""`python -m trashsorting` is the `trashsorting` command, for a checkout that is not installed."""

from trashsorting.cli.main import main

main()
