"""What lies on a disk: whole or not counted at all, and one writer at a time."""
