"""Shards in, committed shards out."""
