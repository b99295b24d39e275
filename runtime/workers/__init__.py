"""Layers of a model on other machines, through llama.cpp's RPC."""
