"""The data that flows: JSON streams, conversations, questions, filters over them, text analysis and prices."""
