"""Jobs of tokens: recordings in, speech tokens out."""
