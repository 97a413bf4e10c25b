"""OpenAI's chat format, as it comes in and as it goes out."""
