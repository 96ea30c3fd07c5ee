"""What does the model write while it learns, and how sure can one be of what it shows?

generate    prompts and seeds to rollouts: KV cache, one prefill per prompt, finished rows dropped
metrics     what is measured on a rollout, and on many at a fixed number of tokens
statistics  a number with its uncertainty: prompts are the sample, seeds lie within them
capture     all of it at one step of a run, as one parquet file; when to do it, and at what cost
"""
