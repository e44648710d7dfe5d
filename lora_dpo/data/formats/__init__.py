"""How rows of the known formats become pairs (`registry` lists them) and examples (`instruction`)."""
