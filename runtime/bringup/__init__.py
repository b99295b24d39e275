"""An engine comes up: memory planned, libraries tried, models opened."""
