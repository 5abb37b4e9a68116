"""What is measured of each utterance."""
