"""Documents to one prompt and back: packing, prompts, citations. Needs no torch."""
