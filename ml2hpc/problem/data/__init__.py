"""Data sets for classification: drawn, read from files, split and normalised."""
