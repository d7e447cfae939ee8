"""GGUF: files that hold weights, shape and vocabulary in one, read into the forms that llmos knows."""
