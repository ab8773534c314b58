"""``./dev demo``: a few thousand real jobs against real servers, and a table of what became of every one."""
