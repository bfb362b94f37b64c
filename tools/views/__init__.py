"""The pictures of tools/visualize.py: each sub-command turns looks at images into pictures and arrays.

look.py         one image with what the model computes for it
heatmaps.py     semantic heatmaps, centres, instance heatmaps (supplement E)
encodings.py    t-SNE, weights, relations (supplement C.2, Sections 3.3 and 3.4)
"""
