"""Making GGUF of a checkpoint: by our own converter or llama.cpp's, quantised, trimmed."""
