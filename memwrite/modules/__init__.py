"""Modules that writers and readers share."""
