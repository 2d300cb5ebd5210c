"""Commands that memwrite-specs adds to `memwrite`."""
