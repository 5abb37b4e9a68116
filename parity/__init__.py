"""The full-size model held against the reference implementation, and the goldens made from it."""
