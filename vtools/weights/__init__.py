"""Tensors as bytes on disk: where they lie, how they are read, and how they are written."""
