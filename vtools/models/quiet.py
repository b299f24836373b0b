"""Silencing the transformers library."""


def quiet_transformers() -> None:
    """Turn off the messages and progress bars of transformers; our commands report what matters."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
