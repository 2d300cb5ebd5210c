"""How much of a context a memory gives back, and what it costs."""
