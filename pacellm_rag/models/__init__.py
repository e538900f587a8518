"""Hugging Face decoders: loading, reading a prompt once, answering from it many times."""
