"""Stages before unlearning: teaching, generation of own answers, paraphrases, method search."""
