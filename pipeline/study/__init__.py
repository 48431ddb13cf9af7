"""What a method is worth: a grid of pretrainings and fine-tunings, its results, and what they show."""
