"""Who proposes. Every drafter speaks the target's vocabulary and is only ever believed after verification."""
