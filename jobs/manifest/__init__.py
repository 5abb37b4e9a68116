"""Manifests: the rows of a job, and what each of them must be."""
