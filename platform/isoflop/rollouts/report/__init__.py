"""What did the models of a study write, side by side? A page, and a browser for the terminal.

store      a study's folder -> its runs, captures, prompts, and the curves of their metrics
pieces     one capture's rows -> what is shown: tokens in the text, loops, copies, metrics
page       one self-contained file: `rollouts.html` (with page.html.jinja, page.css, page.js)
terminal   the same by keys
paired     two runs in numbers; rollouts for other programs
command    `isoflop rollouts STUDY`
"""
