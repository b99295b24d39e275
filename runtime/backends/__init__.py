"""Who computes. A backend turns token ids into logits and can forget the newest of them."""
