"""The formats of shards, written and read."""
