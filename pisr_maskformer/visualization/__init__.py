"""Pictures of what a model sees: comparisons with a baseline, and looks inside PISR (supplement, C and E).

heatmaps.py      a map of numbers as colours over an image
observation.py   what a model computes for one image: before PISR, after it, and on the way
centers.py       instance centres after non-maximum suppression (E.1)
instances.py     instance heatmaps, and which of them show the same thing (E.2)
projection.py    t-SNE of semantic and instance encodings in one plane (C.2)
weights.py       what the reweighting network attends to
differences.py   where two panoptic maps disagree
panels.py        pictures side by side with titles, boxes (C.1)
gains.py         Δ
curves.py        training curves as SVG
markup.py        text and data from outside as parts of a page
page.py          one HTML file that shows a comparison

All of it works on arrays; observation.py alone knows a host (`pisr_maskformer.hosts`). What draws panoptic
maps and measures them is MaskFormer's, and joins these pictures in tools/.
"""
