"""Tensors as bytes on disk: where they are, how they are read and written."""
