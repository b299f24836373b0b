"""HTML answers to Markdown: tags read, the document laid out small, an engine's text put together again."""
