"""The configuration of a job, and what its user is told about mistakes in it."""
