"""The engine behind the API that clients speak: HTTP in, HTTP out."""
