"""What drafting learns: which words follow, how two vocabularies map to each other, whom to believe, what it costs."""
