"""From a run directory to tables, fronts and figures; needs neither Ray nor torch nor a GPU.

``front`` works on anyone's DataFrame, ``result`` reads a run directory, ``tables`` prints it, and every file
in ``figures`` is one figure.
"""
