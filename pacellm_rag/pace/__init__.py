"""PaceLLM: persistent activity and cortical experts on the feed-forward networks of a decoder."""
