"""Asking a model, on a server or in this process: retries where they help, and never twice for one answer."""
