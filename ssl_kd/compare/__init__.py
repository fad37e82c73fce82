"""`ssl-kd compare`: which objective gives the better student? Teachers x students x objectives x seeds x budgets, judged alike.

Two halves, and a wall between them. `training` and `choice` distil and choose learning rates; they know no evaluation and
see no label. `judging` alone asks `ssl_kd.eval`, when a student is finished, and what it finds goes into the table and
nowhere else: but for a task that a config sets aside for choosing, by its name.
"""
