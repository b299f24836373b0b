"""vtools: Unix filters that turn shared conversations into a fine-tuned chatbot, serve it and judge it."""

__version__ = "0.1.0"
