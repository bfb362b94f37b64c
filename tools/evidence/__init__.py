"""The parts of tools/experiment.py and tools/ablation_table.py: from a plan to runs, from runs to tables.

plan.py       a plan file: rows (configurations), seeds, tables
jobs.py       one run: its folder, its command, its state
schedule.py   all runs of a plan, some at a time, until each is finished or given up
estimate.py   hours and memory of a plan, from a few measured iterations
probe.py      one trained PISR model evaluated three ways: final, initial, with another image's encodings
diagnosis.py  how such a model uses its relations, in a few numbers
results.py    what a finished run measured, and the small JSON file that is kept of it
paired.py     mean, deviation, and differences between runs of the same seed
tables.py     rows and columns, as Markdown and CSV
plot.py       the differences as a picture
merge_categories.py   COCO labels with super-categories as classes
paper.py      the paper's own numbers
"""
