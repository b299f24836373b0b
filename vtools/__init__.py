"""vtools: Unix filters that take shared conversations to a judged, served chatbot."""

__version__ = "0.1.0"
