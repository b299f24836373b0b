"""A model by its reference: its folder, configuration, tokenizer, chat template and loaded weights."""
