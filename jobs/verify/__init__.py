"""An output read again as a whole, and held against what it says of itself."""
