"""Vision-language models as judges: their questions, where they run, and how a score is read from an answer."""
