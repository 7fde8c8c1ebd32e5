"""One file a figure: it computes what it shows from a Result, and draws that with ``draw(data)``."""
