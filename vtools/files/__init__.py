"""What appears whole or not at all: locks, atomic files, folders in the making, the cache."""
