"""Models by reference: folder, configuration, tokenizer, chat template and loaded weights."""
