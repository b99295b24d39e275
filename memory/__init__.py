"""Arithmetic only: what a model needs and what a device has. Imports no other room and no inference library."""
