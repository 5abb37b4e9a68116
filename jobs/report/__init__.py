"""The report of a job, one page."""
