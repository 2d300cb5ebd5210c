"""The `memwrite` command."""
