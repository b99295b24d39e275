"""Between commands and engines: names to files, pairs chosen and judged, loading, defaults. It prints nothing."""
