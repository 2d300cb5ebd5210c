"""Memories over HTTP: an OpenAI-shaped server, with memories of several tenants under keys."""
