"""The only room that prints, exits or reads argv."""
