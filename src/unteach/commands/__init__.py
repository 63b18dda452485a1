"""What the command line takes, how a command ends, and the commands that are no run."""
