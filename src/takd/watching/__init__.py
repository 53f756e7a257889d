"""Progress of a run while it is under way: in a terminal (`watch`), and as curves of trackers (`track`).

All is read from the files of the run, by a process of its own. No module here is imported by a stage.
"""
