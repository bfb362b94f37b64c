"""The parts of tools/compare.py: a baseline and another model, image by image, in bounded memory.

sources.py    where a side's predictions come from: a model, or a folder of saved ones
inputs.py     the images, with or without ground truth
scores.py     what is counted on one image, and the numbers that follow from all
journal.py    a line per finished image, so that a comparison that was stopped goes on
pictures.py   the pictures of one image, and the sheets of both ends
runs.py       what the runs' folders tell: curves, configuration, provenance
report.py     tables and the page
"""
