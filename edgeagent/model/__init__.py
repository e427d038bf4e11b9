"""Model files, tokenizer, chat template and generation."""
