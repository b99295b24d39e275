"""What drafting learns: which words follow, how two vocabularies spell each other, whom to believe, what it costs."""
