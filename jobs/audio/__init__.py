"""Audio files and recordings, and what is done to a wave on its way to a file."""
