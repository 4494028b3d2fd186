"""The process pool: a small supervisor over child processes, one pipe each."""
