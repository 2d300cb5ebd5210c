"""Measure how much memories hold and what they cost, and make reports of it."""
