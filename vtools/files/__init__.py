"""Output that appears whole or not at all: locks, atomic files, resumable folders, the cache."""
