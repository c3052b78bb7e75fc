"""A vision-language model as judge: what it is asked, where it runs, and what of its answers is a score."""
