"""Which motive does training reinforce? Sets of texts by chosen authors, and what a base trained on them becomes."""
