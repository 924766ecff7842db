"""The model that ships: integers only."""
