"""What to train on: each task gives examples of (context, queries, labels) from a seed."""
