"""Memories and trained runs as files: state files, run folders, and how they are opened."""
