"""The `trashsorting` command."""
