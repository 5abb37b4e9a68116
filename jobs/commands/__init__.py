"""The commands of `s3gen`, one in each file."""
