"""Files to text: documents, pages, and the parsers behind them. Knows nothing of models."""
