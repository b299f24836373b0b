"""The transformers library, kept from talking on stderr."""


def quiet_transformers() -> None:
    """transformers reports loading on stderr, bars and all; our tools say what matters themselves."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
