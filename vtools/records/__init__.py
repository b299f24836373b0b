"""What flows: streams of JSON, conversations, questions, filters over them, and what is known of texts and prices."""
