"""What a slot is worth: one score per file."""
