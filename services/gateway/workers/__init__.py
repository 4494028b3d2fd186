"""One gateway of several processes: the parent that keeps them running, and the channel by which they act as one."""
