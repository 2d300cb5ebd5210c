"""Memories descended on a frozen model, one context at a time: cartridges (keys and values) and soft prompts (vectors)."""
