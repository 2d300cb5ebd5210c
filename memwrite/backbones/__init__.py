"""Causal language models behind one protocol."""
