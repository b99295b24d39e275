"""HTTP on top of `app`: requests as OpenAI's clients write them, answers as they read them. Needs `edgellm[serve]`."""
