"""WRITE at scale: a file of documents into a store of memories."""
