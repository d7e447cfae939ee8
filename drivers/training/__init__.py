"""Everything that makes the built-in model: corpus, tasks, tokenizer, model, training and evaluation."""
