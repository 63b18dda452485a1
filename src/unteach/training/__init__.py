"""What `UnlearningTrainer` is made of: its rows, what it takes from model and reference, its checks, what it does between steps."""
