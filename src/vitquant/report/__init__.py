"""Results for people: files and tables."""
