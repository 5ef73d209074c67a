"""One module a method. Each has ``prepare(job, folder, device)``, which loads the models and returns a function without
arguments: one repetition, giving (deltas of the sampled components [component, prompt], number of patches it made)."""
