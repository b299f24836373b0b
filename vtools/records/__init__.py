"""What flows: streams of JSON, conversations, questions, and filters over them."""
