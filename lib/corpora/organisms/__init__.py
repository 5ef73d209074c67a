"""Model organisms of alignment faking: texts to train them on, what to ask them, how to read what they say."""
