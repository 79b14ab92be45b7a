"""Emoji: concepts, what looks alike, drawings of several vendors, and the two sets that are made of them."""
