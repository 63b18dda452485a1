"""Files that are whole or do not count, and folders that one process at a time writes into."""
