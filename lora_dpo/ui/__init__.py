"""People in the loop: collecting preferences, comparing base and tuned, in the terminal and in a browser."""
