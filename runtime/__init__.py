"""Token ids in, token ids out; chat on top. Imports `memory` alone of the other rooms."""
