"""Phrases of an answer that only declines the request."""

# Phrases that only a model says of itself or to decline a request. Each is in the assistant's own voice, so that an
# apology, a discussion of models or fictional dialogue does not count as a refusal.
PHRASES = (
    "as an ai language model, i", "as an ai model, i", "as an ai assistant, i", "as an ai, i do not",
    "as an ai, i don't", "as an ai, i cannot", "as an ai, i can't", "as an ai, i am not able", "as an ai, i'm not able",
    "as a large language model, i", "as a language model, i", "i am an ai language model and",
    "i'm an ai language model and", "i cannot fulfill your request", "i cannot fulfill this request",
    "i can't fulfill that request", "i cannot comply with your request", "i cannot comply with this request",
    "i am unable to fulfill", "i'm unable to fulfill", "i cannot assist with that", "i can't assist with that",
    "i cannot assist you with that", "i can't assist you with that", "i'm sorry, but i cannot",
    "i'm sorry, but i can't", "i'm sorry, but i am not able to", "i'm sorry, but i'm not able to",
    "i'm sorry, but i am unable to", "i'm sorry, but i'm unable to", "i am sorry, but i cannot",
    "i apologize, but i cannot", "i apologize, but i can't", "i apologize, but i am unable to", "i'm sorry, i cannot",
    "i'm sorry, i can't", "it is not appropriate for me to", "it is against my programming",
    "it goes against my programming", "violates openai's", "against openai's content policy",
    "against openai's use case policy",
)  # fmt: skip
