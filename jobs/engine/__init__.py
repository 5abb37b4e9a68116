"""The model at work on batches, and what it needs of a device."""
