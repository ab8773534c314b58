"""What exists on the broker and what travels through it. The bottom room: imports nothing of Hareline's."""
