"""Parquet files from anywhere, looked at before anything of them is decoded."""
