"""How rows of the known preference formats become pairs; `registry` lists them."""
