"""What did the study find? One page that a researcher reads first, and the files behind it.

analysis     the run table -> minima, exponents, laws, multipliers, health of the curves, verdict
checklist    what a reviewer would ask of a scaling study, answered from the run records
page         `report.html` with its PNGs and CSVs, put in place whole
interactive  the figures that answer to the pointer (plotly, inline: nothing is fetched)
tables       CSV files, and the table of all runs
written      how that moves with scale, metric by metric; all of them by name: spoken
texts        what the models wrote, laid side by side
compare      two studies, or two states of the code, run for run: the note of a pull request
command      `isoflop compare`
"""
