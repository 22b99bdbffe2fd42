"""Energy meters, one file a meter."""
