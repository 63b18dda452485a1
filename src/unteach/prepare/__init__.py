"""What comes before the unlearning: teaching a demo's model, letting it speak for what is to be
kept, trying methods.
"""
