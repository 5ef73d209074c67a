"""How models are fine-tuned: ``lora`` holds what every fine-tuning shares, ``reinforce`` learns from rewards in live
games, ``sft`` from written answers."""
