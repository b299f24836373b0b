"""HTML answers to Markdown: read the tags, build a small document, convert it, put held-back text into the result."""
