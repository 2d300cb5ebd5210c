"""Training any writer+reader pair, the backbone included, on any task."""
