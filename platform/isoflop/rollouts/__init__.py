"""What does the model write while it learns, and how sure can one be of what it shows?

generate    prompts and seeds to rollouts: KV cache, one prefill per prompt, finished rows dropped
sampling    which token is written next: temperature, and what narrows the choice
unmask      a denoiser's way to write: blanks filled in, pass after pass
prompts     what the model is asked: given texts, files, beginnings of held-out or training text
capture     all of it at one step of a run; shared by processes, repeated by none
rows        what is kept of a capture: a parquet file with a row for each rollout
timing      when to capture, and whether there is time for it
metrics     every metric of a rollout, and of many at a fixed number of tokens; plugins
catalogue   which metrics there are
measured    what is measured, and what a measurement is
repetition  saying the same again, and loops
certainty   the model's own distribution: entropy, surprise, calibration
syntax      Python, JSON, brackets
novelty     what the run had read by then, word for word
recall      going on as a known text does
groups      the rollouts of one prompt; pass@k
corpus      many rollouts at a fixed number of tokens
judge       what a frozen model of the same study makes of it
references  the same metrics on held-out text of the same length, once per text
control     what the model itself makes of that text; how much of it it would recite
comparing   the difference of two runs on the same prompts and seeds, corrected for many metrics
statistics  a number with its uncertainty: prompts are the sample, seeds lie within them
alarm       a metric that has left its band, beyond doubt
rewards     plain functions of either convention of `verifiers`, asked for their worth
rubric      rewards with weights: a failure is null and counted
verifiers   its formats, written and read without it
regard      what rewards say of rows that are there already
outside     its tasks, asked in a process of their own (outside_worker)
grpo        a model that learns what a rubric rewards
report      the page, the terminal browser, and the command that opens them
"""
