"""From the Hub to files on this disk. Imports `memory` alone of the other rooms."""
