"""The demonstration: a text and key-value pairs, written, dropped and read back, as a report."""
