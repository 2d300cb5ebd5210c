"""Helpers that know nothing of memories."""
