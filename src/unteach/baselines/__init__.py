"""What unlearning is compared with: alignment by positive examples and by preferences, on TRL's
trainers.
"""
