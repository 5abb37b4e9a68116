"""Voice tables: read, and built from clips."""
