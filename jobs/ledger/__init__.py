"""The commit protocol of an output, and the tables that its records lead to."""
